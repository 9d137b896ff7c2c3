"""Spatial tokens: the cells of a grid, as VQ-VAE and its successors quantize them."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .moments import Batches

# A small ViT-VQGAN (Yu et al. 2021): depth and width for latents of 32 to 64 pixels.
TRANSFORMER_DEPTH, TRANSFORMER_WIDTH, TRANSFORMER_HEADS = 4, 192, 6


class GridTokens(nn.Module):
    """Latents <-> one token for each p x p patch of the latent, with all its D * p * p numbers.

    Args:
        latent_shape: (D, h, w).
        num_tokens: U, such that square patches fit: U * p * p = h * w.

    Raises:
        ValueError: if no whole p fits, or p divides h or w not.
    """

    def __init__(self, latent_shape: tuple[int, int, int], num_tokens: int):
        super().__init__()
        channels, h, w = latent_shape
        patch = math.isqrt(h * w // num_tokens)
        if patch**2 * num_tokens != h * w or h % patch or w % patch:
            raise ValueError(f"a grid of {num_tokens} square cells does not fit a latent of {h}x{w} pixels")
        self.latent_shape = tuple(latent_shape)
        self.patch_size = patch
        self.grid = (h // patch, w // patch)
        self.token_dim = channels * patch**2

    def initialize_(self, latents: Batches) -> None:
        """Nothing to choose."""

    def split(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, D, h, w) -> tokens (B, U, D p p), row by row."""
        return F.pixel_unshuffle(latents, self.patch_size).flatten(2).mT

    def join(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, U, D p p) -> latents (B, D, h, w): the inverse of `split`."""
        return F.pixel_shuffle(tokens.mT.unflatten(2, self.grid), self.patch_size)

    def error_weights(self) -> None:
        """None: every component of a token weighs the same."""


class TransformerTokens(GridTokens):
    """Grid tokens that have seen the whole image through self-attention (ViT-VQGAN style).

    Patches are embedded linearly with a learnt position, pass a pre-norm transformer, and come out as a
    residual on the patch; `join` has a transformer of its own. Both residuals start at zero.
    """

    def __init__(self, latent_shape: tuple[int, int, int], num_tokens: int):
        super().__init__(latent_shape, num_tokens)
        self.encoder = _PatchTransformer(self.token_dim, num_tokens)
        self.decoder = _PatchTransformer(self.token_dim, num_tokens)

    def split(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, D, h, w) -> tokens (B, U, D p p)."""
        return self.encoder(super().split(latents))

    def join(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, U, D p p) -> latents (B, D, h, w)."""
        return super().join(self.decoder(tokens))


class _PatchTransformer(nn.Module):
    def __init__(self, token_dim: int, num_tokens: int):
        super().__init__()
        self.embed = nn.Linear(token_dim, TRANSFORMER_WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(num_tokens, TRANSFORMER_WIDTH))
        layer = nn.TransformerEncoderLayer(
            TRANSFORMER_WIDTH,
            TRANSFORMER_HEADS,
            dim_feedforward=4 * TRANSFORMER_WIDTH,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(layer, TRANSFORMER_DEPTH, enable_nested_tensor=False)
        self.output = nn.Linear(TRANSFORMER_WIDTH, token_dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens + self.output(self.blocks(self.embed(tokens) + self.position))
