from .codebook import CodebookUsage
from .image import mse, psnr, ssim
from .reconstruction import evaluate_reconstruction, pixel_variance

__all__ = ["CodebookUsage", "evaluate_reconstruction", "mse", "pixel_variance", "psnr", "ssim"]
