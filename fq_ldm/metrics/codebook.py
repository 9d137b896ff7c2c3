"""What the entries of a codebook do, over a whole split; one batch alone would depend on its size."""

import torch
from tqdm.auto import tqdm

from ..quantization.codebook import perplexity
from .image import mse


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


def sorted_usage(counts: torch.Tensor) -> torch.Tensor:
    """Shares of the tokens that the entries receive, largest first (FQ-VAE, figure 3): (M,) -> (M,) float64."""
    return (counts.double() / counts.sum()).sort(descending=True).values


@torch.no_grad()
def unit_information(model, images: torch.Tensor, batch_size: int = 64, progress: bool = True) -> torch.Tensor:
    """What each codebook entry is worth: the rise of the error when it is taken out (FQ-VAE, figure 4).

    Tokens of the entry go to the next nearest one. The error is the mean squared one over all images and pixels in
    [0, 1], with reconstructions clamped to that range. It takes one pass over the images for every entry they use,
    restricted to the images that use it.

    Args:
        model: an `FQModel` in evaluation mode.
        images: (n, c, H, W) in [-1, 1].
        batch_size: images coded at a time.
        progress: show a bar.

    Returns:
        (M,) float64; 0 for entries that no image uses, below 0 where another entry does better.
    """

    def errors(batch, tokens):
        reconstructions = model.detokenize(tokens).float()
        return mse((reconstructions.clamp(-1, 1) + 1) / 2, (batch + 1) / 2).double().cpu()

    parts, base_parts = [], []
    for batch in images.split(batch_size):
        batch = batch.to(model.device)
        parts.append(model.tokenize(batch))
        base_parts.append(errors(batch, parts[-1]))
    tokens, base = torch.cat(parts).cpu(), torch.cat(base_parts)

    rise = torch.zeros(model.config.num_vq_embeddings, dtype=torch.float64)
    for k in tqdm(tokens.unique().tolist(), desc="taking codes out", disable=not progress):
        for users in (tokens == k).any(1).nonzero().flatten().split(batch_size):
            batch = images[users].to(model.device)
            rise[k] += (errors(batch, model.tokenize(batch, exclude=k)) - base[users]).sum()
    return rise / len(images)
