"""What a trained network sees: features that images are compared in, and a discriminator that reads them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

LEVELS = 4  # the first four sizes that the network has features of
SMALLEST_LEVEL = 2  # pixels, since heads halve it
HEAD_WIDTH = 64
UNREADABLE = (
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    SafetensorError,
)  # any other file


class FeatureNetwork:
    """A network of timm that was trained on ImageNet, frozen.

    Args:
        name: of the architecture, as timm has it.
        size: (H, W), of the images.
        weights: file with its weights, under timm's names; None to download those that timm names.
        device: where it runs.

    Attributes:
        channels: of each level.

    Raises:
        ValueError: if timm has no such network, or none that was trained, if the file does not hold its weights, or if
            it has no features of images of this size at four sizes.
        FileNotFoundError: if there is no such file, or the download fails.
    """

    def __init__(
        self, name: str, size: tuple[int, int], weights: str | None = None, device: torch.device | str = "cpu"
    ):
        network = _load(name, weights)
        self.network = network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        mean, std = (torch.tensor(network.pretrained_cfg[key], device=device) for key in ("mean", "std"))
        self.mean, self.std = mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
        try:
            with torch.no_grad():
                levels = self(torch.zeros(1, 3, *size, device=device))
        except (AssertionError, *UNREADABLE):  # of other sizes alone, of fewer levels, or none
            levels = []
        if not levels or any(level.dim() != 4 or min(level.shape[-2:]) < SMALLEST_LEVEL for level in levels):
            raise ValueError(
                f"perceptual_network: {name} does not see images of {tuple(size)} at {LEVELS} sizes of "
                f"{SMALLEST_LEVEL} pixels and more: take another network, or larger images"
            )
        self.channels = [level.shape[1] for level in levels]

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Images (B, 1 or 3, H, W) in [-1, 1] -> features (B, C_i, H_i, W_i) of each level, float32."""
        with torch.autocast(images.device.type, enabled=False):
            images = (images.float().expand(-1, 3, -1, -1) / 2 + 0.5 - self.mean) / self.std
            return self.network.forward_intermediates(
                images.contiguous(memory_format=torch.channels_last),
                indices=list(range(LEVELS)), intermediates_only=True, stop_early=True,
            )  # fmt: skip


def _load(name: str, weights: str | None) -> Any:
    """A network with the methods that timm gives to its own."""
    import timm  # seconds, which other runs need not wait for

    if not timm.is_model(name):
        raise ValueError(f"perceptual_network: timm has no network {name}")
    if weights is not None and not Path(weights).is_file():
        raise FileNotFoundError(f"perceptual_network_weights: there is no file {weights}; get timm's weights of {name}")
    try:
        return timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=None if weights is None else dict(file=weights)
        )
    except OSError as error:
        raise FileNotFoundError(
            f"perceptual_network_weights: those of {name} cannot be had ({_short(error)}); give a file with them"
        ) from error
    except UNREADABLE as error:
        if weights is None:
            raise ValueError(f"perceptual_network: timm has no weights of {name} ({_short(error)})") from error
        raise ValueError(f"perceptual_network_weights: {weights} does not hold {name} ({_short(error)})") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def feature_distance(real: Sequence[torch.Tensor], painted: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared distance of features (B, C, H, W) of unit length, averaged over places and added up over levels.

    LPIPS without learnt weights (Zhang et al. 2018, equation 1).
    """
    distances = [(_unit(a) - _unit(b)).square().sum(1).mean() for a, b in zip(real, painted, strict=True)]
    return torch.stack(distances).sum()


def _unit(features: torch.Tensor) -> torch.Tensor:
    return features / (features.square().sum(1, keepdim=True) + 1e-6).sqrt()


class FeatureDiscriminator(nn.Module):
    """Features of a trained network -> how real they look, at each level (Projected GANs, Sauer et al. 2021).

    The network knows eyes and hair before the first step, so little is left to learn: a head for each level.

    Args:
        channels: of each level.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.heads = nn.ModuleList(map(_Head, channels))

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Features (B, C_i, H_i, W_i) -> logits (B, 1, H_i / 2, W_i / 2) of each level."""
        return [head(level) for head, level in zip(self.heads, features, strict=True)]


class _Head(nn.Module):
    """Three convolutions, after a random mixture of all channels: a head could rest on the few that tell most."""

    mixture: torch.Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mixture", torch.randn(HEAD_WIDTH, channels, 1, 1) / math.sqrt(channels))
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(HEAD_WIDTH, HEAD_WIDTH, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(HEAD_WIDTH, HEAD_WIDTH, 3, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(HEAD_WIDTH, 1, 1)),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(F.conv2d(features, self.mixture))
