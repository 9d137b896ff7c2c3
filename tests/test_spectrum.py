import math

import pytest
import torch

from fq_ldm.spectrum import (
    hermitian,
    pack_spectrum,
    packed_frequencies,
    resample,
    spectral_crop_index,
    spectral_resize,
    unpack_spectrum,
)

SIZES = [(1, 1), (2, 2), (1, 8), (8, 1), (4, 4), (3, 5), (5, 4), (4, 7), (28, 28), (16, 12)]


def random_latents(h, w, seed=0):
    return torch.randn(2, 3, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("h, w", SIZES)
def test_packing_is_an_invertible_isometry(h, w):
    z = random_latents(h, w)
    packed = pack_spectrum(z)
    assert packed.shape == z.shape
    torch.testing.assert_close(packed.square().sum((-1, -2)), z.square().sum((-1, -2)))
    torch.testing.assert_close(unpack_spectrum(packed), z)


@pytest.mark.parametrize("h, w", [(4, 4), (3, 5), (5, 4), (4, 7)])
def test_unpacking_is_the_transpose_of_packing(h, w):
    z, s = random_latents(h, w, 0), random_latents(h, w, 1)
    torch.testing.assert_close((pack_spectrum(z) * s).sum(), (z * unpack_spectrum(s)).sum())


@pytest.mark.parametrize("h, w", [(4, 4), (3, 5), (5, 4), (4, 7)])
def test_packed_entries_are_equation_2(h, w):
    """Each entry against the double sum of equation 2, written out."""
    z = random_latents(h, w)
    packed = pack_spectrum(z).flatten(-2)
    rows = torch.arange(h, dtype=torch.float64).view(-1, 1)
    columns = torch.arange(w, dtype=torch.float64)
    for i, (row, column, part) in enumerate(packed_frequencies(h, w).tolist()):
        phase = 2 * math.pi * (rows * row / h + columns * column / w)
        wave = -phase.sin() if part else phase.cos()
        coefficient = (z * wave).sum((-1, -2)) / math.sqrt(h * w)
        own_conjugate = (2 * row) % h == 0 and (2 * column) % w == 0
        torch.testing.assert_close(packed[..., i], coefficient * (1 if own_conjugate else math.sqrt(2)))


@pytest.mark.parametrize("h, w", SIZES)
def test_frequencies_are_distinct(h, w):
    assert len(packed_frequencies(h, w).unique(dim=0)) == h * w


@pytest.mark.parametrize("size, crop", [((28, 28), (16, 16)), ((9, 12), (5, 12)), ((8, 8), (7, 4)), ((6, 5), (6, 5))])
def test_shrinking_undoes_enlarging_and_enlarging_keeps_the_norm(size, crop):
    small = random_latents(*crop)
    large = spectral_resize(small, size)
    assert large.shape[-2:] == size
    torch.testing.assert_close(large.norm(), small.norm())
    torch.testing.assert_close(spectral_resize(large, crop), small)


def test_a_low_frequency_survives_a_crop():
    """A slow cosine is resampled exactly; its amplitude follows the norm: sqrt(16 * 16 / (8 * 8)) = 2."""
    x = torch.arange(16, dtype=torch.float64)
    wave = torch.cos(2 * math.pi * 2 * x / 16).expand(16, 16)
    expected = 2 * torch.cos(2 * math.pi * 2 * x[:8] / 8).expand(8, 8)
    torch.testing.assert_close(spectral_resize(wave, (8, 8)), expected)


def test_a_crop_larger_than_the_spectrum_is_refused():
    with pytest.raises(ValueError, match=r"spectral crop \(9, 4\).*latent size \(8, 8\)"):
        spectral_crop_index((8, 8), (9, 4))


@pytest.mark.parametrize("size", [(8, 8), (8, 7), (7, 8), (5, 5)])
def test_the_hermitian_part_of_a_half_spectrum(size):
    """The CPU's `irfft2` takes the real part of the edge columns' transform: that of their Hermitian part."""
    h, w = size
    half = torch.view_as_complex(torch.randn(2, h, w // 2 + 1, 2, generator=torch.Generator().manual_seed(0)))
    symmetric = hermitian(half, w)
    torch.testing.assert_close(torch.fft.irfft2(symmetric, s=size), torch.fft.irfft2(half, s=size))
    for column in (0, w // 2) if w % 2 == 0 else (0,):
        rows = symmetric[..., column]
        assert torch.equal(rows, rows.flip(-1).roll(1, -1).conj())
    image = torch.randn(2, h, w, generator=torch.Generator().manual_seed(1))
    real = torch.fft.rfft2(image)
    torch.testing.assert_close(hermitian(real, w), real)


def test_what_was_first_used_for_inference_can_be_trained():
    spectral_crop_index.cache_clear()
    latents = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        spectral_resize(latents, (4, 4))
    latents.requires_grad_()
    resized = spectral_resize(latents, (4, 4))
    resized.square().sum().backward()
    # The resampled latents are a projection of the latents: their squared norm has twice the projection as gradient.
    torch.testing.assert_close(latents.grad, 2 * spectral_resize(resized.detach(), (8, 8)))


def test_a_resampled_image_keeps_its_values():
    gray = torch.full((1, 3, 8, 6), 0.7)
    for size in ((4, 3), (16, 12), (8, 6)):
        torch.testing.assert_close(resample(gray, size), gray.new_full((1, 3, *size), 0.7))
    image = random_latents(8, 8).float()
    torch.testing.assert_close(resample(resample(image, (16, 16)), (8, 8)), image)
