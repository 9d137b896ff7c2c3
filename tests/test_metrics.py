import numpy as np
import pytest
import torch
from conftest import smooth_images
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fq_ldm.metrics import CodebookUsage, evaluate_reconstruction, mse, pixel_variance, psnr, ssim


@pytest.fixture
def pair():
    images = (smooth_images(3, 3, 20, 28).double() + 1) / 2
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return images, (images + 0.1 * noise).clamp(0, 1)


def test_ssim_against_scikit_image(pair):
    for value, a, b in zip(ssim(*pair), *pair, strict=True):
        expected = structural_similarity(
            a.numpy(), b.numpy(), channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )  # fmt: skip
        assert value.item() == pytest.approx(expected, abs=1e-6)


def test_psnr_against_scikit_image(pair):
    for value, a, b in zip(psnr(*pair), *pair, strict=True):
        assert value.item() == pytest.approx(peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1))


def test_closed_forms():
    black, grey = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 0.1)
    assert mse(black, grey).item() == pytest.approx(0.01)
    assert psnr(black, grey).item() == pytest.approx(20)
    assert ssim(black, black).item() == pytest.approx(1)
    assert ssim(black, grey).item() == pytest.approx(1e-4 / (0.01 + 1e-4), rel=1e-4)


def test_ssim_names_the_size_it_needs():
    with pytest.raises(ValueError, match="at least 11x11 pixels, not 8x12"):
        ssim(torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 8, 12))


def test_usage_over_a_split():
    usage = CodebookUsage(4)
    usage.add(torch.tensor([[0, 1], [1, 0]]))
    usage.add(torch.tensor([[3, 3]]))
    assert usage.codes_used() == 3
    assert usage.perplexity() == pytest.approx(3)


def test_variance_over_batches():
    images = smooth_images(10, 3, 8, 8) + 0.5
    assert pixel_variance(images.split(3)) == pytest.approx(np.var(images.numpy()), rel=1e-5)


def test_evaluation_does_not_depend_on_the_batches():
    from conftest import TINY

    from fq_ldm import FQModel

    model = FQModel(**{**TINY, "sample_size": 16})
    images = smooth_images(20, 3, 16, 16)
    model.initialize_(images)
    whole = evaluate_reconstruction(model, [images], train_variance=0.2)
    parts = evaluate_reconstruction(model, images.split(7), train_variance=0.2)
    assert whole == pytest.approx(parts, rel=1e-5)
    assert whole["images"] == 20
    assert whole["nmse"] == pytest.approx(4 * whole["mse"] / 0.2)
    assert whole["bits_per_image"] == 80
