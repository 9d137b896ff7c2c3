"""Painted images with the power of images at every spatial frequency."""

from collections.abc import Iterable

import torch

from ..quantization.precision import Float32Module
from ..spectrum import ROUNDING

MEASURED_IMAGES = 2048
LARGEST_GAIN = 4.0  # what needs more was hardly painted, and would be noise made louder


class Equalizer(Float32Module):
    """Images -> the same with a gain on each spatial frequency.

    Where latents leave several textures possible, a decoder paints between them, and the mean of several is weaker
    than each; and convolutions that grow images leave a lattice, too much of a few frequencies. Both depend on little
    but the frequency, so they can be measured and evened out. Gains are real: they move nothing. The mean of an image
    stays as it is.

    Args:
        size: (H, W), of the images.
    """

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = tuple(size)
        self.register_buffer("gain", torch.ones(size[0], size[1] // 2 + 1))  # of `torch.fft.rfft2`

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, c, H, W) -> the same shape and dtype."""
        with torch.autocast(images.device.type, enabled=False):
            return torch.fft.irfft2(torch.fft.rfft2(images.float()) * self.gain, s=self.size).to(images.dtype)

    @torch.no_grad()
    def measure_(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Set the gains by batches of images and what was painted of them, (B, c, H, W) in [-1, 1] both.

        The gain of a frequency is the root of the ratio of its mean powers, both with what rounding to 8 bits adds,
        within 1/4 and 4.

        Raises:
            ValueError: if there are no batches.
        """
        sums, count = torch.zeros(2, *self.gain.shape, dtype=torch.float64), 0
        for images, painted in pairs:
            count += images.shape[0] * images.shape[1]
            for total, batch in zip(sums, (images, painted), strict=True):
                total += torch.fft.rfft2(batch.double(), norm="ortho").abs().square().sum((0, 1)).cpu()
        if not count:
            raise ValueError("gains of frequencies are measured by images: there are none")
        wanted, painted_power = sums / count + ROUNDING
        gain = (wanted / painted_power).sqrt().clamp(1 / LARGEST_GAIN, LARGEST_GAIN)
        gain[0, 0] = 1
        self.gain.copy_(gain)


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
    if model.equalizer is None:
        raise ValueError("this model has no equalizer: make it with painter_equalizer=True")
    model.eval()
    model.equalizer.gain.fill_(1)
    generator = torch.Generator().manual_seed(0)  # of the painter's noise

    def pairs():
        seen = 0
        for batch in batches:
            batch = batch.to(model.device)
            yield batch, model(batch, force_not_quantize=not quantize, generator=generator).sample.float()
            seen += len(batch)
            if seen >= MEASURED_IMAGES:
                return

    model.equalizer.measure_(pairs())
