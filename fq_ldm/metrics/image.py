"""How close a reconstruction is to its image. Images are (B, c, H, W) with values in [0, 1]."""

import torch
import torch.nn.functional as F

SSIM_WINDOW = 11  # pixels
SSIM_SIGMA = 1.5  # pixels
SSIM_K1, SSIM_K2 = 0.01, 0.03


def mse(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image: (B,)."""
    return (images - targets).square().flatten(1).mean(1)


def psnr(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image in dB, for a peak of 1: (B,)."""
    return -10 * torch.log10(mse(images, targets))


def ssim(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image: (B,), at most 1.

    Wang et al. 2004: Gaussian window of 11 x 11 pixels and sigma 1.5, data range 1, population covariance, each
    channel on its own, averaged over the places where the window lies inside the image.

    Raises:
        ValueError: if the images are smaller than the window.
    """
    channels, height, width = images.shape[1:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, not {height}x{width}")
    offset = torch.arange(SSIM_WINDOW, dtype=images.dtype, device=images.device) - SSIM_WINDOW // 2
    window = torch.exp(-offset.square() / (2 * SSIM_SIGMA**2))
    window = window / window.sum()

    def blur(x):
        x = F.conv2d(x, window.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
        return F.conv2d(x, window.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)

    mean_x, mean_y = blur(images), blur(targets)
    var_x = blur(images.square()) - mean_x.square()
    var_y = blur(targets.square()) - mean_y.square()
    covariance = blur(images * targets) - mean_x * mean_y
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).mean(1)
