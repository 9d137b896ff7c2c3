"""How well an FQ-VAE reconstructs a set of images."""

from collections.abc import Callable, Iterable

import torch

from .codebook import CodebookUsage
from .image import mse, psnr, ssim, to_uint8


@torch.no_grad()
def evaluate_reconstruction(
    model,
    batches: Iterable[torch.Tensor],
    train_variance: float | None = None,
    usage: CodebookUsage | None = None,
    pair_metrics: dict | None = None,
    merge: Callable[[list], list] = list,
    quantize: bool = True,
) -> dict[str, float]:
    """Means over all images of MSE, PSNR and SSIM, and the use of the codebook.

    Reconstructions are clamped and rounded to 8 bits, as a saved image is; MSE, PSNR and SSIM take values in [0, 1].

    Args:
        model: an `FQModel`; left in evaluation mode.
        batches: images (B, c, H, W) in [-1, 1].
        train_variance: variance of the training pixels in [-1, 1]; `nmse` is the MSE over it, and left out for None.
        usage: counts the tokens, for a caller who wants more of the counts than this returns.
        pair_metrics: name -> a metric such as `fidelity.LPIPS`, with `add(images, reconstructions)`, which takes uint8
            batches, and `compute(merge)`.
        merge: where several processes have batches of their own, makes one list of all of a list of each.
        quantize: reconstruct from tokens, as a codec; else from the latents as they are, as a pipeline does that does
            not quantize its samples.

    Returns:
        images, mse, nmse, psnr (dB), ssim (uniform window), ssim_gaussian; with tokens codes_used, perplexity,
        bits_per_image; and the pair metrics under their names.
    """
    model.eval()
    usage = CodebookUsage(model.config.num_vq_embeddings) if usage is None else usage
    pair_metrics = pair_metrics or {}
    sums = []  # of each batch
    for batch in batches:
        batch = batch.to(model.device)
        if quantize:
            output = model(batch)
            usage.add(output.indices)
        else:
            output = model(batch, force_not_quantize=True)
        images, reconstructions = to_uint8(batch), to_uint8(output.sample)
        pair = (reconstructions / 255, images / 255)
        values = (mse(*pair), psnr(*pair), ssim(*pair), ssim(*pair, window="gaussian"))
        sums.append((len(batch), *(value.sum().item() for value in values)))
        for metric in pair_metrics.values():
            metric.add(images, reconstructions)
    count, *totals = map(sum, zip(*merge(sums), strict=True))
    means = {name: total / count for name, total in zip(("mse", "psnr", "ssim", "ssim_gaussian"), totals, strict=True)}
    usage.counts = sum(merge([usage.counts]))
    codec = {}
    if quantize:
        bits = model.bits_per_image
        codec = {"codes_used": usage.codes_used(), "perplexity": usage.perplexity(), "bits_per_image": bits}
    return {
        "images": count,
        "mse": means["mse"],
        **({} if train_variance is None else {"nmse": means["mse"] / (train_variance / 4)}),
        "psnr": means["psnr"],
        "ssim": means["ssim"],
        "ssim_gaussian": means["ssim_gaussian"],
        **codec,
        **{name: metric.compute(merge) for name, metric in pair_metrics.items()},
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
