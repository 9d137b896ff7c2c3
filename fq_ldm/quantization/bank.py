"""A learnt filter bank: every token holds a few combinations of Fourier coefficients, learnt from training images.

Equation 3 with the filters K_i of the data: `z_e = K^T (S(z) - mean)`, where S is the packed spectrum and the columns
of K are the strongest principal directions of its coefficients. They are dealt to the tokens as
`tokens.InterleavedTokens` deals single coefficients: each token gets one of every tier of energy.

A dense K grows with the square of the image. So only the strongest `MIXED_COEFFICIENTS` coefficients are mixed; where
tokens need more numbers than that, the others stay single coefficients.
"""

import math

import torch
from torch import nn

from ..spectrum import pack_spectrum, unpack_spectrum
from .moments import Batches, mean_and_variance, shrunk_covariance, strongest_directions
from .tokens import check_tokens_fit, coefficients_inside, equalizing_log_gain, interleave

MIXED_COEFFICIENTS = 2048


class BankTokens(nn.Module):
    """Latents <-> tokens of the learnt filters, of comparable statistics.

    `split` projects the packed spectrum on the filters and scales what comes out by a gain; `join` undoes it on the
    span of the filters, and puts the training mean outside of it. Filters are orthonormal and stay as
    `initialize_` found them; gains start as those of `InterleavedTokens`, and are learnt from there.

    Args:
        latent_shape: (D, h, w).
        num_tokens: U.
        token_dim: m.
        spectral_crop: (h', w'); tokens use only the coefficients that a spectrum of this size has.

    Raises:
        ValueError: if U * m exceeds the D * h' * w' coefficients there are.
    """

    index: torch.Tensor
    mean: torch.Tensor
    bank: torch.Tensor
    order: torch.Tensor

    def __init__(
        self, latent_shape: tuple[int, int, int], num_tokens: int, token_dim: int, spectral_crop: tuple[int, int]
    ):
        super().__init__()
        available = check_tokens_fit(latent_shape, num_tokens, token_dim, spectral_crop)
        self.latent_shape = tuple(latent_shape)
        self.spectral_crop = tuple(spectral_crop)
        self.token_dim = token_dim
        self.mixed = min(available, MIXED_COEFFICIENTS)
        size = num_tokens * token_dim
        filters = min(size, self.mixed)
        # Where in the flattened spectrum the mixed coefficients lie, and behind them those that stay single.
        self.register_buffer("index", torch.arange(self.mixed + size - filters))
        self.register_buffer("mean", torch.zeros(self.mixed + size - filters))
        self.register_buffer("bank", torch.eye(self.mixed, filters))
        # Which of the filters, and behind them of the single coefficients, a token holds.
        start = torch.arange(size).view(token_dim, num_tokens).T.contiguous()
        self.register_buffer("order", start)  # (U, m)
        self.log_gain = nn.Parameter(torch.zeros(num_tokens, token_dim))

    @torch.no_grad()
    def initialize_(self, latents: Batches) -> None:
        """Learn the filters from batches of latents (b, D, h, w) of training images, float32; goes over them twice.

        Correlations that few images do not prove are shrunk, so that a few hundred give nearly single coefficients;
        for the full gain there should be several times as many images as mixed coefficients.

        Raises:
            ValueError: for fewer than two images, images that are all alike, or numbers that are not finite.
        """
        candidates = coefficients_inside(self.latent_shape, self.spectral_crop, self.index.device)
        mean, variance = mean_and_variance(latents, lambda z: pack_spectrum(z).flatten(1)[:, candidates])
        strongest = variance.argsort(descending=True, stable=True)[: len(self.index)]
        self.index.copy_(candidates[strongest])
        self.mean.copy_(mean[strongest])
        covariance, _ = shrunk_covariance(latents, lambda z: self._coefficients(z)[:, : self.mixed])
        self.bank.copy_(strongest_directions(covariance, self.bank.shape[1]))
        strength = (self.bank * (covariance @ self.bank)).sum(0).clamp(min=0)
        energy = torch.cat([strength, variance[strongest[self.mixed :]]])
        self.order.copy_(interleave(energy, *self.order.shape))
        self.log_gain.copy_(equalizing_log_gain(energy.sqrt()[self.order]))

    def split(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, D, h, w), float32 -> tokens (B, U, m)."""
        coefficients = self._coefficients(latents)
        filtered = coefficients[:, : self.mixed] @ self.bank
        numbers = torch.cat([filtered, coefficients[:, self.mixed :]], dim=1)
        # index_select, since the backward pass of indexing sorts
        return numbers.index_select(1, self.order.flatten()).view(-1, *self.order.shape) * self.log_gain.exp()

    def join(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, U, m), float32 -> latents (B, D, h, w), band-limited to the spectral crop."""
        numbers = (tokens * (-self.log_gain).exp()).flatten(1)
        numbers = torch.zeros_like(numbers).index_copy(1, self.order.flatten(), numbers)
        filters = self.bank.shape[1]
        coefficients = torch.cat([numbers[:, :filters] @ self.bank.T, numbers[:, filters:]], dim=1) + self.mean
        spectrum = tokens.new_zeros(len(tokens), math.prod(self.latent_shape))
        return unpack_spectrum(spectrum.index_copy(1, self.index, coefficients).unflatten(1, self.latent_shape))

    def error_weights(self) -> torch.Tensor:
        """(U, m): what a unit of squared error on a token costs in the latent. Not differentiated."""
        return (-2 * self.log_gain.detach()).exp()  # filters are orthonormal

    def _coefficients(self, latents: torch.Tensor) -> torch.Tensor:
        """The centred coefficients that the bank takes, the mixed ones first."""
        return pack_spectrum(latents).flatten(1).index_select(1, self.index) - self.mean
