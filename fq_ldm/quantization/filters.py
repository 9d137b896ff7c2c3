"""Dynamic filters: the frequency tokens as the paper prints them (equations 3-5).

Each of the U = N * D tokens is a whole filtered spectrum: `softmax_i(m)_{d,i} K_i * F(z)_d`, with N
learnable complex filter bases K_i that all channels share and coefficients m that an MLP reads off
the pooled latents.

Readings, where the paper leaves room:

- The transform is orthonormal and real (`rfft2`), and a codevector holds the real and the imaginary
  parts of one filtered half spectrum: 2 h (w/2 + 1) numbers.
- The MLP sees the mean and the standard deviation of each channel; its last layer starts at zero, so
  that every filter starts with the weight 1/N.
- Filter start. Bases that start alike stay alike: all tokens then describe the same few low
  frequencies. `"partition"` starts them as N times the indicators of a partition of the frequencies
  into rings of equal energy, so that the tokens differ and add up to F(z); `"alike"` starts them at
  one plus a little noise, as the words of the paper suggest.
- Losses count squared latent units per latent element, as everywhere in this library.
"""

import torch
from torch import nn

from ..spectrum import hermitian
from .moments import Batches

FILTER_NOISE = 0.02  # standard deviation of the noise on filters that start alike
MLP_WIDTH = 4  # hidden units of the MLP, in units of N


class DynamicFilterTokens(nn.Module):
    """Latents <-> U = N * D filtered spectra.

    Args:
        latent_shape: (D, h, w).
        num_tokens: U, a multiple of D.
        filter_start: "partition" or "alike".

    Raises:
        ValueError: if D does not divide U, or the start is unknown.
    """

    def __init__(self, latent_shape: tuple[int, int, int], num_tokens: int, filter_start: str = "partition"):
        super().__init__()
        channels, h, w = latent_shape
        if num_tokens % channels:
            raise ValueError(
                f"num_tokens {num_tokens} must be a multiple of latent_channels {channels}: each channel has "
                "num_tokens / latent_channels filters"
            )
        if filter_start not in ("partition", "alike"):
            raise ValueError(f"filter_start must be partition or alike, not {filter_start}")
        self.latent_shape = tuple(latent_shape)
        self.filter_start = filter_start
        self.num_filters = num_tokens // channels  # N
        self.half_shape = (h, w // 2 + 1)
        self.token_dim = 2 * h * (w // 2 + 1)
        # Real and imaginary parts apart: a half-precision copy of a complex parameter would lose the second.
        filters = torch.zeros(self.num_filters, *self.half_shape, 2)
        filters[..., 0] = 1
        self.filters = nn.Parameter(filters + FILTER_NOISE * torch.randn_like(filters))
        hidden = MLP_WIDTH * self.num_filters
        first, last = nn.Linear(2 * channels, hidden), nn.Linear(hidden, channels * self.num_filters)
        self.mlp = nn.Sequential(first, nn.GELU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    @torch.no_grad()
    def initialize_(self, latents: Batches) -> None:
        """Start the filters from batches of latents (b, D, h, w) of training images, float32."""
        if self.filter_start == "alike":
            return
        energy, device = torch.zeros(self.half_shape, device=self.filters.device), self.filters.device
        count = 0
        for part in latents:
            spectrum = torch.view_as_real(torch.fft.rfft2(part, norm="ortho"))
            energy += spectrum.square().sum(-1).mean(1).sum(0)
            count += len(part)
        energy /= count
        h, w = self.latent_shape[1:]
        rows = torch.fft.fftfreq(h, device=device).unsqueeze(1)
        columns = torch.fft.rfftfreq(w, device=device)
        order = (rows.square() + columns.square()).flatten().argsort(stable=True)
        # Rings of equal logarithmic energy: equal energy alone would put the zero frequency against all the rest.
        mass = torch.log1p(energy.flatten()[order] / energy.median()).cumsum(0)
        ring = torch.clamp((mass / mass[-1] * self.num_filters).long(), max=self.num_filters - 1)
        filters = torch.zeros(self.num_filters, h * (w // 2 + 1), device=device)
        filters[ring, order] = self.num_filters
        self.filters[..., 0].copy_(filters.view(self.num_filters, *self.half_shape))
        self.filters[..., 1].zero_()

    def coefficients(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, D, h, w) -> softmax weights (B, D, N) of the filters: the fraction of equation 4."""
        pooled = torch.cat([latents.mean((2, 3)), latents.std((2, 3))], dim=1)  # (B, 2D)
        return self.mlp(pooled).unflatten(1, (self.latent_shape[0], self.num_filters)).softmax(-1)

    def split(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, D, h, w), float32 -> tokens (B, U, 2 h (w/2 + 1)); token d N + i is filter i on channel d."""
        spectrum = torch.fft.rfft2(latents, norm="ortho").unsqueeze(2)  # (B, D, 1, h, w/2+1)
        weights = self.coefficients(latents)[..., None, None]  # (B, D, N, 1, 1)
        filtered = weights * torch.view_as_complex(self.filters) * spectrum  # (B, D, N, h, w/2+1)
        return torch.view_as_real(filtered).flatten(3).flatten(1, 2)

    def join(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, U, 2 h (w/2 + 1)), float32 -> latents (B, D, h, w): summed over the filters (equation 5)."""
        channels, h, w = self.latent_shape
        spectra = tokens.unflatten(1, (channels, self.num_filters)).sum(2).unflatten(-1, (*self.half_shape, 2))
        return torch.fft.irfft2(hermitian(torch.view_as_complex(spectra.contiguous()), w), s=(h, w), norm="ortho")

    def error_weights(self) -> None:
        """None: every component of a token weighs the same."""
