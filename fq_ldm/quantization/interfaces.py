"""What a quantizer is made of: write these methods, as an `nn.Module`, to add one."""

from typing import Protocol

import torch

from .codebook import QuantizedTokens
from .moments import Batches


class TokenLayout(Protocol):
    """Latents (B, D, h, w) <-> tokens (B, U, m), both float32.

    Attributes:
        token_dim: m.
    """

    token_dim: int

    def initialize_(self, latents: Batches) -> None:
        """Start from batches of latents (b, D, h, w) of training images, which can be gone over repeatedly."""

    def split(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, D, h, w) -> tokens (B, U, m)."""

    def join(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, U, m) -> latents (B, D, h, w)."""

    def error_weights(self) -> torch.Tensor | None:
        """What a unit of squared error on a token costs in the latent, broadcastable to (U, m); None for 1."""


class TokenCodebook(Protocol):
    """Tokens (B, U, m) -> M entries.

    Attributes:
        usage: (M,), running share of the tokens that chose each entry, for the progress bar.
    """

    usage: torch.Tensor

    def initialize_(self, tokens: torch.Tensor, weights: torch.Tensor | None) -> None:
        """Start from tokens (n, m); weights (n, m) of their squared errors, or None."""

    def quantize(self, tokens: torch.Tensor, weights: torch.Tensor | None) -> QuantizedTokens:
        """Tokens (B, U, m) -> their entries, loss and perplexity; in training mode, the codebook learns."""

    def nearest(self, tokens: torch.Tensor, weights: torch.Tensor | None, exclude: int | None = None) -> torch.Tensor:
        """Tokens (..., m) -> indices (...) of their entries, `exclude` never among them."""

    def objective(self, reconstruction_loss: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        """The training loss of the whole model, a scalar, from its mean squared error and the quantizer's loss."""

    def __call__(self, indices: torch.Tensor) -> torch.Tensor:
        """Indices (...) -> entries (..., m)."""
