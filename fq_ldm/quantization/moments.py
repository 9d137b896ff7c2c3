"""Means and covariances of rows that come in batches, and an orthonormal basis from them."""

from collections.abc import Callable, Iterable

import torch

Batches = Iterable[torch.Tensor]


def mean_and_variance(batches: Batches, rows: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Mean (n,) and variance (n,), float32, of the rows (b, n) that `rows` makes of each batch.

    Raises:
        ValueError: with fewer than two rows in all, where a number is not finite, or where all rows are alike.
    """
    count, total, square = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        part = rows(batch).double()  # sums of squares less a square: float32 would not do
        count, total, square = count + len(part), total + part.sum(0).cpu(), square + part.square().sum(0).cpu()
    if count < 2:
        raise ValueError(f"a start from data needs at least 2 training images, not {count}")
    mean = total / count
    variance = (square / count - mean.square()).clamp(min=0) * (count / (count - 1))
    if not variance.isfinite().all():
        raise ValueError("a start from data needs finite images; some of these hold NaN or infinite numbers")
    if not (variance > 1e-9 * (1 + mean.square())).any():
        raise ValueError("a start from data needs images that differ; all of these are alike")
    return mean.float().to(part.device), variance.float().to(part.device)


def gather(batches: Batches, rows: Callable[[torch.Tensor], torch.Tensor], most: int) -> torch.Tensor:
    """The rows (n, ...) of the first batches, `most` numbers at most but one row at least."""
    parts: list[torch.Tensor] = []
    left = most
    for batch in batches:
        part = rows(batch)
        part = part[: max(left // part[0].numel(), not parts)]
        parts.append(part)
        left -= part.numel()
        if left < part[0].numel():
            break
    return torch.cat(parts)


def shrunk_covariance(batches: Batches, rows: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, float]:
    """Covariance of rows of known mean zero, with its off-diagonal part shrunk by the least expected error.

    The sample covariance of few rows has correlations that are not there. Its off-diagonal part is shrunk by the
    intensity of Schäfer and Strimmer (2005, target D), sum of the variances of its entries over the sum of their
    squares: none for endless rows, all of it for a few.

    Args:
        batches: gone over once.
        rows: makes rows (b, n), float32, of a batch.

    Returns:
        The covariance (n, n), float32; the sample variances (n,) on its diagonal are as they are; and the intensity,
        in [0, 1].
    """
    count, covariance = 0, torch.zeros(())
    norms, fourths = 0.0, 0.0  # sums of |x|^4 and of x_i^4
    for batch in batches:
        part = rows(batch)
        squares = part.square()
        covariance = covariance.to(part) + part.T @ part
        count += len(part)
        norms += squares.sum(1).double().square().sum().item()
        fourths += squares.square().sum().double().item()
    covariance /= count
    diagonal = covariance.diagonal().clone()
    correlated = (covariance.square().sum() - diagonal.square().sum()).item()
    spread = (norms - fourths) / count - correlated  # of one row's products about their means
    intensity = min(max(spread / count / correlated, 0.0), 1.0) if correlated > 0 else 1.0
    covariance *= 1 - intensity
    covariance.diagonal().copy_(diagonal)
    return covariance, intensity


def strongest_directions(covariance: torch.Tensor, count: int) -> torch.Tensor:
    """The orthonormal eigenvectors (n, count) of the largest eigenvalues, largest first, each with its sign fixed."""
    directions = torch.linalg.eigh(covariance).eigenvectors[:, -count:].flip(1)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return directions * largest.sign()
