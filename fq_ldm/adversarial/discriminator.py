"""A discriminator of patches."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

NORMS = ("spectral", "none")


class PatchDiscriminator(nn.Module):
    """Images -> how real each patch looks (PatchGAN, Isola et al. 2017).

    Args:
        in_channels: c.
        block_out_channels: of the convolutions, each of which halves height and width.
        norm: "spectral" keeps the spectral norm of each layer's weights at 1, so that logits cannot grow faster than
            images differ; "none" leaves them free, for R1 to hold.

    Raises:
        ValueError: for another norm.
    """

    def __init__(
        self,
        in_channels: int = 3,
        block_out_channels: tuple[int, ...] = (32, 64, 128, 128),
        norm: str = "spectral",
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, not {norm}")
        widths = [in_channels, *block_out_channels]
        normed = spectral_norm if norm == "spectral" else nn.Identity()
        self.layers = nn.ModuleList(
            normed(nn.Conv2d(before, after, 4, stride=2, padding=1)) for before, after in pairwise(widths)
        )
        self.conv_out = normed(nn.Conv2d(widths[-1], 1, 3, padding=1))
        self.activation = nn.LeakyReLU(0.2)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Images (B, c, H, W) in [-1, 1] -> logits (B, 1, H / 2^n, W / 2^n), and the features of the n layers."""
        features = []
        for layer in self.layers:
            images = self.activation(layer(images))
            features.append(images)
        return self.conv_out(images), features
