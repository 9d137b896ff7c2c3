"""Grids of images."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.utils import make_grid


def save_grid(images: torch.Tensor, path: Path, columns: int, scale: int = 1) -> np.ndarray:
    """Write images (n, c, H, W) in [0, 1] as one PNG, row by row, each pixel `scale` pixels wide.

    Returns:
        The picture before enlargement, (1, height, width, 3) uint8, as trackers take it.
    """
    grid = make_grid(images.float().cpu().clamp(0, 1), nrow=columns, padding=2, pad_value=1.0)
    pixels = (grid * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)
    return pixels[None]


def display_scale(height: int) -> int:
    """Whole factor that makes small images visible on a screen: 28 -> 3, 64 -> 1."""
    return max(1, 96 // height)
