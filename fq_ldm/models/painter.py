"""A decoder that works near the size of the spectral crop first, and grows from there to the image."""

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from ..spectrum import resample

UPSAMPLINGS = ("shuffle", "bilinear", "bilinear_last")
Generators = torch.Generator | list[torch.Generator] | None


class Painter(nn.Module):
    """Low-frequency latents -> what the image has beside their linear decoding.

    The latents hold only low frequencies, so most of the work is done on few pixels: residual blocks at a size that
    holds the crop, then it grows, with fewer channels and blocks at each doubled size. What the latents do not say
    (hair, grain) has to come from somewhere: at each size one channel of noise goes in with the features.

    The image's size has a way out, and so may the sizes before it: then what was painted smaller is enlarged, and all
    is added up. So a painter of larger images can start as a good one of smaller images, enlarged.

    Args:
        latent_channels: D.
        out_channels: c.
        crop: (h', w'), of the latents.
        size: (H, W), of the images. Halved as often as it still holds the crop, it is the first size.
        block_out_channels: of each size, the image's first and the first size's last.
        layers_per_block: residual blocks at each size, in the same order.
        upsampling: "shuffle" gives each of the four new pixels weights of its own (sub-pixel convolution, Shi et al.
            2016), which may leave a lattice where little is known; "bilinear" smooths before it convolves;
            "bilinear_last" does so to the image's size alone.
        outputs: how many sizes have a way out, the image's and those before it.
        act_fn: activation of the residual blocks.
        norm_num_groups: groups of the group normalisations.

    Raises:
        ValueError: if the sizes do not fit one another.
    """

    def __init__(
        self,
        latent_channels: int,
        out_channels: int,
        crop: tuple[int, int],
        size: tuple[int, int],
        block_out_channels: tuple[int, ...],
        layers_per_block: tuple[int, ...],
        upsampling: str = "shuffle",
        outputs: int = 1,
        act_fn: str = "silu",
        norm_num_groups: int = 8,
    ):
        super().__init__()
        sizes = painted_sizes(crop, size)
        if len(block_out_channels) != len(sizes):
            raise ValueError(
                f"painter_block_out_channels {list(block_out_channels)}: a painter doubles from the smallest size that "
                f"holds the spectral crop {tuple(crop)} to the sample_size {tuple(size)}; give {len(sizes)} numbers, "
                f"for {', '.join(f'{height}x{width}' for height, width in sizes)}"
            )
        if len(layers_per_block) != len(block_out_channels):
            raise ValueError(
                f"painter_layers_per_block {list(layers_per_block)} must have one number for each of "
                f"painter_block_out_channels {list(block_out_channels)}"
            )
        if upsampling not in UPSAMPLINGS:
            raise ValueError(f"painter_upsampling must be {' or '.join(UPSAMPLINGS)}, not {upsampling}")
        if not 1 <= outputs <= len(block_out_channels):
            raise ValueError(f"painter_outputs must lie in 1 .. {len(block_out_channels)}, the sizes, not {outputs}")
        self.first_size = sizes[-1]
        last = len(block_out_channels) - 2
        self.shuffled = [upsampling == "shuffle" or (upsampling != "bilinear" and i < last) for i in range(last + 1)]
        common = dict(temb_channels=None, groups=norm_num_groups, non_linearity=act_fn, eps=1e-6)
        channels, layers = list(block_out_channels)[::-1], list(layers_per_block)[::-1]
        self.conv_in = nn.Conv2d(latent_channels, channels[0], 3, padding=1)
        self.sizes = nn.ModuleList()
        self.growing = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(channels, layers, strict=True)):
            if i:
                grown = 4 * width if self.shuffled[i - 1] else width
                self.growing.append(nn.Conv2d(channels[i - 1], grown, 3, padding=1))
            blocks = [ResnetBlock2D(in_channels=width, out_channels=width, **common) for _ in range(depth)]
            self.sizes.append(nn.ModuleList([nn.Conv2d(1, width, 3, padding=1), *blocks]))
        self.norm_out = nn.GroupNorm(norm_num_groups, channels[-1], eps=1e-6)
        self.act_out = nn.SiLU()
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)
        self.smaller_out = nn.ModuleList(  # of the smallest first
            nn.ModuleDict(
                {
                    "norm_out": nn.GroupNorm(norm_num_groups, width, eps=1e-6),
                    "conv_out": nn.Conv2d(width, out_channels, 3, padding=1),
                }
            )
            for width in channels[-outputs:-1]
        )
        for way in self.smaller_out:  # the model sees to the last one: it starts as a linear coder
            nn.init.zeros_(way["conv_out"].weight)
            nn.init.zeros_(way["conv_out"].bias)

    def stages(self) -> list[tuple[str, ...]]:
        """How names of the weights of each size begin, the smallest first; without the ways out."""
        larger = [(f"growing.{i}.", f"sizes.{i + 1}.") for i in range(len(self.growing))]
        return [("conv_in.", "sizes.0."), *larger]

    def ways_out(self) -> dict[int, tuple[str, str]]:
        """The sizes that have a way out, the smallest being 0, with the names of its two modules."""
        last, count = len(self.growing), len(self.smaller_out)
        before = {last - count + i: f"smaller_out.{i}." for i in range(count)} | {last: ""}
        return {size: (f"{start}norm_out", f"{start}conv_out") for size, start in before.items()}

    def forward(self, latents: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """Latents (B, D, h, w) inside the crop -> (B, c, H, W), to be added to their linear decoding.

        Args:
            latents: of any dtype.
            generator: of the noise, one for the batch or one for each image; None for the same noise in every image.
        """
        small = resample(latents, self.first_size).to(self.conv_in.weight.dtype)
        image, features = None, self.conv_in(small)
        ways_out = self.ways_out()
        for i, (add_noise, *blocks) in enumerate(self.sizes):
            if i:
                features = _grow(features, self.growing[i - 1], self.shuffled[i - 1])
            features = features + add_noise(_noise(features, generator))
            for block in blocks:
                features = block(features, None)
            if i in ways_out:
                norm, convolution = map(self.get_submodule, ways_out[i])
                image = _add(image, convolution(self.act_out(norm(features))))
        return image


def painted_sizes(crop: tuple[int, int], size: tuple[int, int]) -> list[tuple[int, int]]:
    """The sizes of a painter: that of the images, halved as often as it still holds the crop."""
    sizes = [tuple(size)]
    while all(side % 2 == 0 and side // 2 >= low for side, low in zip(sizes[-1], crop, strict=True)):
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return sizes


def _grow(features: torch.Tensor, convolution: nn.Module, shuffled: bool) -> torch.Tensor:
    if shuffled:
        return nn.functional.pixel_shuffle(convolution(features), 2)
    return convolution(nn.functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False))


def _add(smaller: torch.Tensor | None, image: torch.Tensor) -> torch.Tensor:
    """An image (B, c, H, W), with one of half its size enlarged, if there is one."""
    return image if smaller is None else image + enlarge(smaller.float()).to(image.dtype)


def enlarge(image: torch.Tensor) -> torch.Tensor:
    """An image (B, c, h, w) at twice its size: each second pixel is one of its own, and cubics lie between them.

    Pixels stay where resampling by the spectrum would put them, as the linear decoding is. But a spectrum goes round
    the borders, where an image jumps, and rings in lines along them far into it: a mesh, which painting cannot undo.
    """
    height, width = image.shape[-2:]
    size = (2 * height - 1, 2 * width - 1)
    between = nn.functional.interpolate(image, size, mode="bicubic", align_corners=True)
    return nn.functional.pad(between, (0, 1, 0, 1), mode="replicate")


def _noise(features: torch.Tensor, generator: Generators) -> torch.Tensor:
    """Normal noise (B, 1, h, w), drawn without a generator as the same (1, 1, h, w) at every call."""
    batch, _, height, width = features.shape
    if generator is None:
        generator, batch = torch.Generator().manual_seed(0), 1
    return randn_tensor((batch, 1, height, width), generator, device=features.device, dtype=features.dtype)
