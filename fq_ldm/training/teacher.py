"""A trained UNet of the linear channels, which one of more channels learns from."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel

from ..diffusion import linear_channels, open_unet, open_vae
from ..models import TokenAutoencoder
from ..options import DataError, LDMConfig, check
from .own_samples import check_start


class LinearTeacher:
    """What a trained UNet predicts of the linear channels, as the target where noise is stronger than the latents.

    There learnt channels say nothing yet, and one image with one noise says little of what is to be predicted: of all
    images that could lie below that noise. A trained UNet has seen them. Nearer to the image the target stays what it
    was, since learnt channels then tell something of linear ones.

    Args:
        unet: of the linear channels, without classes; it predicts what the student does.
        scheduler: of the noise.
        autocast: makes the context in which the student is trained.
    """

    def __init__(
        self, unet: UNet2DModel, scheduler: DDPMScheduler, autocast: Callable[[], AbstractContextManager] = nullcontext
    ):
        self.unet = unet.eval().requires_grad_(False)
        self.autocast = autocast
        self.noisy = scheduler.alphas_cumprod.to(unet.device) < 0.5

    @torch.no_grad()
    def __call__(self, target: torch.Tensor, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Targets (B, C, H, W), noisy latents of that shape and their timesteps (B,) -> other targets, float32."""
        taught = self.noisy[timesteps].nonzero().squeeze(1)
        linear = self.unet.config.in_channels
        target = target.clone()
        if len(taught):
            with self.autocast():
                target[taught, :linear] = self.unet(noisy[taught, :linear], timesteps[taught]).sample.float()
        return target


def check_learnt(ldm: LDMConfig, vae: TokenAutoencoder) -> None:
    """Raise a `UserError` if options for learnt channels are given, and there are none."""
    if linear_channels(vae) is None:
        rule = f"is for an FQ-VAE with learnt channels, which {ldm.vae} has not: leave it out"
        check(ldm.linear_teacher is None, "linear_teacher", ldm.linear_teacher, rule)
        check(ldm.learnt_temperature == 1, "learnt_temperature", ldm.learnt_temperature, rule)


def open_teacher(
    ldm: LDMConfig, scheduler: DDPMScheduler, vae: TokenAutoencoder, accelerator: Accelerator, num_classes: int
) -> LinearTeacher | None:
    """The `LinearTeacher` that the options name, or None.

    Args:
        ldm: the options.
        scheduler: of the noise.
        vae: with its view of the latents measured.
        accelerator: of the training.
        num_classes: of the images; 0 for none.

    Raises:
        UserError: if it was trained for another noise, or there are classes, of which it tells nothing.
        DataError: if there is no such UNet, or one of other latents.
    """
    path = ldm.linear_teacher
    if path is None:
        return None
    unet = open_unet(path, "linear_teacher")
    check_start(path, "linear_teacher", scheduler)
    check(not num_classes and unet.config.num_class_embeds is None, "linear_teacher", path,
          "teaches a UNet without classes, and has none itself")  # fmt: skip
    linear = linear_channels(vae)
    known = open_vae(path, "linear_teacher").diffusion_view
    if unet.config.in_channels != linear or not vae.diffusion_view.resembles(known, linear):
        raise DataError(
            f"linear_teacher: the latents of {path}, {unet.config.in_channels} channels, are not the {linear} linear "
            f"ones of {ldm.vae} on these images"
        )
    return LinearTeacher(unet.to(accelerator.device), scheduler, accelerator.autocast)
