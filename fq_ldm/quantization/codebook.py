"""A codebook that keeps itself alive and decorrelated (FQ-VAE, equations 6-10).

Every training step, each entry moves towards the latent vector of the batch that lies nearest
to it, by a step that is large for entries that are seldom used (usage, equation 8) or that
repeat another entry (dependency, equations 9 and 10). Entries in good use stay where the
codebook loss of equation 1 puts them.

With the dependency left out this is the codebook of CVQ-VAE (Zheng & Vedaldi 2023), and without
anchors that of VQ-VAE (equation 1 alone).

Everything here is float32; sums run over all processes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .lookup import (
    all_finite,
    count_entries,
    nearest_entries,
    nearest_tokens,
    probable_tokens,
    random_tokens,
    sum_over_processes,
)

STEP_OFFSET = 1e-3  # epsilon of equation 7
KMEANS_TOKENS = 256  # per entry; more change the centroids little
KMEANS_NUMBERS = 2**25  # in those tokens: wide ones make do with fewer of them, but with
FEWEST_KMEANS_TOKENS = 32  # per entry
SMALLEST_DEPENDENCY = 1e-6  # keeps equation 7 finite for an entry correlated with no other
ANCHOR_SAMPLINGS = ("closest", "random", "probabilistic", "none")


@dataclass
class QuantizedTokens:
    """What a codebook's `quantize` returns.

    Attributes:
        tokens: (B, U, m) float32 codebook entries, with a gradient to the unquantized tokens in training.
        indices: (B, U) int64.
        loss: scalar, the codebook's loss, a mean over the components of the tokens (`TokenQuantizer` turns it
            into one over the elements of the latent).
        perplexity: scalar, of this batch; it grows with the batch size up to the codebook size.
    """

    tokens: torch.Tensor
    indices: torch.Tensor
    loss: torch.Tensor
    perplexity: torch.Tensor


def dependency(entries: torch.Tensor) -> torch.Tensor:
    """Equations 9 and 10: each entry's largest Pearson correlation with another one.

    Args:
        entries: (M, m) float32, m at least 2.

    Returns:
        (M,) in (0, 1]; negative correlations count as (nearly) none.
    """
    centred = F.normalize(entries - entries.mean(-1, keepdim=True), dim=-1)
    correlation = centred @ centred.T
    correlation.fill_diagonal_(-1)
    return correlation.max(-1).values.clamp(SMALLEST_DEPENDENCY, 1)


def update_usage(usage: torch.Tensor, counts: torch.Tensor, decay: float) -> torch.Tensor:
    """Equation 8: the running share of tokens that each entry receives. (M,), (M,) -> (M,)."""
    return decay * usage + (1 - decay) * counts / counts.sum()


def step_size(usage: torch.Tensor, correlation: torch.Tensor, decay: float) -> torch.Tensor:
    """Equation 7: how far each entry moves towards its anchor, in (0, 1).

    Args:
        usage: (M,) running shares of equation 8, which sum to 1.
        correlation: (M,) dependencies of equation 10.
        decay: gamma of equation 8.
    """
    return torch.exp(-usage / correlation * len(usage) * 10 / (1 - decay) - STEP_OFFSET)


def kmeans(
    tokens: torch.Tensor, num_entries: int, weights: torch.Tensor | None = None, iterations: int = 20
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lloyd's algorithm on (n, m) tokens; an empty cluster restarts at a random token.

    Args:
        tokens: (n, m) float32 with n at least `num_entries`.
        num_entries: M.
        weights: (n, m) weight of each component's squared error, or None for ones.
        iterations: number of assignment and averaging rounds.

    Returns:
        The centroids (M, m) and the number of tokens of each (M,), float32.

    Raises:
        ValueError: if there are fewer tokens than entries.
    """
    if len(tokens) < num_entries:
        raise ValueError(
            f"k-means start: {len(tokens)} tokens cannot fill {num_entries} codebook entries; use more images"
        )
    # A generator of its own: the start must not depend on what else has drawn random numbers.
    generator = torch.Generator().manual_seed(0)

    def pick(n):
        return tokens[torch.randperm(len(tokens), generator=generator)[:n].to(tokens.device)]

    entries = pick(num_entries).clone()
    for _ in range(iterations):
        index = nearest_entries(tokens, entries, weights)
        mass = torch.ones_like(tokens) if weights is None else weights
        total = torch.zeros_like(entries).index_add_(0, index, mass)
        entries = torch.zeros_like(entries).index_add_(0, index, mass * tokens) / total
        empty = total[:, 0] == 0
        entries[empty] = pick(int(empty.sum()))
    counts = count_entries(nearest_entries(tokens, entries, weights), num_entries)
    return entries, counts


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of the entries' shares: 1 when one entry takes all, M when all share alike."""
    share = counts.float() / counts.sum()
    return torch.exp(-torch.xlogy(share, share).sum())


