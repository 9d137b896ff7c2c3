"""Predictions of a UNet that are led away from what it predicts knowing less: no class, or no attention."""

import math
from contextlib import contextmanager, nullcontext

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention

Interval = tuple[float, float]  # shares of the noise, 0 without noise and 1 all noise
NOISE_POWER = 1.25  # of the noise's ratio to the latents, in `Guidance.attention_change`
PAG_INTERVAL: Interval = (0.2, 0.8)  # of perturbed-attention guidance: results/diffusion_celeba64/sampling.md


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
            (results/diffusion_celeba64/sampling.md): find a threshold with the scheduler and steps that it
            is for. None before.

    Raises:
        ValueError: for intervals that are none; scales and thresholds are for `check_attention_guidance`.
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
        self.unet, self.alphas_cumprod = unet, alphas_cumprod
        self.guidance_scale, self.guidance_interval = guidance_scale, guidance_interval
        self.pag_scale, self.pag_interval = pag_scale, pag_interval
        self.pag_threshold, self.pag_channels = pag_threshold, pag_channels
        self.attention_change: torch.Tensor | None = None
        self._attention = _attention(unet)
        self._guided: torch.Tensor | None = None  # numbers of the images that attention guides, once they are known

    def __call__(self, latents: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Noisy latents (B, C, H, W) at a timestep, of classes (B,) -> the guided prediction (B, C, H, W)."""
        share = float(t) / len(self.alphas_cumprod)
        by_class = labels is not None and self.guidance_scale != 1 and _within(share, self.guidance_interval)
        every = torch.arange(len(latents), device=latents.device)
        if self.pag_scale == 0 or not _within(share, self.pag_interval):
            return self._predict(latents, t, labels, by_class, every[:0])[0]
        first = self._guided is None
        prediction, change = self._predict(latents, t, labels, by_class, every if first else self._guided)
        if first:
            alpha = float(self.alphas_cumprod[int(t)])
            mean_square = change[:, self.pag_channels].float().square().mean((1, 2, 3))
            self.attention_change = mean_square * ((1 - alpha) / alpha) ** (NOISE_POWER / 2)
            self._guided = every[self.attention_change < self.pag_threshold]
            change = change[self._guided]
        return prediction.index_add(0, self._guided, change, alpha=self.pag_scale)

    def _predict(
        self,
        latents: torch.Tensor,
        t: torch.Tensor,
        labels: torch.Tensor | None,
        by_class: bool,
        compared: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A prediction, guided by classes where it is to be, and what attention changes of the images compared.

        The UNet sees in one batch all images, where classes guide all of them of no class, and those compared.
        """
        count, classless = len(latents), len(latents) * by_class
        images = torch.cat([torch.arange(count, device=latents.device)] * (1 + by_class) + [compared])
        if labels is not None:
            labels = labels[images]
            labels[count : count + classless] = self.unet.config.num_class_embeds - 1
        with self._attention_of_first(count + classless) if len(compared) else nullcontext():
            predictions = self.unet(latents[images], t, class_labels=labels).sample
        plain, without_class, without_attention = predictions.split([count, classless, len(compared)])
        prediction = without_class + self.guidance_scale * (plain - without_class) if by_class else plain
        return prediction, plain[compared] - without_attention

    @contextmanager
    def _attention_of_first(self, count: int):
        """The first images of a batch attend as they do, and in the others every place attends to itself alone."""
        processors = [module.processor for module in self._attention]
        try:
            for module, processor in zip(self._attention, processors, strict=True):
                module.set_processor(_AttentionOfFirst(processor, count))
            yield
        finally:
            for module, processor in zip(self._attention, processors, strict=True):
                module.set_processor(processor)


class _AttentionOfFirst:
    """A processor of diffusers' for the first images of a batch; the others see no place but their own."""

    def __init__(self, processor, count: int):
        self.processor, self.count = processor, count

    def __call__(
        self, module: Attention, seen: torch.Tensor, encoder_hidden_states=None, attention_mask=None, temb=None
    ) -> torch.Tensor:
        """The last three are what diffusers' attention hands on: of no use to that of a `UNet2DModel`."""
        attended, alone = self.processor(module, seen[: self.count]), seen[self.count :]
        places = alone.flatten(2) if module.group_norm is None else module.group_norm(alone.flatten(2))
        values = module.to_v(places.transpose(1, 2))
        alone = alone + module.to_out[0](values).transpose(1, 2).reshape(alone.shape)
        return torch.cat([attended, alone / module.rescale_output_factor])


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
