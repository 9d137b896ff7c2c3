"""The frequency quantizer: spectrum -> tokens -> codebook -> graph module -> spectrum."""

from dataclasses import dataclass

import torch
from torch import nn

from ..spectrum import pack_spectrum, spectral_crop_index, unpack_spectrum
from .codebook import Codebook, perplexity
from .graph import GraphModule
from .tokens import FrequencyTokens


@dataclass
class QuantizedTokens:
    """What `FrequencyQuantizer.quantize` returns.

    Attributes:
        tokens: (B, U, m) float32 codebook entries, with the straight-through gradient in training.
        indices: (B, U) int64.
        loss: scalar, codebook loss plus beta times commitment loss (equation 1), in squared latent
            units per latent element.
        perplexity: scalar, of this batch; it grows with the batch size up to the codebook size.
    """

    tokens: torch.Tensor
    indices: torch.Tensor
    loss: torch.Tensor
    perplexity: torch.Tensor


class FrequencyQuantizer(nn.Module):
    """Quantizes latents (B, D, h, w) as U frequency tokens.

    All of it runs in float32 outside autocast: `torch.fft` has no half precision on the CPU and not
    for every size on CUDA.

    Args:
        latent_channels: D.
        latent_size: (h, w).
        num_tokens: U.
        num_vq_embeddings: M.
        vq_embed_dim: m, the coefficients in a token.
        spectral_crop: (h', w'); tokens use only the coefficients that a spectrum of this size has.
        commitment_weight: beta of equation 1.
        usage_decay: gamma of equation 8.
        graph_module: refine the tokens with equation 12.

    Raises:
        ValueError: if U * m exceeds the D * h' * w' coefficients there are, or m is less than 2.
    """

    def __init__(
        self,
        latent_channels: int,
        latent_size: tuple[int, int],
        num_tokens: int,
        num_vq_embeddings: int,
        vq_embed_dim: int,
        spectral_crop: tuple[int, int],
        commitment_weight: float = 1.0,
        usage_decay: float = 0.99,
        graph_module: bool = True,
    ):
        super().__init__()
        available = latent_channels * spectral_crop[0] * spectral_crop[1]
        if num_tokens * vq_embed_dim > available:
            raise ValueError(
                f"{num_tokens} tokens of {vq_embed_dim} coefficients need {num_tokens * vq_embed_dim}, but "
                f"{latent_channels} latent channels with a {spectral_crop[0]}x{spectral_crop[1]} spectrum have "
                f"{available}: lower num_tokens or vq_embed_dim, or enlarge spectral_crop"
            )
        if vq_embed_dim < 2:
            raise ValueError("vq_embed_dim must be at least 2: the dependency of two entries is a correlation")
        self.latent_shape = (latent_channels, *latent_size)
        self.spectral_crop = tuple(spectral_crop)
        self.commitment_weight = commitment_weight
        self.tokens = FrequencyTokens(latent_channels * latent_size[0] * latent_size[1], num_tokens, vq_embed_dim)
        self.codebook = Codebook(num_vq_embeddings, vq_embed_dim, usage_decay)
        self.graph = GraphModule(num_tokens) if graph_module else None

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, QuantizedTokens]:
        """Latents (B, D, h, w) -> quantized and refined latents of the same dtype, and the tokens."""
        quantized = self.quantize(latents)
        return self.refine(quantized.tokens).to(latents.dtype), quantized

    def split(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, D, h, w) of any dtype -> unquantized tokens (B, U, m), float32."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.tokens.split(pack_spectrum(latents.float()).flatten(1))

    def join(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, U, m) -> latents (B, D, h, w), float32: the inverse of `split` on its range."""
        with torch.autocast(tokens.device.type, enabled=False):
            return unpack_spectrum(self.tokens.join(tokens.float()).unflatten(1, self.latent_shape))

    def quantize(self, latents: torch.Tensor) -> QuantizedTokens:
        """Latents (B, D, h, w) -> their tokens' codebook entries; in training mode, updates the codebook.

        The nearest entry is the one with the least error in the latent: the gains that make tokens
        comparable are taken out of the distance.
        """
        with torch.autocast(latents.device.type, enabled=False):
            tokens = self.split(latents)  # (B, U, m)
            weights = self.tokens.error_weights()
            indices = self.codebook.nearest(tokens, weights)
            entries = self.codebook(indices)
            size = self.tokens.num_coefficients / tokens[0].numel()  # from a mean over tokens to one over latents
            codebook_loss = (weights * (entries - tokens.detach()).square()).mean() / size
            commitment_loss = (weights * (entries.detach() - tokens).square()).mean() / size
            if self.training and torch.is_grad_enabled():
                self.codebook.update_(tokens.detach(), indices)
            return QuantizedTokens(
                tokens=entries.detach() + (tokens - tokens.detach()),  # straight-through; the value is the entry's
                indices=indices,
                loss=codebook_loss + self.commitment_weight * commitment_loss,
                perplexity=perplexity(torch.bincount(indices.flatten(), minlength=len(self.codebook.entries))),
            )

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, D, h, w) -> the indices (B, U) of their tokens; never updates the codebook."""
        return self.codebook.nearest(self.split(latents), self.tokens.error_weights())

    def refine(self, tokens: torch.Tensor) -> torch.Tensor:
        """Quantized tokens (B, U, m) -> latents (B, D, h, w), float32, weighted by the graph module."""
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = tokens.float()
            if self.graph is not None:
                tokens = tokens * self.graph(tokens).unsqueeze(-1)
            return self.join(tokens)

    @torch.no_grad()
    def initialize_(self, latents: torch.Tensor) -> None:
        """Choose coefficients, scales and codebook from the latents (n, D, h, w) of training images."""
        spectra = pack_spectrum(latents.float()).flatten(1)
        channels, h, w = self.latent_shape
        crop = spectral_crop_index((h, w), self.spectral_crop).to(spectra.device)
        channel_start = h * w * torch.arange(channels, device=spectra.device).unsqueeze(1)
        self.tokens.initialize_(spectra, (channel_start + crop).flatten())
        tokens = self.tokens.split(spectra)
        weights = self.tokens.error_weights().expand_as(tokens)
        self.codebook.initialize_(tokens.flatten(0, 1), weights.flatten(0, 1))
