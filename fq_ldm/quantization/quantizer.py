"""The quantizer of a model: latents -> tokens -> codebook -> graph module -> latents."""

import math

import torch

from .codebook import QuantizedTokens
from .graph import GraphModule
from .interfaces import TokenCodebook, TokenLayout
from .moments import Batches, gather
from .precision import Float32Module

START_NUMBERS = 2**25  # in the tokens that a codebook starts from: 128 megabytes


class TokenQuantizer(Float32Module):
    """Quantizes latents (B, D, h, w) as tokens.

    All of it runs in float32 outside autocast: `torch.fft` has no half precision on the CPU and not
    for every size on CUDA.

    Args:
        tokens: layout of the tokens, a module such as `InterleavedTokens`.
        codebook: a module such as `Codebook`.
        graph: refines quantized tokens by equation 12, or None.
    """

    def __init__(self, tokens: TokenLayout, codebook: TokenCodebook, graph: GraphModule | None):
        super().__init__()
        self.tokens = tokens
        self.codebook = codebook
        self.graph = graph

    def split(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, D, h, w) of any dtype -> unquantized tokens (B, U, m), float32."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.tokens.split(latents.float())

    def join(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, U, m) -> latents (B, D, h, w), float32: the inverse of `split` on its range."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self.tokens.join(tokens.float())

    def quantize(self, latents: torch.Tensor) -> QuantizedTokens:
        """Latents (B, D, h, w) -> their tokens' codebook entries; in training mode, updates the codebook.

        The nearest entry is the one with the least error in the latent: the gains that make tokens
        comparable are taken out of the distance. The loss is in squared latent units per latent element.
        """
        with torch.autocast(latents.device.type, enabled=False):
            tokens = self.split(latents)  # (B, U, m)
            quantized = self.codebook.quantize(tokens, self.tokens.error_weights())
            quantized.loss = quantized.loss * (tokens[0].numel() / math.prod(latents.shape[1:]))
            return quantized

    def nearest(self, latents: torch.Tensor, exclude: int | None = None) -> torch.Tensor:
        """Latents (B, D, h, w) -> the indices (B, U) of their tokens; never updates the codebook."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.codebook.nearest(self.split(latents), self.tokens.error_weights(), exclude)

    def refine(self, tokens: torch.Tensor) -> torch.Tensor:
        """Quantized tokens (B, U, m) -> latents (B, D, h, w), float32, weighted by the graph module."""
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = tokens.float()
            if self.graph is not None:
                tokens = tokens * self.graph(tokens).unsqueeze(-1)
            return self.join(tokens)

    @torch.no_grad()
    def initialize_(self, latents: Batches) -> None:
        """Start layout and codebook from batches of latents (b, D, h, w) of training images, gone over repeatedly."""
        self.tokens.initialize_(latents)
        weights = self.tokens.error_weights()
        tokens = gather(latents, self.tokens.split, START_NUMBERS)
        weights = None if weights is None else weights.expand_as(tokens).flatten(0, 1)
        self.codebook.initialize_(tokens.flatten(0, 1), weights)
