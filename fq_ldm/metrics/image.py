"""How close a reconstruction is to its image. Images are (B, c, H, W) with values in [0, 1]."""

import torch
import torch.nn.functional as F

SSIM_WINDOW = 11  # pixels
SSIM_SIGMA = 1.5  # pixels, of the Gaussian window
SSIM_K1, SSIM_K2 = 0.01, 0.03


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1], clamped to it -> uint8 of the same shape, as an image file holds them."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def mse(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image: (B,)."""
    return (images - targets).square().flatten(1).mean(1)


def psnr(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image in dB, for a peak of 1: (B,), infinite for equal images."""
    return -10 * torch.log10(mse(images, targets))


# Not torchmetrics': it averages over borders that it mirrors and, under the uniform window, takes the covariance of the
# population: both values differ from the published definitions by 0.002. scikit-image has ours, on the CPU alone.
def ssim(images: torch.Tensor, targets: torch.Tensor, window: str = "uniform") -> torch.Tensor:
    """Structural similarity (Wang et al. 2004) of each image: (B,), at most 1.

    Windows of 11 x 11 pixels, data range 1, K1 = 0.01 and K2 = 0.03, each channel on its own, averaged over the places
    where the window lies inside the image.

    Args:
        images: (B, c, H, W) in [0, 1].
        targets: the same.
        window: "uniform" weighs all 121 pixels alike and takes their sample covariance, as the evaluation of CVQ-VAE
            (Zheng & Vedaldi 2023) does; "gaussian" has a sigma of 1.5 pixels and the population covariance, as Wang
            et al. have it.

    Raises:
        ValueError: if the images are smaller than the window, or there is no such window.
    """
    channels, height, width = images.shape[1:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, not {height}x{width}")
    dtype, images, targets = images.dtype, images.double(), targets.double()  # variances are differences of large sums
    offset = torch.arange(SSIM_WINDOW, dtype=images.dtype, device=images.device) - SSIM_WINDOW // 2
    if window == "uniform":
        weights = torch.ones_like(offset)
        correction = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    elif window == "gaussian":
        weights = torch.exp(-offset.square() / (2 * SSIM_SIGMA**2))
        correction = 1.0
    else:
        raise ValueError(f'window must be "uniform" or "gaussian", not {window!r}')
    weights = weights / weights.sum()

    def blur(x):
        x = F.conv2d(x, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
        return F.conv2d(x, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)

    mean_x, mean_y = blur(images), blur(targets)
    var_x = correction * (blur(images.square()) - mean_x.square())
    var_y = correction * (blur(targets.square()) - mean_y.square())
    covariance = correction * (blur(images * targets) - mean_x * mean_y)
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).mean(1).to(dtype)
