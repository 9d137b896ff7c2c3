"""An encoder of what low frequencies leave open: learnt channels of the latents, beside the linear ones."""

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from ..spectrum import resample

READER_PATCH = 4  # pixels to a side that become channels, where the image has as many for each of its latents


class Reader(nn.Module):
    """Images and their low frequencies -> K more channels of latents, at the size where a `Painter` begins.

    A few low frequencies are exact, easy to learn, and do not say where an eye looks or how far a mouth is open. A
    painter has to guess that, and guesses each detail by itself. So this one learns, with the painter, what to tell it.
    All of it works at the first size, on patches of pixels; what an image has beyond these patches (at most four pixels
    for a latent) it does not see, so it says the same of larger images of the same picture.

    Args:
        in_channels: c, of the images.
        linear_channels: of the low frequencies.
        learnt_channels: K.
        size: (h', w'), the painter's first size.
        sample_size: (H, W), of the images, a multiple of it.
        width: channels of the residual blocks.
        layers: residual blocks.
        act_fn: activation.
        norm_num_groups: groups of the group normalisations.
    """

    def __init__(
        self,
        in_channels: int,
        linear_channels: int,
        learnt_channels: int,
        size: tuple[int, int],
        sample_size: tuple[int, int],
        width: int,
        layers: int,
        act_fn: str = "silu",
        norm_num_groups: int = 8,
    ):
        super().__init__()
        self.size = tuple(size)
        self.patch = min(READER_PATCH, sample_size[0] // size[0])
        common = dict(temb_channels=None, groups=norm_num_groups, non_linearity=act_fn, eps=1e-6)
        self.conv_in = nn.Conv2d(in_channels * self.patch**2 + linear_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            ResnetBlock2D(in_channels=width, out_channels=width, **common) for _ in range(layers)
        )
        self.norm_out = nn.GroupNorm(norm_num_groups, width, eps=1e-6)
        self.act_out = nn.SiLU()
        self.conv_out = nn.Conv2d(width, learnt_channels, 3, padding=1)

    def forward(self, images: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
        """Images (B, c, H, W) and linear latents (B, D - K, h, w), float32 -> (B, K, h, w), float32."""
        patches = resample(images, (self.size[0] * self.patch, self.size[1] * self.patch))
        read = torch.cat([nn.functional.pixel_unshuffle(patches, self.patch), resample(linear, self.size)], dim=1)
        features = self.conv_in(read.to(self.conv_in.weight.dtype))
        for block in self.blocks:
            features = block(features, None)
        return resample(self.conv_out(self.act_out(self.norm_out(features))), tuple(linear.shape[-2:]))
