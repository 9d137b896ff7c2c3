"""Samples against data without a trained network: their spectra, and their nearest training images."""

from collections.abc import Callable, Iterable

import torch

from ..spectrum import sum_over_rings


class PowerSpectrum:
    """Mean power of images at each spatial frequency.

    Call it with batches (B, c, H, W) of values in [0, 1]. The mean of each channel of each image is taken out, the
    DFT is orthonormal, and powers are averaged over images, channels and the frequencies of one ring.
    """

    def __init__(self):
        self._sums: list[tuple[int, torch.Tensor]] = []  # of each batch

    def __call__(self, images: torch.Tensor) -> None:
        images = images.double()
        power = torch.fft.fft2(images - images.mean((-2, -1), keepdim=True), norm="ortho").abs().square()
        self._sums.append((len(images), power.mean(1).sum(0).cpu()))

    def radial(self, merge: Callable[[list], list] = list) -> torch.Tensor:
        """Power at 1 .. min(H, W) / 2 cycles per image side, to the nearest integer: float64 (min(H, W) // 2,).

        Args:
            merge: where several processes have batches of their own, makes one list of all of a list of each.
        """
        sums = merge(self._sums)
        power = sum((total for _, total in sums), start=torch.zeros(())) / sum(count for count, _ in sums)
        rings = sum_over_rings(power) / sum_over_rings(torch.ones_like(power))
        return rings[1 : min(power.shape) // 2 + 1]


class SpectrumOfPairs:
    """How the power spectrum of reconstructions differs from that of their images, in dB."""

    def __init__(self):
        self._images, self._reconstructions = PowerSpectrum(), PowerSpectrum()

    def add(self, images: torch.Tensor, reconstructions: torch.Tensor) -> None:
        """Take batches (B, c, H, W) uint8."""
        self._images(images / 255)
        self._reconstructions(reconstructions / 255)

    def compute(self, merge: Callable[[list], list] = list) -> torch.Tensor:
        """At 1 .. min(H, W) / 2 cycles per image side, below 0 where reconstructions are weaker: float64."""
        return spectral_gain(self._reconstructions.radial(merge), self._images.radial(merge))


def spectral_gain(power: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The difference of two radial power spectra (n,) in dB, below 0 where the first is weaker."""
    return 10 * torch.log10(power / reference)


def spectral_distance(gain: torch.Tensor) -> float:
    """Root mean square of a `spectral_gain` (n,), in dB; 0 for equal spectra."""
    return gain.square().mean().sqrt().item()


@torch.no_grad()
def nearest_images(
    queries: torch.Tensor, batches: Iterable[torch.Tensor], mirrored: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest image of a set to each query, by the root mean square difference of their pixels.

    Args:
        queries: (n, c, H, W).
        batches: the set, in batches (B, c, H, W) of the same range.
        mirrored: look at the mirror images of the set too; training with `random_flip` has seen them.

    Returns:
        distances (n,) float32 and positions in the set (n,) int64.
    """
    flat = queries.float().flatten(1)
    best = torch.full((len(flat),), torch.inf)
    position = torch.zeros(len(flat), dtype=torch.long)
    start = 0
    for batch in batches:
        distances = torch.cdist(flat, batch.float().flatten(1))
        if mirrored:
            distances = torch.minimum(distances, torch.cdist(flat, batch.float().flip(-1).flatten(1)))
        nearest = distances.min(1)
        closer = nearest.values < best
        best = torch.where(closer, nearest.values, best)
        position = torch.where(closer, nearest.indices + start, position)
        start += len(batch)
    return best / flat.shape[1] ** 0.5, position
