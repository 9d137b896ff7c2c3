"""Interleaved frequency tokens: which Fourier coefficients each token holds, and at what scale.

Each token is a comb filter on the spectrum (`z_e = K * F(z)`, equation 3): it takes one coefficient
of every energy tier, so all tokens see the whole image, look alike statistically, and can share
one codebook of short vectors.

All layouts of tokens (this one, `bank.BankTokens`, `filters.DynamicFilterTokens`, `grid.GridTokens`,
`grid.TransformerTokens`) have the same four methods: `split`, `join`, `error_weights`, `initialize_`.
"""

import math

import torch
from torch import nn

from ..spectrum import pack_spectrum, spectral_crop_index, unpack_spectrum
from .moments import Batches, mean_and_variance


def interleave(energy: torch.Tensor, num_tokens: int, token_dim: int) -> torch.Tensor:
    """Deal the strongest coefficients to the tokens in snake order, one tier after another.

    Args:
        energy: (n,) energy of each coefficient, n at least U * m.
        num_tokens: U.
        token_dim: m.

    Returns:
        LongTensor (U, m) of distinct positions in `energy`; column t is tier t: the coefficients
        ranked t*U to (t+1)*U - 1, strongest first in even tiers and last in odd ones.
    """
    tiers = energy.argsort(descending=True, stable=True)[: num_tokens * token_dim].view(token_dim, num_tokens).clone()
    tiers[1::2] = tiers[1::2].flip(1)
    return tiers.T.contiguous()


def equalizing_log_gain(std: torch.Tensor) -> torch.Tensor:
    """Logarithms of the gains (U, m) that give the numbers of a tier, of deviations (U, m), their mean deviation."""
    # What never moves (the border of MNIST) still needs a finite gain.
    std = std.clamp(min=1e-3 * std.max())
    return torch.log(std.mean(0) / std)


def coefficients_inside(
    latent_shape: tuple[int, ...], spectral_crop: tuple[int, ...], device: torch.device
) -> torch.Tensor:
    """Where in the flattened packed spectrum (D * h * w) the coefficients inside the crop lie: (D * h' * w',)."""
    channels, h, w = latent_shape
    crop = spectral_crop_index((h, w), (spectral_crop[0], spectral_crop[1]), device)
    return (h * w * torch.arange(channels, device=device).unsqueeze(1) + crop).flatten()


def check_tokens_fit(latent_shape: tuple, num_tokens: int, token_dim: int, spectral_crop: tuple[int, int]) -> int:
    """How many coefficients there are inside the spectral crop.

    Raises:
        ValueError: if they are fewer than U * m.
    """
    available = latent_shape[0] * spectral_crop[0] * spectral_crop[1]
    if num_tokens * token_dim > available:
        raise ValueError(
            f"{num_tokens} tokens of {token_dim} coefficients need {num_tokens * token_dim}, but "
            f"{latent_shape[0]} latent channels with a {spectral_crop[0]}x{spectral_crop[1]} spectrum have "
            f"{available}: lower num_tokens or vq_embed_dim, or enlarge spectral_crop"
        )
    return available


class InterleavedTokens(nn.Module):
    """Latents <-> tokens of a few Fourier coefficients each, of comparable statistics.

    `split` gathers each token's coefficients from the packed spectrum, takes their mean off and scales
    them by a gain; `join` undoes it. The gain of a coefficient starts at the mean standard deviation of
    its tier over its own, which makes the tokens' statistics equal, and is learnt from there.

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

    def __init__(
        self, latent_shape: tuple[int, int, int], num_tokens: int, token_dim: int, spectral_crop: tuple[int, int]
    ):
        super().__init__()
        check_tokens_fit(latent_shape, num_tokens, token_dim, spectral_crop)
        self.latent_shape = tuple(latent_shape)
        self.spectral_crop = tuple(spectral_crop)
        self.token_dim = token_dim
        start = torch.arange(num_tokens * token_dim).view(token_dim, num_tokens).T.contiguous()
        self.register_buffer("index", start)  # (U, m)
        self.register_buffer("mean", torch.zeros(num_tokens, token_dim))
        self.log_gain = nn.Parameter(torch.zeros(num_tokens, token_dim))

    @torch.no_grad()
    def initialize_(self, latents: Batches) -> None:
        """Choose coefficients and scales from batches of latents (b, D, h, w) of training images, float32.

        Raises:
            ValueError: for fewer than two images, images that are all alike, or numbers that are not finite.
        """
        candidates = coefficients_inside(self.latent_shape, self.spectral_crop, self.index.device)
        mean, variance = mean_and_variance(latents, lambda z: pack_spectrum(z).flatten(1)[:, candidates])
        chosen = interleave(variance, *self.index.shape)
        self.index.copy_(candidates[chosen])
        self.mean.copy_(mean[chosen])
        self.log_gain.copy_(equalizing_log_gain(variance.sqrt()[chosen]))

    def split(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, D, h, w), float32 -> tokens (B, U, m)."""
        # index_select, since the backward pass of indexing sorts
        coefficients = pack_spectrum(latents).flatten(1).index_select(1, self.index.flatten())
        return (coefficients.view(-1, *self.index.shape) - self.mean) * self.log_gain.exp()

    def join(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, U, m), float32 -> latents (B, D, h, w); coefficients that no token reaches are zero."""
        spectrum = tokens.new_zeros(len(tokens), math.prod(self.latent_shape))
        coefficients = tokens * (-self.log_gain).exp() + self.mean
        spectrum = spectrum.index_copy(1, self.index.flatten(), coefficients.flatten(1))
        return unpack_spectrum(spectrum.unflatten(1, self.latent_shape))

    def error_weights(self) -> torch.Tensor:
        """(U, m): what a unit of squared error on a token costs in the latent. Not differentiated."""
        return (-2 * self.log_gain.detach()).exp()
