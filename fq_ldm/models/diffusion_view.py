"""The view of the latents that a diffusion model learns: cropped, folded and standardised."""

import math

import torch
import torch.nn.functional as F

from ..quantization.precision import Float32Module
from ..spectrum import pack_spectrum, spectral_resize, unpack_spectrum

LAYOUTS = ("spatial", "spectral")
LIKENESS = 1e-2  # of two standardisations, in deviations: from other images or of another target they differ by more
COARSE = 7  # the side of an image that holds the waves which cross it up to three times; odd, to hold them whole


class DiffusionView(Float32Module):
    """Latents (B, D, h, w) <-> diffusion latents (B, D*p*p, h'/p, w'/p) of zero mean and of a standard deviation of 1.

    Quantized latents are band-limited to the spectral crop (h', w'), so shrinking them to that size loses
    nothing, keeps all distances, and makes the UNet's work smaller. Folding p x p pixels into channels
    (pixel unshuffle) keeps distances too. Only the last step, a shift and a scale, is not an isometry; it is
    measured on training images.

    Channels that are learnt, the last of the latents, may be given a smaller deviation. Linear ones come out of the
    noise of a diffusion from coarse to fine, since their coarse waves have a hundred times the power of their fine
    ones. Learnt ones are about as strong in all waves; of a deviation of 1 they would be settled before the waves that
    they depend on.

    Args:
        latent_shape: (D, h, w).
        spectral_crop: (h', w').
        patch_size: p.
        layout: "spatial", an image with a mean and a deviation for each channel, or "spectral", the packed Fourier
            coefficients (`pack_spectrum`), each with a mean and a deviation of its own.
        linear_channels: how many of the D are not learnt, the first; None for all. As an attribute, of the folded ones.
        learnt_scale: the deviation of the others.

    Raises:
        ValueError: if p divides h' or w' not, or there is no such layout.
    """

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        spectral_crop: tuple[int, int],
        patch_size: int,
        layout: str = "spatial",
        linear_channels: int | None = None,
        learnt_scale: float = 1.0,
    ):
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(f"diffusion_layout must be one of {', '.join(LAYOUTS)}, not {layout}")
        if spectral_crop[0] % patch_size or spectral_crop[1] % patch_size:
            raise ValueError(
                f"diffusion_patch_size {patch_size} must divide both sides of the spectral crop {tuple(spectral_crop)}"
            )
        self.latent_size = tuple(latent_shape[1:])
        self.spectral_crop = tuple(spectral_crop)
        self.patch_size = patch_size
        self.layout = layout
        self.linear_channels = (latent_shape[0] if linear_channels is None else linear_channels) * patch_size**2
        self.learnt_scale = learnt_scale
        channels = latent_shape[0] * patch_size**2
        self.shape = (channels, spectral_crop[0] // patch_size, spectral_crop[1] // patch_size)
        statistics = self.shape if layout == "spectral" else (channels, 1, 1)
        self.register_buffer("mean", torch.zeros(statistics))
        self.register_buffer("std", torch.ones(statistics))

    @property
    def has_learnt_channels(self) -> bool:
        """Whether channels beside the linear ones are there."""
        return self.linear_channels < self.shape[0]

    @property
    def learnt_deviation(self) -> torch.Tensor:
        """Of the learnt channels of the latents, as it was measured: (K,)."""
        ratio = math.sqrt(math.prod(self.spectral_crop) / math.prod(self.latent_size))  # amplitudes follow the norm
        std = self.std[self.linear_channels :] * self.learnt_scale * ratio
        return std.reshape(std.shape[0] // self.patch_size**2, -1).square().mean(1).sqrt()

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, D, h, w) -> diffusion latents (B, C, H, W), float32."""
        return (self._fold(latents) - self.mean) / self.std

    def inverse(self, diffusion_latents: torch.Tensor) -> torch.Tensor:
        """Diffusion latents (B, C, H, W) -> band-limited latents (B, D, h, w), float32."""
        with torch.autocast(diffusion_latents.device.type, enabled=False):
            return spectral_resize(self._unfold(diffusion_latents.float() * self.std + self.mean), self.latent_size)

    def temper(self, noise: torch.Tensor, temperature: float, learnt_temperature: float = 1.0) -> torch.Tensor:
        """Starting noise (B, C, H, W) -> the same with its coarsest waves times `temperature`: (B, C, H, W), float32.

        These are the waves that cross the image up to three times, along each side. What a UNet without noise in its
        steps makes of them is the build of an image, which is oftener wrong the rarer it is; finer waves keep all their
        noise, or else images would become smooth. Of learnt channels all waves are multiplied, by `learnt_temperature`
        too: they say which details fit what the others show.
        """
        with torch.autocast(noise.device.type, enabled=False):
            waves = self._unfold(self._scaled(noise.float(), learnt_temperature))
            sides = tuple(min(side, COARSE) for side in self.spectral_crop)
            coarse = spectral_resize(spectral_resize(waves, sides), self.spectral_crop)
            return self._fold(waves + (temperature - 1) * coarse)

    def inverse_of_change(self, change: torch.Tensor, unit: torch.Tensor | None = None) -> torch.Tensor:
        """What a change (B, C, H, W) of the diffusion latents changes in the latents: (B, D, h, w), float32.

        Args:
            change: in deviations of each channel, learnt or not.
            unit: these, as `deviation` gives them; by default the measured ones.
        """
        with torch.autocast(change.device.type, enabled=False):
            scaled = change.float() * (self._scaled(self.std, self.learnt_scale) if unit is None else unit)
            return spectral_resize(self._unfold(scaled), self.latent_size)

    def deviation(self, latents: torch.Tensor) -> torch.Tensor:
        """Of these latents (n, D, h, w), in the shape of the measured ones; 1 for what never varies.

        Gradients know it: or else latents that learn beside noise of their deviation would grow to outgrow it.
        """
        std = self._fold(latents).std(self._dimensions)
        return torch.where(std > 1e-5, std, 1).view_as(self.std)

    @property
    def _dimensions(self):
        return 0 if self.layout == "spectral" else (0, 2, 3)

    @torch.no_grad()
    def measure_(self, latents: torch.Tensor) -> None:
        """Standardise by these latents (n, D, h, w); what never varies is not scaled."""
        self.mean.copy_(self._fold(latents).mean(self._dimensions).view_as(self.mean))
        self.std.copy_(self._scaled(self.deviation(latents), 1 / self.learnt_scale))

    @torch.no_grad()
    def scale_learnt_(self, factors: torch.Tensor) -> None:
        """Follow learnt channels that are multiplied by factors (K,): their diffusion latents stay as they are."""
        each = factors.repeat_interleave(self.patch_size**2).view(-1, 1, 1)
        for statistic in (self.mean, self.std):
            statistic.copy_(self._scaled(statistic, each))

    def resembles(self, other: "DiffusionView", channels: int | None = None) -> bool:
        """Whether the latents of two image sizes look alike in both views: the first of their channels, or all."""
        if (self.layout, self.patch_size, self.shape[1:]) != (other.layout, other.patch_size, other.shape[1:]):
            return False
        if channels is None and self.shape != other.shape:
            return False
        ratio = math.sqrt(math.prod(self.latent_size) / math.prod(other.latent_size))  # amplitudes follow the norm
        means, stds = ((ours[:channels].cpu() / ratio, theirs[:channels].cpu())
                       for ours, theirs in ((self.mean, other.mean), (self.std, other.std)))  # fmt: skip
        shift, scale = (means[0] - means[1]) / stds[1], stds[0] / stds[1] - 1
        return bool((shift.abs() < LIKENESS).all() and (scale.abs() < LIKENESS).all())

    def _scaled(self, values: torch.Tensor, factor: float | torch.Tensor) -> torch.Tensor:
        """Values (..., C, H, W), or (..., C, 1, 1), those of learnt channels times a factor, or one for each."""
        linear, learnt = values.tensor_split([self.linear_channels], dim=-3)
        return torch.cat([linear, learnt * factor], dim=-3)

    def _unfold(self, folded: torch.Tensor) -> torch.Tensor:
        unfolded = F.pixel_shuffle(folded, self.patch_size)
        return unpack_spectrum(unfolded) if self.layout == "spectral" else unfolded

    def _fold(self, latents: torch.Tensor) -> torch.Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            cropped = spectral_resize(latents.float(), self.spectral_crop)
            if self.layout == "spectral":
                cropped = pack_spectrum(cropped)
            return F.pixel_unshuffle(cropped, self.patch_size)
