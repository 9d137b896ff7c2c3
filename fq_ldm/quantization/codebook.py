"""A codebook that keeps itself alive and decorrelated (FQ-VAE, equations 6-10).

Every training step, each entry moves towards the latent vector of the batch that lies nearest
to it, by a step that is large for entries that are seldom used (usage, equation 8) or that
repeat another entry (dependency, equations 9 and 10). Entries in good use stay where the
codebook loss of equation 1 puts them.

Everything here is float32; sums run over all processes.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

STEP_OFFSET = 1e-3  # epsilon of equation 7
KMEANS_TOKENS = 256  # per entry; more change the centroids little
SMALLEST_DEPENDENCY = 1e-6  # keeps equation 7 finite for an entry correlated with no other


def nearest_entries(tokens: torch.Tensor, entries: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Index of the entry with the smallest (weighted) squared distance to each token.

    Args:
        tokens: (..., m) float32.
        entries: (M, m) float32.
        weights: non-negative weight of each component's squared error, broadcastable to `tokens`.

    Returns:
        LongTensor (...) with values in 0 .. M-1.
    """
    if weights is None:
        # |t - e|^2 without the |t|^2 that all entries share
        cost = torch.addmm(entries.square().sum(-1), tokens.reshape(-1, tokens.shape[-1]), entries.T, alpha=-2)
    else:
        left = torch.cat([weights.expand_as(tokens), -2 * weights * tokens], dim=-1)
        cost = left.reshape(-1, left.shape[-1]) @ torch.cat([entries.square(), entries], dim=-1).T
    return cost.argmin(-1).view(tokens.shape[:-1])


def nearest_tokens(tokens: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """The anchor of equation 6: the token nearest to each entry, over all processes.

    Args:
        tokens: (n, m) float32, this process's share of the batch.
        entries: (M, m) float32, the same on all processes.

    Returns:
        (M, m) anchors, the same on all processes.
    """
    cost = torch.addmm(tokens.square().sum(-1), entries, tokens.T, alpha=-2)  # (M, n)
    cost, index = cost.min(-1)
    anchors = tokens[index]
    if not _distributed():
        return anchors
    costs = [torch.empty_like(cost) for _ in range(dist.get_world_size())]
    candidates = [torch.empty_like(anchors) for _ in costs]
    dist.all_gather(costs, cost)
    dist.all_gather(candidates, anchors.contiguous())
    best = torch.stack(costs).argmin(0)  # (M,)
    return torch.stack(candidates)[best, torch.arange(len(best), device=best.device)]


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

    def random_tokens(n):
        return tokens[torch.randperm(len(tokens), generator=generator)[:n].to(tokens.device)]

    entries = random_tokens(num_entries).clone()
    for _ in range(iterations):
        index = nearest_entries(tokens, entries, weights)
        mass = torch.ones_like(tokens) if weights is None else weights
        total = torch.zeros_like(entries).index_add_(0, index, mass)
        entries = torch.zeros_like(entries).index_add_(0, index, mass * tokens) / total
        empty = total[:, 0] == 0
        entries[empty] = random_tokens(int(empty.sum()))
    counts = torch.bincount(nearest_entries(tokens, entries, weights), minlength=num_entries).float()
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
        usage_decay: gamma of equation 8.
    """

    def __init__(self, num_vq_embeddings: int, vq_embed_dim: int, usage_decay: float = 0.99):
        super().__init__()
        self.usage_decay = usage_decay
        self.entries = nn.Parameter(torch.randn(num_vq_embeddings, vq_embed_dim))
        self.register_buffer("usage", torch.full((num_vq_embeddings,), 1 / num_vq_embeddings))

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Indices (...) -> entries (..., m)."""
        return F.embedding(indices, self.entries)

    @torch.no_grad()
    def nearest(self, tokens: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (..., m) -> indices (...) of the nearest entries; see `nearest_entries`."""
        return nearest_entries(tokens, self.entries, weights)

    @torch.no_grad()
    def initialize_(self, tokens: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Start from k-means of the tokens (n, m), and the usage from its cluster sizes."""
        chosen = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
        chosen = chosen[: KMEANS_TOKENS * len(self.entries)].to(tokens.device)
        tokens, weights = tokens[chosen], None if weights is None else weights[chosen]
        entries, counts = kmeans(tokens, len(self.entries), weights)
        self.entries.copy_(entries)
        # Were it to start at zero, equation 7 would throw every entry onto an anchor at step one.
        self.usage.copy_(counts / counts.sum())

    @torch.no_grad()
    def update_(self, tokens: torch.Tensor, indices: torch.Tensor) -> None:
        """One step of equations 6-10 with the tokens (..., m) and their entries' indices (...)."""
        counts = torch.bincount(indices.flatten(), minlength=len(self.entries)).to(self.usage)
        if _distributed():
            dist.all_reduce(counts)
        self.usage.copy_(update_usage(self.usage, counts, self.usage_decay))
        alpha = step_size(self.usage, dependency(self.entries), self.usage_decay)
        anchors = nearest_tokens(tokens.reshape(-1, tokens.shape[-1]), self.entries)
        self.entries.lerp_(anchors, alpha.unsqueeze(-1))  # equation 6


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
