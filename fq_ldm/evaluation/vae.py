"""Measuring an FQ-VAE or a baseline."""

import torch
from tqdm.auto import tqdm

from ..data import sample_images
from ..distributed import merge, my_batches
from ..metrics import CodebookUsage, evaluate_reconstruction, sorted_usage, unit_information
from ..metrics.samples import SpectrumOfPairs, spectral_distance
from ..options import EvaluationConfig
from .networks import load_pair_metrics, one_line


def evaluate_vae(
    model, images: torch.utils.data.Dataset, config: EvaluationConfig, metrics: list[str]
) -> tuple[dict, dict]:
    """Measure an FQ-VAE.

    Returns:
        metrics (name -> number), and arrays: "codebook" over its entries, "spectrum" over frequencies, each
        (name -> list).

    Raises:
        UserError: if a metric lacks its weights or cannot take these images.
    """
    pairs = load_pair_metrics(config, metrics, model.device)
    if "spectrum" in metrics:
        pairs["spectrum"] = SpectrumOfPairs()
    results, arrays = {"images": len(images), "quantized": config.quantize}, {"codebook": {}}
    if metrics != ["unit_information"]:
        usage = CodebookUsage(model.config.num_vq_embeddings)
        batches = tqdm(my_batches(images, config.batch_size), desc="reconstructing")
        measured = one_line(
            evaluate_reconstruction,
            model,
            batches,
            usage=usage,
            pair_metrics=pairs,
            merge=merge,
            quantize=config.quantize,
        )
        if "spectrum" in metrics:
            gain = measured.pop("spectrum")
            arrays["spectrum"] = {"gain_db": gain.tolist()}
            measured["spectral_distance_db"] = spectral_distance(gain)
            measured["spectral_deviation_largest_db"] = gain.abs().max().item()
        parts = {
            "reconstruction": ("mse", "psnr", "ssim", "ssim_gaussian"),
            "codebook": ("bits_per_image", "num_vq_embeddings", "codes_used", "perplexity"),
            "spectrum": ("spectral_distance_db", "spectral_deviation_largest_db"),
        }
        measured["num_vq_embeddings"] = model.config.num_vq_embeddings
        for name in metrics:
            results |= {key: measured[key] for key in parts.get(name, (name,)) if key in measured}
        if "codebook" in metrics:
            counts = usage.counts
            arrays["codebook"] = {"counts": counts.tolist(), "sorted_usage": sorted_usage(counts).tolist()}
    if "unit_information" in metrics:
        sample = sample_images(images, config.unit_images, config.seed)
        rise = unit_information(model, sample, config.batch_size)
        results |= {
            "unit_information_images": len(sample),
            "unit_information_mean": rise.mean().item(),
            "unit_information_max": rise.max().item(),
        }
        arrays["codebook"]["unit_information"] = rise.tolist()
    return results, arrays
