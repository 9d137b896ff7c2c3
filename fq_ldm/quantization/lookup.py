"""Which entry is nearest to a token, which token is an entry's anchor, and what all processes count together.

Everything here is float32.
"""

import torch
import torch.distributed as dist

DISTANCES = 2**20  # between tokens and entries that are in memory at a time: 4 megabytes, which caches hold


def nearest_entries(
    tokens: torch.Tensor,
    entries: torch.Tensor,
    weights: torch.Tensor | None = None,
    exclude: int | None = None,
) -> torch.Tensor:
    """Index of the entry with the smallest (weighted) squared distance to each token.

    Args:
        tokens: (..., m) float32.
        entries: (M, m) float32.
        weights: non-negative weight of each component's squared error, broadcastable to `tokens`.
        exclude: an entry that may not be chosen.

    Returns:
        LongTensor (...) with values in 0 .. M-1.
    """
    # |t - e|^2 without the |t|^2 that all entries share: left @ right + offset
    if weights is None:
        left, right, offset = -2 * tokens, entries.T, entries.square().sum(-1)
    else:
        left = torch.cat([weights.expand_as(tokens), -2 * weights * tokens], dim=-1)
        right, offset = torch.cat([entries.square(), entries], dim=-1).T, entries.new_zeros(len(entries))
    if exclude is not None:
        offset = offset.index_fill(0, torch.tensor([exclude], device=offset.device), torch.inf)
    parts = left.flatten(0, -2).split(max(DISTANCES // len(entries), 1))
    return torch.cat([torch.addmm(offset, part, right).argmin(-1) for part in parts]).view(tokens.shape[:-1])


def nearest_tokens(tokens: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """The anchor of equation 6: the token nearest to each entry, over all processes.

    Args:
        tokens: (n, m) float32, this process's share of the batch.
        entries: (M, m) float32, the same on all processes.

    Returns:
        (M, m) anchors, the same on all processes.
    """
    costs, candidates = [], []  # (M,) and (M, m) of each part of the tokens
    for part in tokens.split(max(DISTANCES // len(entries), 1)):
        cost, index = torch.addmm(part.square().sum(-1), entries, part.T, alpha=-2).min(-1)
        costs.append(cost)
        candidates.append(part[index])
    cost, anchors = _cheapest(costs, candidates)
    if not _distributed():
        return anchors
    costs = [torch.empty_like(cost) for _ in range(dist.get_world_size())]
    candidates = [torch.empty_like(anchors) for _ in costs]
    dist.all_gather(costs, cost)
    dist.all_gather(candidates, anchors.contiguous())
    return _cheapest(costs, candidates)[1]


def _cheapest(costs: list[torch.Tensor], candidates: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The least cost (M,) for each entry, and the candidate (M, m) that has it, of lists of both."""
    cost, best = torch.stack(costs).min(0)
    return cost, torch.stack(candidates)[best, torch.arange(len(best), device=best.device)]


def random_tokens(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """CVQ-VAE's random anchors: `count` tokens of the batch drawn evenly, the same on all processes. (count, m)."""
    return _from_first_process(tokens[torch.randint(len(tokens), (count,), device=tokens.device)])


def probable_tokens(tokens: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """CVQ-VAE's probabilistic anchors: a token for each entry, drawn by softmax of minus the squared distance.

    Args:
        tokens: (n, m) float32.
        entries: (M, m) float32.

    Returns:
        (M, m) anchors, the same on all processes.
    """
    closeness = torch.addmm(-tokens.square().sum(-1), entries, tokens.T, alpha=2)  # (M, n), less |e|^2
    return _from_first_process(tokens[torch.multinomial(closeness.softmax(-1), 1).squeeze(-1)])


def count_entries(indices: torch.Tensor, num_entries: int) -> torch.Tensor:
    """How often each entry was chosen in this process: indices (...) -> (M,) float32."""
    # Not bincount: on a GPU it waits for the largest index, and torch.compile breaks the graph there.
    chosen = indices.flatten()
    counts = torch.zeros(num_entries, device=indices.device)
    return counts.index_add_(0, chosen, torch.ones(len(chosen), device=indices.device))


def sum_over_processes(counts: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes, on each of them."""
    if _distributed():
        counts = counts.clone()
        dist.all_reduce(counts)
    return counts


def all_finite(tokens: torch.Tensor) -> torch.Tensor:
    """Whether no number of the tokens is NaN or infinite in any process: bool scalar, the same on all of them."""
    faults = (~tokens.isfinite()).any().int()
    if _distributed():
        dist.all_reduce(faults, dist.ReduceOp.MAX)
    return faults == 0


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _from_first_process(tensor: torch.Tensor) -> torch.Tensor:
    if _distributed():
        tensor = tensor.contiguous()
        dist.broadcast(tensor, 0)
    return tensor