class Codebook(nn.Module):
    """M entries of m numbers, with the running statistics that equations 6-10 need.

    Args:
        num_vq_embeddings: M.
        vq_embed_dim: m, at least 2 (a correlation needs two components).
        commitment_weight: beta of equation 1.
        usage_decay: gamma of equation 8.
        anchors: how equation 6 picks the anchor of an entry: "closest" (the paper), "random" or
            "probabilistic" (both CVQ-VAE's), or "none" for a codebook that learns by equation 1 alone.
        dependency: let correlated entries move more (equations 9 and 10); without it delta is 1, CVQ-VAE's rule.

    Raises:
        ValueError: for an unknown anchor sampling, or m less than 2.
    """

    usage: torch.Tensor

    def __init__(
        self,
        num_vq_embeddings: int,
        vq_embed_dim: int,
        commitment_weight: float = 0.5,
        usage_decay: float = 0.99,
        anchors: str = "closest",
        dependency: bool = True,
    ):
        super().__init__()
        if vq_embed_dim < 2:
            raise ValueError("vq_embed_dim must be at least 2: the dependency of two entries is a correlation")
        if anchors not in ANCHOR_SAMPLINGS:
            raise ValueError(f"anchors must be one of {', '.join(ANCHOR_SAMPLINGS)}, not {anchors}")
        self.commitment_weight = commitment_weight
        self.usage_decay = usage_decay
        self.anchors = anchors
        self.dependency = dependency
        self.entries = nn.Parameter(torch.randn(num_vq_embeddings, vq_embed_dim))
        self.register_buffer("usage", torch.full((num_vq_embeddings,), 1 / num_vq_embeddings))

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Indices (...) -> entries (..., m)."""
        return F.embedding(indices, self.entries)

    @torch.no_grad()
    def nearest(
        self, tokens: torch.Tensor, weights: torch.Tensor | None = None, exclude: int | None = None
    ) -> torch.Tensor:
        """Tokens (..., m) -> indices (...) of the nearest entries; see `nearest_entries`."""
        return nearest_entries(tokens, self.entries, weights, exclude)

    def quantize(self, tokens: torch.Tensor, weights: torch.Tensor | None = None) -> QuantizedTokens:
        """Tokens (B, U, m) -> their nearest entries and the loss of equation 1; updates the codebook in training.

        Args:
            tokens: float32.
            weights: of each component's squared error, in the lookup and in the loss; broadcastable to `tokens`.
        """
        indices = self.nearest(tokens, weights)
        counts = count_entries(indices, len(self.entries))
        entries = self(indices)
        codebook_loss = (entries - tokens.detach()).square()
        commitment_loss = (entries.detach() - tokens).square()
        loss = codebook_loss + self.commitment_weight * commitment_loss
        if self.training and torch.is_grad_enabled():
            self.update_(tokens.detach(), counts)
        return QuantizedTokens(
            tokens=entries.detach() + (tokens - tokens.detach()),  # straight-through; the value is the entry's
            indices=indices,
            loss=(loss if weights is None else weights * loss).mean(),
            perplexity=perplexity(counts),
        )

    def objective(self, reconstruction_loss: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        """The training loss of the whole model (equation 1), from its mean squared error and this codebook's loss."""
        return reconstruction_loss + loss

    @torch.no_grad()
    def initialize_(self, tokens: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Start from k-means of the tokens (n, m), and the usage from its cluster sizes."""
        tokens, weights = sample_tokens(tokens, kmeans_sample(*self.entries.shape), weights)
        entries, counts = kmeans(tokens, len(self.entries), weights)
        self.entries.copy_(entries)
        # Were it to start at zero, equation 7 would throw every entry onto an anchor at step one.
        self.usage.copy_(counts / counts.sum())

    @torch.no_grad()
    def update_(self, tokens: torch.Tensor, counts: torch.Tensor) -> None:
        """One step of equations 6-10 with this process's tokens (..., m), and how many chose each entry (M,).

        Tokens that are not finite, in any process, leave the codebook as it is.
        """
        finite = all_finite(tokens)
        usage = update_usage(self.usage, sum_over_processes(counts), self.usage_decay)
        self.usage.copy_(torch.where(finite, usage, self.usage))
        if self.anchors == "none":
            return
        # Zeros instead of a batch that is not used: multinomial accepts no weight that is not finite.
        tokens = torch.where(finite, tokens, 0).reshape(-1, tokens.shape[-1])
        if self.anchors == "closest":
            anchors = nearest_tokens(tokens, self.entries)
        elif self.anchors == "random":
            anchors = random_tokens(tokens, len(self.entries))
        else:
            anchors = probable_tokens(tokens, self.entries)
        delta = dependency(self.entries) if self.dependency else torch.ones_like(self.usage)
        alpha = step_size(self.usage, delta, self.usage_decay)
        moved = torch.lerp(self.entries, anchors, alpha.unsqueeze(-1))  # equation 6
        self.entries.copy_(torch.where(finite, moved, self.entries))


def kmeans_sample(num_entries: int, token_dim: int) -> int:
    """How many tokens k-means is worth."""
    affordable = max(KMEANS_NUMBERS // token_dim, FEWEST_KMEANS_TOKENS * num_entries)
    return min(KMEANS_TOKENS * num_entries, affordable)


def sample_tokens(
    tokens: torch.Tensor, count: int, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """At most `count` of the tokens (n, m), and their weights, always the same choice."""
    chosen = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[:count].to(tokens.device)
    return tokens[chosen], None if weights is None else weights[chosen]
