"""Stochastic quantization: SQ-VAE (Takida et al. 2022) and HQA (Williams et al. 2020).

Both draw an entry from a posterior over the codebook, relax the draw by a Gumbel softmax in training, and take
the most probable entry afterwards:

    q(k | z) = softmax_k( -|z - e_k|^2 / (2 sigma^2) )

SQ-VAE learns sigma^2 (its Gaussian type I) and sharpens q by itself as the reconstruction gets better; the
training loss is the evidence bound with the decoder's variance at its optimum,

    D_x / 2 log(mse) + sum_tokens [ KL(q || uniform) + |z - z_q|^2 / (2 sigma^2) ].

HQA keeps sigma fixed and pays for the expected distance, with the weights of its authors,

    mse + 1e-3 / D_x sum_tokens [ KL(q || uniform) + E_q |z - e_k|^2 / (2 sigma^2) ],

and restarts entries that nobody uses beside popular ones.

Everything here is float32.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from .codebook import QuantizedTokens, kmeans, kmeans_sample, perplexity, sample_tokens, update_usage
from .lookup import count_entries, nearest_entries, sum_over_processes

LOWEST_TEMPERATURE = 0.05  # of the Gumbel softmax: its gradient grows as one over it
HQA_LOSS_WEIGHT = 1e-3
HQA_USAGE_DECAY = 0.99
HQA_DEAD_SHARE = 0.01  # of the mean usage; entries below restart
HQA_RESTART_NOISE = 0.1  # in standard deviations of the quantization error


class StochasticCodebook(nn.Module):
    """SQ-VAE's codebook of M entries with m numbers each.

    Args:
        num_vq_embeddings: M.
        vq_embed_dim: m.
        temperature: of the Gumbel softmax at the start of training.
        temperature_decay: it falls as exp(-temperature_decay * step), to 0.05 at the lowest. The authors'
            1e-5 is made for 150,000 steps.
        data_elements: c * H * W over D * h * w, image numbers per latent number.
    """

    learn_variance = True
    start_variance = 4.0  # in mean squared quantization errors; 1 collapses the codebook before sigma has grown

    steps: torch.Tensor
    usage: torch.Tensor

    def __init__(
        self,
        num_vq_embeddings: int,
        vq_embed_dim: int,
        temperature: float = 1.0,
        temperature_decay: float = 1e-5,
        data_elements: float = 1.0,
    ):
        super().__init__()
        self.start_temperature = temperature
        self.temperature_decay = temperature_decay
        self.data_elements = data_elements
        self.entries = nn.Parameter(torch.randn(num_vq_embeddings, vq_embed_dim))
        self.log_variance = nn.Parameter(torch.zeros(()), requires_grad=self.learn_variance)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("usage", torch.full((num_vq_embeddings,), 1 / num_vq_embeddings))

    @property
    def temperature(self) -> torch.Tensor:
        """Of the Gumbel softmax, after the training steps so far."""
        return (self.start_temperature * torch.exp(-self.temperature_decay * self.steps)).clamp(min=LOWEST_TEMPERATURE)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Indices (...) -> entries (..., m)."""
        return F.embedding(indices, self.entries)

    @torch.no_grad()
    def nearest(self, tokens: torch.Tensor, weights: None = None, exclude: int | None = None) -> torch.Tensor:
        """Tokens (..., m) -> indices (...) of the most probable entries, which are the nearest."""
        return nearest_entries(tokens, self.entries, weights, exclude)

    def log_posterior(self, tokens: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
        """Tokens (..., m) -> log q(k | z) (..., M), with these entries (M, m)."""
        distance = tokens.square().sum(-1, keepdim=True) - 2 * tokens @ entries.T + entries.square().sum(-1)
        return (-distance / (2 * self.log_variance.exp())).log_softmax(-1)

    def quantize(self, tokens: torch.Tensor, weights: None = None) -> QuantizedTokens:
        """Tokens (B, U, m), float32 -> in training a relaxed draw from the posterior, else the nearest entries.

        The loss is in nats per component of the tokens. `weights` are for other codebooks: None here.
        """
        entries = self.entries.clone()  # backward needs them as they were looked up; `update_` may write over some
        log_q = self.log_posterior(tokens, entries)  # (B, U, M)
        indices = log_q.argmax(-1)
        counts = count_entries(indices, len(self.entries))
        if self.training:
            # A tensor will do, and reading it as a number would wait for a GPU.
            draw = F.gumbel_softmax(log_q, tau=self.temperature)  # type: ignore[arg-type]
            quantized = draw @ entries
            if torch.is_grad_enabled():
                self.update_(counts)
        else:
            quantized = self(indices)
        divergence = (log_q.exp() * log_q).sum(-1).mean() + torch.tensor(len(self.entries)).log()  # KL(q || uniform)
        nats = divergence + self._distortion(tokens, quantized, log_q, entries)  # per token
        return QuantizedTokens(
            tokens=quantized,
            indices=indices,
            loss=nats / tokens.shape[-1],
            perplexity=perplexity(counts),
        )

    def _distortion(
        self, tokens: torch.Tensor, quantized: torch.Tensor, log_q: torch.Tensor, entries: torch.Tensor
    ) -> torch.Tensor:
        return (tokens - quantized).square().sum(-1).mean() / (2 * self.log_variance.exp())

    def objective(self, reconstruction_loss: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        """The negative evidence bound per number of the image, from the mean squared error and the nats per latent."""
        return reconstruction_loss.log() / 2 + loss / self.data_elements

    @torch.no_grad()
    def update_(self, counts: torch.Tensor) -> None:
        """Count the step, and the use of the entries: `counts` (M,) of this process."""
        self.usage.copy_(update_usage(self.usage, sum_over_processes(counts), HQA_USAGE_DECAY))
        self.steps += 1

    @torch.no_grad()
    def initialize_(self, tokens: torch.Tensor, weights: None = None) -> None:
        """Start from k-means of the tokens (n, m), and sigma^2 in units of their mean squared error per component."""
        tokens, _ = sample_tokens(tokens, kmeans_sample(*self.entries.shape))
        entries, counts = kmeans(tokens, len(self.entries))
        self.entries.copy_(entries)
        self.usage.copy_(counts / counts.sum())
        error = (tokens - self(self.nearest(tokens))).square().mean()
        self.log_variance.copy_((self.start_variance * error).clamp(min=1e-8).log())


class HQACodebook(StochasticCodebook):
    """HQA's codebook: a fixed variance, the expected distance in the loss, restarts for unused entries."""

    learn_variance = False
    start_variance = 1.0

    def _distortion(
        self, tokens: torch.Tensor, quantized: torch.Tensor, log_q: torch.Tensor, entries: torch.Tensor
    ) -> torch.Tensor:
        # E_q |z - e|^2 from the moments of q: no (B, U, M, m) tensor.
        q = log_q.exp()
        expected = tokens.square().sum(-1) - 2 * (tokens * (q @ entries)).sum(-1)
        expected = expected + q @ entries.square().sum(-1)
        return expected.mean() / (2 * self.log_variance.exp())

    def quantize(self, tokens: torch.Tensor, weights: None = None) -> QuantizedTokens:
        """As SQ-VAE's, with the loss weighted to stand beside a mean squared error of the image."""
        quantized = super().quantize(tokens)
        quantized.loss = HQA_LOSS_WEIGHT * quantized.loss / self.data_elements
        return quantized

    def objective(self, reconstruction_loss: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        """Mean squared error plus the weighted nats."""
        return reconstruction_loss + loss

    @torch.no_grad()
    def update_(self, counts: torch.Tensor) -> None:
        super().update_(counts)
        dead = (self.usage < HQA_DEAD_SHARE / len(self.usage)).nonzero().flatten()
        if len(dead):
            source = self.usage.multinomial(len(dead), replacement=True)
            noise = HQA_RESTART_NOISE * (self.log_variance / 2).exp() * torch.randn_like(self.entries[dead])
            restarted = self.entries[source] + noise
            if dist.is_available() and dist.is_initialized():
                dist.broadcast(restarted, 0)
            self.entries[dead] = restarted
            self.usage[dead] = 1 / len(self.usage)
