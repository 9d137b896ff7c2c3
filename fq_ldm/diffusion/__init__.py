"""Diffusion on an FQ-VAE's latents, as training, evaluation, examples and benchmarks share it."""

from .latents import (
    check_vae,
    choose_view,
    encode_images,
    latents_of_tokens,
    linear_channels,
    measure_view_,
    open_vae,
)
from .loss import diffusion_loss, discriminative_loss, held_out_loss, hide_labels
from .schedule import (
    SAMPLE_STEPS,
    build_scheduler,
    distilled_scheduler,
    fast_scheduler,
    sampling_scheduler,
    saved_scheduler,
)
from .unet import build_unet, open_unet, start_from_

__all__ = [
    "SAMPLE_STEPS",
    "build_scheduler",
    "build_unet",
    "check_vae",
    "choose_view",
    "diffusion_loss",
    "discriminative_loss",
    "distilled_scheduler",
    "encode_images",
    "fast_scheduler",
    "held_out_loss",
    "hide_labels",
    "latents_of_tokens",
    "linear_channels",
    "measure_view_",
    "open_unet",
    "open_vae",
    "sampling_scheduler",
    "saved_scheduler",
    "start_from_",
]
