"""Spectra and nearest neighbours of samples, against closed forms."""

import math

import pytest
import torch

from fq_ldm.metrics.samples import PowerSpectrum, SpectrumOfPairs, nearest_images, spectral_distance, spectral_gain


def radial(images):
    spectrum = PowerSpectrum()
    for part in images.split(3):
        spectrum(part)
    return spectrum.radial()


def test_a_wave_has_its_power_at_its_frequency():
    x = torch.arange(16) / 16
    wave = torch.cos(2 * math.pi * 3 * x).expand(1, 1, 16, 16)
    power = radial(0.5 + 0.25 * wave)
    assert power.argmax() == 3 - 1 and len(power) == 8
    # Parseval: the sum of squares of the wave is that of its two coefficients; 16 frequencies have radius 3.
    rings = torch.hypot(*torch.meshgrid(*[torch.fft.fftfreq(16) * 16] * 2, indexing="ij")).round()
    expected = (0.25 * wave).square().sum().item() / (rings == 3).sum().item()
    assert power[2].item() == pytest.approx(expected, rel=1e-5)
    assert power[[0, 1, 3, 4, 5, 6, 7]].max() < 1e-9


def test_white_noise_has_a_flat_spectrum_of_its_variance():
    noise = torch.randn(200, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    power = radial(noise)
    assert len(power) == 6
    torch.testing.assert_close(power, torch.ones(6, dtype=torch.float64), rtol=0.05, atol=0)


def test_pairs_are_compared_frequency_by_frequency():
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = images // 2 * 2
    pairs = SpectrumOfPairs()
    for part in images.split(4):
        pairs.add(part, part // 2)
    torch.testing.assert_close(pairs.compute(), torch.full((8,), 20 * math.log10(0.5), dtype=torch.float64))


def test_spectral_distance_is_in_decibels():
    power = torch.tensor([1.0, 2.0, 5.0])
    assert spectral_distance(spectral_gain(power, power)) == 0
    assert spectral_distance(spectral_gain(power, 10 * power)) == pytest.approx(10)


def test_nearest_images_finds_copies_and_mirrored_copies():
    images = torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    queries = torch.stack([images[40], images[7].flip(-1), images[13] + 0.1])
    distances, positions = nearest_images(queries, images.split(16))
    assert positions.tolist() == [40, 7, 13]
    torch.testing.assert_close(distances, torch.tensor([0.0, 0.0, 0.1]), atol=1e-3, rtol=0)
    distances, positions = nearest_images(queries, images.split(16), mirrored=False)
    assert positions[0] == 40 and distances[1] > 0.1
