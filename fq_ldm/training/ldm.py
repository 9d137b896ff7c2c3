"""What `train_ldm.py` leaves: samples, and the pipeline with its card."""

from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel

from ..cards import (
    display_scale,
    model_name,
    pipeline_usages,
    push_to_hub,
    save_card,
    save_grid,
    save_metrics,
)
from ..data import ImageDataset
from ..diffusion import (
    diffusion_loss,
    encode_images,
    hide_labels,
    latents_of_tokens,
    sampling_scheduler,
    saved_scheduler,
)
from ..models import TokenAutoencoder
from ..options import LDMConfig, TrainingConfig
from ..pipelines import FQLDMPipeline
from .own_samples import OwnSamples, OwnWays
from .run import Batch
from .teacher import LinearTeacher


def make_loss(
    vae: TokenAutoencoder,
    scheduler: DDPMScheduler,
    ldm: LDMConfig,
    flip: bool,
    num_classes: int,
    own: OwnSamples | OwnWays | None = None,
    teacher: LinearTeacher | None = None,
):
    """The loss of a batch of images, or of what the cache keeps of them, alone or with their classes, for `train`.

    With `own` samples it is how badly they are told from images, or made in few steps, else the error of denoising,
    in which a `teacher` gives some of the targets.
    """

    def compute_loss(prepared, batch: Batch) -> tuple[torch.Tensor, dict]:
        generator = batch.generator
        if isinstance(own, OwnWays):
            return own.loss(prepared, len(batch.data), generator)
        given, labels = batch.data if num_classes else (batch.data, None)
        if ldm.cache_latents:
            views = torch.randint(given.shape[1], (len(given),), device=given.device, generator=generator)
            latents = given[torch.arange(len(given), device=given.device), views]
            if ldm.target == "quantized":
                latents = latents_of_tokens(vae, latents)
        else:
            latents = encode_images(vae, given, ldm.target, flip, generator)
        if own is not None:
            return own.loss(prepared, scheduler, latents, generator)
        if labels is not None:
            labels = hide_labels(labels, ldm.label_dropout, num_classes, generator)
        loss = diffusion_loss(
            prepared, scheduler, latents, generator, ldm.snr_gamma, ldm.timestep_sampling, labels,
            ldm.timestep_logit_mean, teacher,
        )  # fmt: skip
        return loss, {}

    return compute_loss


def make_pipeline(
    vae: TokenAutoencoder, unet: UNet2DModel, scheduler: DDPMScheduler, ldm: LDMConfig, images: ImageDataset
) -> FQLDMPipeline:
    """The pipeline of a UNet, with the classes of its training images and how often each occurs."""
    names, shares = list(images.class_names), None
    if names:
        shares = (torch.bincount(images.labels, minlength=len(names)) / len(images)).tolist()
    options = (ldm.quantize_samples, names or None, shares, ldm.distill_steps or None, ldm.learnt_temperature)
    return FQLDMPipeline(vae, unet, scheduler, *options)


def sample(pipeline: FQLDMPipeline, ldm: LDMConfig) -> torch.Tensor:
    """The same few images at every call, class after class: (n, c, H, W) in [0, 1]; the UNet is evaluated."""
    pipeline.unet.eval()
    steps = ldm.distill_steps or ldm.preview_inference_steps
    of_steps = (
        saved_scheduler(pipeline.scheduler, ldm) if ldm.distill_steps else sampling_scheduler(pipeline.scheduler, steps)
    )
    pipeline = FQLDMPipeline(**dict(pipeline.components, scheduler=of_steps), **pipeline.options)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    labels = None
    if pipeline.num_classes:
        labels = [i % pipeline.num_classes for i in range(ldm.preview_images)]
    return pipeline(ldm.preview_images, steps, generator, output_type="pt", class_labels=labels).images


def draw_samples(images: torch.Tensor, path: Path) -> np.ndarray:
    """Write images (n, c, H, W) in [0, 1] as a nearly square grid, as `save_grid` does."""
    return save_grid(images, path, max(1, round(len(images) ** 0.5)), display_scale(images.shape[-2]))


def finish(pipeline: FQLDMPipeline, ldm: LDMConfig, config: TrainingConfig, metrics: dict, options: dict) -> None:
    """Save the pipeline, a picture of its samples and its card."""
    folder = Path(config.output_dir)
    if ldm.save_precision == "fp16":
        pipeline.unet.half()  # the FQ-VAE is small, and its codebook must not be rounded
    pipeline.scheduler = saved_scheduler(pipeline.scheduler, ldm)
    pipeline.save_pretrained(folder)
    pipeline.unet.float()
    images = sample(pipeline, ldm)
    draw_samples(images, folder / "samples.png")
    save_metrics(folder, metrics)
    parameters = sum(p.numel() for p in pipeline.unet.parameters())
    latents, shape = "frequency latents", "x".join(map(str, pipeline.vqvae.diffusion_latent_shape))
    of_tokens = {}
    if ldm.quantize_samples:
        of_tokens["bits_per_image"] = pipeline.vqvae.bits_per_image
        latents, shape = f"quantized {latents}", f"{shape}, {pipeline.vqvae.bits_per_image:.0f} bits per image"
    names = pipeline.config.class_names
    other_scheduler = "DPMSolverMultistepScheduler" if ldm.save_scheduler == "ddpm" else "DDPMScheduler"
    if ldm.distill_steps:
        other_scheduler = None
    steps = ldm.distill_steps or ldm.num_train_timesteps
    save_card(
        folder,
        title=f"FQ-LDM on {Path(options['dataset']).name}",
        summary=f"Latent diffusion on the {latents} of an FQ-VAE: a UNet of {parameters / 1e6:.2f} M parameters on "
        f"{shape}. The samples are not selected; {ldm.distill_steps or ldm.preview_inference_steps} steps of "
        f"{'DDIM' if ldm.distill_steps else 'DPM-Solver++'}.",
        picture="samples.png",
        usages=pipeline_usages(model_name(folder, options), other_scheduler, steps, names),
        metrics={**metrics, **of_tokens, "unet_parameters": parameters},
        options=options,
        script="train_ldm",
        limits="For research on generative models. Samples are not filtered; what is rare in the "
        "data is rarer in them. They show nobody and nothing real: do not pass them off as such.",
        task=("unconditional-image-generation", "image generation" + (" by class" if names else "")),
        pipeline_tag=None if pipeline.num_classes else "unconditional-image-generation",
        class_names=names,
        base_model=ldm.vae,
    )
    if config.push_to_hub:
        push_to_hub(config, options)
