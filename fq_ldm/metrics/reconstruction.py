"""How well an FQ-VAE reconstructs a set of images."""

from collections.abc import Iterable

import torch

from .codebook import CodebookUsage
from .image import mse, psnr, ssim


@torch.no_grad()
def evaluate_reconstruction(model, batches: Iterable[torch.Tensor], train_variance: float) -> dict[str, float]:
    """Means over all images of MSE, PSNR and SSIM, and the use of the codebook.

    Reconstructions are clamped to the range of images; MSE, PSNR and SSIM take values in [0, 1].

    Args:
        model: an `FQModel`; left in evaluation mode.
        batches: images (B, c, H, W) in [-1, 1].
        train_variance: variance of the training pixels in [-1, 1]; `nmse` is the MSE over it.

    Returns:
        images, mse, nmse, psnr (dB), ssim, codes_used, perplexity, bits_per_image.
    """
    model.eval()
    usage = CodebookUsage(model.config.num_vq_embeddings)
    totals, count = {"mse": 0.0, "psnr": 0.0, "ssim": 0.0}, 0
    for batch in batches:
        batch = batch.to(model.device)
        output = model(batch)
        usage.add(output.indices)
        pair = ((output.sample.float().clamp(-1, 1) + 1) / 2, (batch + 1) / 2)
        for name, metric in (("mse", mse), ("psnr", psnr), ("ssim", ssim)):
            totals[name] += metric(*pair).sum().item()
        count += len(batch)
    means = {name: total / count for name, total in totals.items()}
    return {
        "images": count,
        "mse": means["mse"],
        "nmse": means["mse"] / (train_variance / 4),
        "psnr": means["psnr"],
        "ssim": means["ssim"],
        "codes_used": usage.codes_used(),
        "perplexity": usage.perplexity(),
        "bits_per_image": model.bits_per_image,
    }


def pixel_variance(batches: Iterable[torch.Tensor]) -> float:
    """Variance of all pixels and channels of the batches, around their common mean."""
    count, total, squares = 0, 0.0, 0.0
    for batch in batches:
        batch = batch.double()
        count += batch.numel()
        total += batch.sum().item()
        squares += batch.square().sum().item()
    return squares / count - (total / count) ** 2
