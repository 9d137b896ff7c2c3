"""What `evaluate.py` is made of: its options, the measurements and the report."""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Subset
from tqdm.auto import tqdm

from .. import FQLDMPipeline
from ..metrics import CodebookUsage, evaluate_reconstruction, sorted_usage, unit_information
from ..metrics.fidelity import (
    LPIPS,
    FeatureExtractor,
    ReconstructionFID,
)
from ..models import load_vae
from .config import DataConfig, DataError, UserError, check, option
from .data import ImageDataset, sample_images
from .share import merge, my_batches, processes

VAE_METRICS = ("reconstruction", "codebook", "lpips", "rfid", "unit_information")
NETWORK_METRICS = ("fid", "kid", "prc")  # of a feature extractor
PIPELINE_METRICS = (*NETWORK_METRICS, "spectrum", "neighbours")
PROTOCOL = {
    "mse": "values in [0, 1], reconstructions clamped and rounded to 8 bits",
    "psnr": "data range 1, of the same images",
    "ssim": "uniform 11x11 window, sample covariance, data range 1, of the same images (CVQ-VAE)",
    "ssim_gaussian": "Gaussian 11x11 window of sigma 1.5, population covariance, data range 1 (Wang et al. 2004)",
    "lpips": "VGG16, version 0.1, the same images in [-1, 1]",
    "unit_information_max": "rise of the MSE in [0, 1] when an entry's tokens go to the next nearest entry",
    "kid": "cubic kernel, 100 subsets",
    "precision": "third nearest neighbours",
    "spectral_distance_db": "root mean square over radial frequencies, samples against the compared images",
    "nearest_distance": "root mean square of pixels in [0, 1] to the nearest training image, mirrored or not",
    "near_copies": "samples nearer to a training image than half the median distance of the compared images",
}


@dataclass
class EvaluationConfig:
    """What to measure, and on what."""

    model: str = option("", "folder of a trained FQ-VAE or of a pipeline")
    output_dir: str = option("", "folder for evaluation.json and evaluation.md")
    metrics: list[str] = option(
        [],
        "for an FQ-VAE any of reconstruction and codebook (the default), lpips, rfid and unit_information; for a "
        "pipeline any of fid, kid, prc, spectrum and neighbours (all by default)",
        choices=[*VAE_METRICS, *PIPELINE_METRICS],
    )
    reference: str = option(
        "validation", "images to measure on, or to compare samples with", choices=["validation", "train"]
    )
    max_images: int | None = option(None, "measure on this many of them, chosen at random; by default on all")
    batch_size: int = option(64, "images computed at a time")
    feature_extractor: str = option(
        "inception-v3-compat", "network of rfid, fid, kid and prc, registered with torch-fidelity"
    )
    feature_extractor_weights: str | None = option(None, "file with its weights; by default they are downloaded")
    feature_extractor_module: str | None = option(
        None, "Python module to import first, which registers an extractor of yours with torch-fidelity"
    )
    lpips_weights: str | None = option(None, "file with torchvision's VGG16 weights; by default they are downloaded")
    unit_images: int = option(256, "images for unit_information, chosen at random")
    num_samples: int = option(10_000, "images that the pipeline generates")
    neighbour_samples: int = option(200, "samples whose nearest training images are looked up")
    num_inference_steps: int = option(50, "denoising steps: of DDPM if as many as in training, else of DPM-Solver++")
    seed: int = option(0, "seed of the samples and of the choice of images")
    device: str | None = option(None, "torch device; by default a GPU if there is one")

    def __post_init__(self):
        for name in (
            "max_images",
            "batch_size",
            "unit_images",
            "num_samples",
            "num_inference_steps",
            "neighbour_samples",
        ):
            value = getattr(self, name)
            check(value is None or value > 0, name, value, "must be positive")


