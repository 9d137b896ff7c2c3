"""Interleaved frequency tokens: which Fourier coefficients each token holds, and at what scale.

Each token is a comb filter on the spectrum (`z_e = K * F(z)`, equation 3): it takes one coefficient
of every energy tier, so all tokens see the whole image, look alike statistically, and can share
one codebook of short vectors.
"""

import torch
from torch import nn


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


class FrequencyTokens(nn.Module):
    """Packed spectrum <-> tokens of comparable statistics.

    `split` gathers each token's coefficients, takes their mean off and scales them by a gain; `join`
    undoes it. The gain of a coefficient starts at the mean standard deviation of its tier over its
    own, which makes the tokens' statistics equal, and is learnt from there.

    Args:
        num_coefficients: length of the flattened spectrum, D*h*w.
        num_tokens: U.
        token_dim: m; U * m must not exceed the number of candidates.
    """

    def __init__(self, num_coefficients: int, num_tokens: int, token_dim: int):
        super().__init__()
        self.num_coefficients = num_coefficients
        start = torch.arange(num_tokens * token_dim).view(token_dim, num_tokens).T.contiguous()
        self.register_buffer("index", start)  # (U, m)
        self.register_buffer("mean", torch.zeros(num_tokens, token_dim))
        self.log_gain = nn.Parameter(torch.zeros(num_tokens, token_dim))

    @torch.no_grad()
    def initialize_(self, spectra: torch.Tensor, candidates: torch.Tensor) -> None:
        """Choose the coefficients and their scales from a sample of training spectra.

        Args:
            spectra: (n, D*h*w) flattened packed spectra, float32.
            candidates: LongTensor of the positions that may be chosen.
        """
        sample = spectra[:, candidates]
        mean, std = sample.mean(0), sample.std(0)
        # A coefficient that never moves (the border of MNIST) still needs a finite gain.
        std = std.clamp(min=1e-3 * std.max())
        chosen = interleave(std.square(), *self.index.shape)
        self.index.copy_(candidates[chosen])
        self.mean.copy_(mean[chosen])
        self.log_gain.copy_(torch.log(std[chosen].mean(0) / std[chosen]))

    def split(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Flattened packed spectrum (B, D*h*w) -> tokens (B, U, m)."""
        return (spectrum[:, self.index] - self.mean) * self.log_gain.exp()

    def join(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, U, m) -> flattened packed spectrum (B, D*h*w), zero where no token reaches."""
        spectrum = tokens.new_zeros(len(tokens), self.num_coefficients)
        coefficients = tokens * (-self.log_gain).exp() + self.mean
        return spectrum.index_copy(1, self.index.flatten(), coefficients.flatten(1))

    def error_weights(self) -> torch.Tensor:
        """(U, m): what a unit of squared error on a token costs in the latent. Not differentiated."""
        return (-2 * self.log_gain.detach()).exp()
