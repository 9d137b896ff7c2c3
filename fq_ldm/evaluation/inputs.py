"""What is measured: the model, the images and the metrics that the options ask for."""

import tempfile
from pathlib import Path

import torch
from torch.utils.data import Subset

from ..data import ImageDataset
from ..distributed import processes
from ..options import PIPELINE_METRICS, VAE_METRICS, DataConfig, DataError, EvaluationConfig, UserError
from ..pipelines import load_any


def load_model(config: EvaluationConfig):
    """The FQ-VAE or the `FQLDMPipeline` in the folder or repository, on the device.

    Raises:
        DataError: if there is neither.
        UserError: if there is no such device.
    """
    folder = Path(config.model)
    if folder.is_dir() and not any((folder / name).is_file() for name in ("model_index.json", "config.json")):
        raise DataError(f"model: {folder} holds neither an FQ-VAE (config.json) nor a pipeline (model_index.json)")
    try:
        model = load_any(config.model, config.revision)
    except Exception as error:  # a foreign or damaged file fails in as many ways as there are files
        raise DataError(f"model: {folder} cannot be loaded ({' '.join(str(error).split())})") from error
    try:
        return model.to(config.device or processes().device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or a torch without CUDA
        raise UserError(f"device: {config.device} cannot be used ({str(error).splitlines()[0]})") from error


def check_output(folder: Path) -> None:
    """Raise a `DataError` if a folder cannot be written, or made: told before hours of sampling."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise DataError(f"output_dir: {folder} cannot be written ({error})") from error


def chosen_metrics(config: EvaluationConfig, is_pipeline: bool, has_classes: bool = False) -> list[str]:
    """The metrics asked for, or the usual ones, those of classes if the images have any.

    Raises:
        UserError: if one does not belong to this kind of model.
    """
    possible = PIPELINE_METRICS if is_pipeline else VAE_METRICS
    for name in config.metrics:
        if name not in possible:
            kind = "a pipeline" if is_pipeline else "an FQ-VAE"
            raise UserError(f"metrics: {name} does not fit {config.model}, {kind}: give any of {', '.join(possible)}")
    usual = (
        [name for name in PIPELINE_METRICS if name != "classes" or has_classes]
        if is_pipeline
        else VAE_METRICS[: 1 + config.quantize]
    )
    return config.metrics or list(usual)


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