def load_model(config: EvaluationConfig):
    """The FQ-VAE or the `FQLDMPipeline` in the folder, on the device.

    Raises:
        DataError: if there is neither.
        UserError: if there is no such device.
    """
    folder = Path(config.model)
    if not (folder / "model_index.json").is_file() and not (folder / "config.json").is_file():
        raise DataError(f"model: {folder} holds neither an FQ-VAE (config.json) nor a pipeline (model_index.json)")
    try:
        if (folder / "model_index.json").is_file():
            model = FQLDMPipeline.from_pretrained(folder)
        else:
            model = load_vae(folder)
    except Exception as error:  # a foreign or damaged file fails in as many ways as there are files
        raise DataError(f"model: {folder} cannot be loaded ({' '.join(str(error).split())})") from error
    try:
        return model.to(config.device or processes().device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or a torch without CUDA
        raise UserError(f"device: {config.device} cannot be used ({str(error).splitlines()[0]})") from error


def chosen_metrics(config: EvaluationConfig, is_pipeline: bool) -> list[str]:
    """The metrics asked for, or the usual ones.

    Raises:
        UserError: if one does not belong to this kind of model.
    """
    possible = PIPELINE_METRICS if is_pipeline else VAE_METRICS
    for name in config.metrics:
        if name not in possible:
            kind = "a pipeline" if is_pipeline else "an FQ-VAE"
            raise UserError(f"metrics: {name} does not fit {config.model}, {kind}: give any of {', '.join(possible)}")
    return config.metrics or list(PIPELINE_METRICS if is_pipeline else VAE_METRICS[:2])


def check_images(vae, data: DataConfig, path: str) -> None:
    """Raise a `UserError` if the FQ-VAE was trained for images of another shape."""
    channels, (height, width) = vae.config.in_channels, vae.sample_size
    if (data.channels, *data.size) != (channels, height, width):
        raise UserError(
            f"model: {path} takes images of {channels}x{height}x{width}, not {data.channels}x{data.size[0]}x"
            f"{data.size[1]}: give --channels {channels} --resolution {height} {width}"
        )


def choose_images(images: ImageDataset, config: EvaluationConfig) -> torch.utils.data.Dataset:
    """`max_images` of them at random, or all."""
    if config.max_images is None or config.max_images >= len(images):
        return images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))
    return Subset(images, order[: config.max_images].tolist())


def make_extractor(config: EvaluationConfig, metrics: list[str], device: torch.device) -> FeatureExtractor:
    """The network whose features "fid", "kid" and "prc" compare.

    Raises:
        UserError: if there is no such module, extractor or weights.
    """
    if config.feature_extractor_module is not None:
        try:
            importlib.import_module(config.feature_extractor_module)
        except ImportError as error:
            raise UserError(f"feature_extractor_module: cannot be imported ({error})") from error
    return one_line(
        FeatureExtractor, metrics, config.feature_extractor, config.feature_extractor_weights, device=device
    )  # fmt: skip


def load_pair_metrics(config: EvaluationConfig, metrics: list[str], device: torch.device) -> dict:
    """Those of the metrics that need a trained network, with their networks, by name.

    Load them first: nobody should wait for a training or for reconstructions to learn that a file is missing.

    Raises:
        UserError: if a network lacks its weights.
    """
    pairs = {}
    if "lpips" in metrics:
        pairs["lpips"] = one_line(LPIPS, config.lpips_weights, device=device)
    if "rfid" in metrics:
        pairs["rfid"] = ReconstructionFID(make_extractor(config, ["fid"], device))
    return pairs


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


def save_report(folder: Path, report: dict, arrays: dict) -> str:
    """Write `evaluation.json`, with the arrays, and `evaluation.md`.

    Args:
        folder: made if need be.
        report: what was measured on what; `report["metrics"]` becomes the table.
        arrays: name -> {name -> list of numbers}, for the JSON file alone.

    Returns:
        The text of `evaluation.md`.
    """
    rows = [f"| {_label(name, report)} | {_text(value)} |" for name, value in report["metrics"].items()]
    about = f"{report['model']} on {report['split']} of {report['dataset']}, {report['image_size']}"
    text = "\n".join(
        [f"{about}:", "", "| metric | value |", "|---|---|", *rows, "", "```bash", report["command"], "```"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps({**report, **arrays}, indent=2) + "\n")
    (folder / "evaluation.md").write_text(text + "\n")
    return text


def _label(name: str, report: dict) -> str:
    extractor = report["feature_extractor"]
    return {
        "mse": "MSE",
        "psnr": "PSNR (dB)",
        "ssim": "SSIM, uniform 11x11 window, data range 1",
        "ssim_gaussian": "SSIM, Gaussian 11x11 window, data range 1",
        "lpips": "LPIPS (VGG16)",
        "rfid": f"rFID ({extractor})",
        "fid": f"FID ({extractor})",
        "kid": f"KID ({extractor})",
        "kid_std": "KID, standard deviation over subsets",
        "kid_subset_size": "KID, images in a subset",
        "precision": f"precision ({extractor})",
        "recall": f"recall ({extractor})",
        "spectral_distance_db": "spectral distance (dB)",
        "nearest_distance": "distance of samples to their nearest training images, median",
        "nearest_distance_smallest": "distance of samples to their nearest training images, smallest",
        "nearest_distance_of_images": "distance of the compared images to theirs, median",
        "nearest_distance_of_images_smallest": "distance of the compared images to theirs, smallest",
        "num_vq_embeddings": "codes",
    }.get(name, name.replace("_", " "))


def _text(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def one_line(function, *args, **kwargs):
    """Call a function of `fq_ldm.metrics`; what it objects to becomes a `UserError`."""
    try:
        return function(*args, **kwargs)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
