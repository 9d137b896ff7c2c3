"""Predictions of a UNet that are led away from what it predicts knowing less: no class, or no attention."""

import math
from contextlib import contextmanager, nullcontext

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import (
    Attention,
    PAGCFGIdentitySelfAttnProcessor2_0,
    PAGIdentitySelfAttnProcessor2_0,
)

Interval = tuple[float, float]  # shares of the noise, 0 without noise and 1 all noise
NOISE_POWER = 1.25  # of the noise's ratio to the latents, in `Guidance.attention_change`
PAG_INTERVAL: Interval = (0.2, 0.8)  # of perturbed-attention guidance, as it was measured: results/diffusion_celeba64


class Guidance:
    """What a UNet predicts, guided by classes (Ho & Salimans 2022) and by attention (Ahn et al. 2024).

    Perturbed-attention guidance compares a prediction with one for which every place attends to itself alone, so that
    parts of an image need not fit one another, and goes on in the direction from the second to the first. Images become
    sounder and more alike. Attention changes less in images that break than in others: a threshold leaves those above
    as they are. All layers of attention are perturbed; scales are not those of diffusers' pipelines, which perturb few.

    Args:
        unet: predicts noise, velocities or samples.
        alphas_cumprod: of its noise schedule (T,).
        guidance_scale: of classes: 1 for none.
        guidance_interval: guide by classes only there.
        pag_scale: of attention: 0 for none.
        pag_interval: guide by attention only there.
        pag_threshold: guide by attention only images whose `attention_change` is below.
        pag_channels: which channels that is measured in.

    Attributes:
        attention_change: mean square (B,) of what attention changes of each image's prediction, in its first step that
            is guided by attention, times the noise's ratio to the latents to the power of 1.25, which keeps its
            median nearly the same from timestep 854 to 436 of checkpoints/celeba64, a UNet of velocities
            (results/diffusion_celeba64, "Guided by attention"): find a threshold with the scheduler and steps that it
            is for. None before.

    Raises:
        ValueError: for intervals that are none, scales and thresholds below 0, or a scale for a UNet without attention.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        alphas_cumprod: torch.Tensor,
        guidance_scale: float = 1.0,
        guidance_interval: Interval = (0.0, 1.0),
        pag_scale: float = 0.0,
        pag_interval: Interval = PAG_INTERVAL,
        pag_threshold: float = math.inf,
        pag_channels: slice = slice(None),
    ):
        for name, interval in (("guidance_interval", guidance_interval), ("pag_interval", pag_interval)):
            if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
                raise ValueError(f"{name} must be two shares of the noise in 0 .. 1, in order, not {interval}")
        check_attention_guidance(pag_scale, pag_threshold, unet)
        self.unet, self.alphas_cumprod = unet, alphas_cumprod
        self.guidance_scale, self.guidance_interval = guidance_scale, guidance_interval
        self.pag_scale, self.pag_interval = pag_scale, pag_interval
        self.pag_threshold, self.pag_channels = pag_threshold, pag_channels
        self.attention_change: torch.Tensor | None = None
        self._groups: list[tuple[torch.Tensor, bool]] = []  # numbers of images, and whether attention guides these

    def __call__(self, latents: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Noisy latents (B, C, H, W) at a timestep, of classes (B,) -> the guided prediction (B, C, H, W)."""
        share = float(t) / len(self.alphas_cumprod)
        by_class = labels is not None and self.guidance_scale != 1 and _within(share, self.guidance_interval)
        if self.pag_scale == 0 or not _within(share, self.pag_interval):
            return self._predict(latents, t, labels, by_class, False)[0]
        if self.attention_change is None:
            prediction, change = self._predict(latents, t, labels, by_class, True)
            alpha = float(self.alphas_cumprod[int(t)])
            mean_square = change[:, self.pag_channels].float().square().mean((1, 2, 3))
            self.attention_change = mean_square * ((1 - alpha) / alpha) ** (NOISE_POWER / 2)
            chosen = self.attention_change < self.pag_threshold
            groups = ((chosen.nonzero()[:, 0], True), ((~chosen).nonzero()[:, 0], False))
            self._groups = [(images, guided) for images, guided in groups if len(images)]
            return prediction + self.pag_scale * change * chosen.view(-1, 1, 1, 1)
        parts = []
        for images, guided in self._groups:
            theirs = None if labels is None else labels[images]
            prediction, change = self._predict(latents[images], t, theirs, by_class, guided)
            parts.append(prediction + self.pag_scale * change if guided else prediction)
        order = torch.cat([images for images, _ in self._groups])
        return torch.cat(parts)[order.argsort()]

    def _predict(
        self, latents: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, by_class: bool, by_attention: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A prediction, guided by classes where it is to be, and what attention changes of it.

        The UNet sees as many copies of the latents as there are predictions to compare, in one batch.
        """
        copies = 1 + by_class + by_attention
        if labels is not None:
            none = [torch.full_like(labels, self.unet.config.num_class_embeds - 1)] * by_class
            labels = torch.cat(none + [labels] * (copies - by_class))
        with self._last_copy_without_attention(by_class) if by_attention else nullcontext():
            predictions = self.unet(torch.cat([latents] * copies), t, class_labels=labels).sample.chunk(copies)
        plain = prediction = predictions[int(by_class)]
        if by_class:
            prediction = predictions[0] + self.guidance_scale * (plain - predictions[0])
        return prediction, plain - predictions[-1] if by_attention else None

    @contextmanager
    def _last_copy_without_attention(self, by_class: bool):
        """diffusers' processors know batches of two copies and, guided by classes, of three."""
        attention = _attention(self.unet)
        processors = [module.processor for module in attention]
        identity = PAGCFGIdentitySelfAttnProcessor2_0() if by_class else PAGIdentitySelfAttnProcessor2_0()
        try:
            for module in attention:
                module.set_processor(identity)
            yield
        finally:
            for module, processor in zip(attention, processors, strict=True):
                module.set_processor(processor)


def check_attention_guidance(scale: float, threshold: float, unet: UNet2DModel) -> None:
    """Raise a `ValueError` for a scale that leads astray or where there is nothing to perturb, or no threshold."""
    if not 0 <= scale < math.inf:
        raise ValueError(f"pag_scale must be at least 0, which is for none, not {scale}")
    if not threshold > 0:
        raise ValueError(f"pag_threshold must be above 0, and infinite to guide all images, not {threshold}")
    if scale > 0 and not has_attention(unet):
        raise ValueError("pag_scale is for a UNet with attention, and this one has none: give pag_scale=0")


def has_attention(unet: UNet2DModel) -> bool:
    """Whether there is something for `pag_scale` to perturb."""
    return bool(_attention(unet))


def _attention(unet: UNet2DModel) -> list[Attention]:
    return [module for module in unet.modules() if isinstance(module, Attention)]


def _within(share: float, interval: Interval) -> bool:
    return interval[0] <= share <= interval[1]
