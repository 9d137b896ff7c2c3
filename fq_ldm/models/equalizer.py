"""Painted images with the power of images at every spatial frequency."""

from collections.abc import Callable, Iterable

import torch

from ..quantization.precision import Float32Module
from ..spectrum import ROUNDING

MEASURED_IMAGES = 2048
LARGEST_GAIN = 4.0  # what needs more was hardly painted, and would be noise made louder


class Equalizer(Float32Module):
    """Images -> the same with a gain on each spatial frequency of what sets them apart from their mean image.

    Where latents leave several textures possible, a decoder paints between them, and the mean of several is weaker
    than each; and convolutions that grow images leave a lattice, too much of a few frequencies. Both depend on little
    but the frequency, so they can be measured and evened out. Gains are real: they move nothing. The mean of an image
    stays as it is, and so does the mean of images: faces that lie alike have one of great power, which would hide how
    much they differ.

    Args:
        channels: c, of the images.
        size: (H, W), of the images.
    """

    def __init__(self, channels: int, size: tuple[int, int]):
        super().__init__()
        self.size = tuple(size)
        self.register_buffer("gain", torch.ones(size[0], size[1] // 2 + 1))  # of `torch.fft.rfft2`
        self.register_buffer("offset", torch.zeros(channels, *size))  # the mean image less what the gains make of it

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, c, H, W) -> the same shape and dtype."""
        with torch.autocast(images.device.type, enabled=False):
            return (self._amplified(images.float()) + self.offset).to(images.dtype)

    def _amplified(self, images: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(images) * self.gain, s=self.size)

    @torch.no_grad()
    def measure_(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Set the gains by batches of images and of what was painted, (B, c, H, W) in [-1, 1] both.

        The gain of a frequency is the root of the ratio of its mean powers around the mean image, both with what
        rounding to 8 bits adds, within 1/4 and 4.

        Raises:
            ValueError: if there are no batches, or not as many of both in one.
        """
        powers = torch.zeros(2, *self.gain.shape, dtype=torch.float64)
        means, count = torch.zeros(2, *self.offset.shape, dtype=torch.float64), 0
        for pair in pairs:
            if len(pair[0]) != len(pair[1]):
                raise ValueError(f"{len(pair[1])} painted images beside {len(pair[0])} others: give as many of both")
            count += len(pair[0])
            for power, mean, batch in zip(powers, means, pair, strict=True):
                batch = batch.double()
                power += _power(batch).sum((0, 1)).cpu()
                mean += batch.sum(0).cpu()
        if not count:
            raise ValueError("gains of frequencies are measured by images: there are none")
        means /= count
        around = powers / (count * len(self.offset)) - _power(means).mean(1)
        wanted, painted = around.clamp(min=0) + ROUNDING
        gain = (wanted / painted).sqrt().clamp(1 / LARGEST_GAIN, LARGEST_GAIN)
        gain[0, 0] = 1
        self.gain.copy_(gain)
        mean = means[1].to(self.offset)
        self.offset.copy_(mean - self._amplified(mean))


def _power(images: torch.Tensor) -> torch.Tensor:
    return torch.fft.rfft2(images, norm="ortho").abs().square()


@torch.no_grad()
def equalize_(model, batches: Iterable[torch.Tensor], quantize: bool = True) -> None:
    """Measure the equalizer of a trained model, made with `painter_equalizer`, by training images.

    Args:
        model: a `TokenAutoencoder`; left in evaluation mode.
        batches: images (B, c, H, W) in [-1, 1]; the first 2048 are enough: their 6144 channels give each gain to 1 %.
        quantize: paint from tokens, else from the latents as they are.

    Raises:
        ValueError: if the model has no equalizer, or there are no images.
    """
    _measure_(model, ((batch, batch) for batch in batches), model, quantize)


@torch.no_grad()
def equalize_samples_(
    model, batches: Iterable[torch.Tensor], latents: Iterable[torch.Tensor], quantize: bool = True
) -> None:
    """Measure the equalizer of a trained model by what it paints from sampled latents, beside training images.

    Sampled latents have a little less power than those of images at nearly every frequency, and so has what is painted
    from them by an equalizer that reconstructions have set: that of samples gives it back.

    Args:
        model: a `TokenAutoencoder`; left in evaluation mode.
        batches: images (B, c, H, W) in [-1, 1]; the first 2048 are enough.
        latents: diffusion latents that a pipeline has sampled, as many in each batch, of any images.
        quantize: paint from tokens, else from the latents as they are: as the pipeline does.

    Raises:
        ValueError: if the model has no equalizer, there are no images, or not as many of both in a batch.
    """

    def paint(sampled, **options):
        return model.decode(model.from_diffusion_latents(sampled), **options)

    _measure_(model, zip(batches, latents, strict=False), paint, quantize)


def _measure_(model, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], paint: Callable, quantize: bool) -> None:
    """By batches of images and of what the model paints others from."""
    if model.equalizer is None:
        raise ValueError("this model has no equalizer: make it with painter_equalizer=True")
    model.eval()
    model.equalizer.gain.fill_(1)
    model.equalizer.offset.zero_()
    options = {"force_not_quantize": not quantize, "generator": torch.Generator().manual_seed(0)}  # painters have noise

    def painted():
        seen = 0
        for batch, origin in pairs:
            yield batch, paint(origin.to(model.device), **options).sample.float()
            seen += len(batch)
            if seen >= MEASURED_IMAGES:
                return

    model.equalizer.measure_(painted())
