"""Measuring an FQ-VAE or a baseline."""

import torch
from tqdm.auto import tqdm

from ..data import sample_images
from ..distributed import merge, my_batches
from ..metrics import CodebookUsage, evaluate_reconstruction, sorted_usage, unit_information
from ..options import EvaluationConfig
from .networks import load_pair_metrics, one_line


def evaluate_vae(
    model, images: torch.utils.data.Dataset, config: EvaluationConfig, metrics: list[str]
) -> tuple[dict, dict]:
    """Measure an FQ-VAE.

    Returns:
        metrics (name -> number), and arrays over the codebook entries (name -> list).

    Raises:
        UserError: if a metric lacks its weights or cannot take these images.
    """
    pairs = load_pair_metrics(config, metrics, model.device)
    results, arrays = {"images": len(images)}, {}
    if metrics != ["unit_information"]:
        usage = CodebookUsage(model.config.num_vq_embeddings)
        batches = tqdm(my_batches(images, config.batch_size), desc="reconstructing")
        measured = one_line(evaluate_reconstruction, model, batches, usage=usage, pair_metrics=pairs, merge=merge)
        parts = {
            "reconstruction": ("mse", "psnr", "ssim", "ssim_gaussian"),
            "codebook": ("bits_per_image", "num_vq_embeddings", "codes_used", "perplexity"),
        }
        measured["num_vq_embeddings"] = model.config.num_vq_embeddings
        for name in metrics:
            results |= {key: measured[key] for key in parts.get(name, (name,)) if key in measured}
        if "codebook" in metrics:
            arrays = {"counts": usage.counts.tolist(), "sorted_usage": sorted_usage(usage.counts).tolist()}
    if "unit_information" in metrics:
        sample = sample_images(images, config.unit_images, config.seed)
        rise = unit_information(model, sample, config.batch_size)
        results |= {
            "unit_information_images": len(sample),
            "unit_information_mean": rise.mean().item(),
            "unit_information_max": rise.max().item(),
        }
        arrays["unit_information"] = rise.tolist()
    return results, arrays
