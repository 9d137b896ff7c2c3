"""How a codebook is used over a whole split; one batch alone would depend on its size."""

import torch

from ..quantization.codebook import perplexity


class CodebookUsage:
    """Counts how often each of M entries is chosen.

    Args:
        num_vq_embeddings: M.
    """

    def __init__(self, num_vq_embeddings: int):
        self.counts = torch.zeros(num_vq_embeddings, dtype=torch.int64)

    def add(self, indices: torch.Tensor) -> None:
        """Count the indices of any shape."""
        self.counts += torch.bincount(indices.flatten(), minlength=len(self.counts)).cpu()

    def codes_used(self) -> int:
        """Entries chosen at least once."""
        return int((self.counts > 0).sum())

    def perplexity(self) -> float:
        """exp of the entropy of the shares: from 1 to M."""
        return perplexity(self.counts).item()
