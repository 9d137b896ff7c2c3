"""What an untrained model starts from: colours and latents of training images."""

from collections.abc import Callable, Iterable, Iterator

import torch


class LinearLatents:
    """The latents of an untrained model, batch by batch: its convolutions add nothing yet, so they are left out."""

    def __init__(self, linear_encode: Callable[[torch.Tensor], torch.Tensor], batches: Iterable[torch.Tensor]):
        self.linear_encode = linear_encode
        self.batches = batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in self.batches:
            yield self.linear_encode(batch)


def principal_colors(batches: Iterable[torch.Tensor], num_channels: int) -> torch.Tensor:
    """Orthonormal (D, c) map onto the principal colours of batches of images (b, c, H, W).

    With fewer latent channels than colours, the strongest are kept. With more, the colours are spread over all
    channels by a fixed orthogonal mixing, so that none starts empty.
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for images in batches:
        colors = images.double().transpose(0, 1).flatten(1)  # (c, b*H*W)
        count, total = count + colors.shape[1], total + colors.sum(1).cpu()
        products = products + (colors @ colors.T).cpu()
    mean = total / count
    covariance = products / count - torch.outer(mean, mean)
    if not covariance.isfinite().all():
        raise ValueError("a start from data needs finite images; some of these hold NaN or infinite numbers")
    principal = torch.linalg.eigh(covariance).eigenvectors.flip(1).T.float()  # (c, c), strongest first
    principal = principal * torch.where(principal.sum(1, keepdim=True) < 0, -1.0, 1.0)  # fix the sign
    if num_channels <= len(principal):
        return principal[:num_channels]
    generator = torch.Generator().manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(num_channels, len(principal), generator=generator)).Q
    return mixing @ principal
