"""Measuring the samples of a pipeline."""

from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..cards import display_scale, save_grid
from ..data import ImageDataset
from ..diffusion import sampling_scheduler
from ..distributed import merge, my_batches, my_share, processes
from ..metrics import to_uint8
from ..metrics.fidelity import frechet_distance, kernel_distance, precision_recall
from ..metrics.samples import PowerSpectrum, nearest_images, spectral_distance
from ..options import NETWORK_METRICS, EvaluationConfig, check
from ..pipelines import FQLDMPipeline
from .networks import make_extractor, one_line

GRID_SAMPLES = 64  # in samples.png
SHOWN_NEIGHBOURS = 12  # in neighbours.png
NEIGHBOUR_BATCH = 512  # training images at a time
COPY_DISTANCE = 0.5  # of the median distance of images that the model has not seen


def evaluate_pipeline(
    pipeline: FQLDMPipeline,
    images: torch.utils.data.Dataset,
    train_images: ImageDataset,
    config: EvaluationConfig,
    metrics: list[str],
    mirrored: bool,
) -> tuple[dict, dict]:
    """Measure samples of a pipeline against images; writes `samples.png` and `neighbours.png`.

    Args:
        pipeline: what is measured.
        images: what samples are compared with.
        train_images: where their nearest neighbours are sought.
        config: how many samples, and the rest.
        metrics: out of `PIPELINE_METRICS`.
        mirrored: the model was trained on mirror images too.

    Returns:
        metrics (name -> number, or text), and arrays over frequencies (name -> list).

    Raises:
        UserError: if the weights of the feature extractor are missing, there are too few images, or too many steps.
    """
    steps = pipeline.scheduler.config.num_train_timesteps
    check(config.num_inference_steps <= steps, "num_inference_steps", config.num_inference_steps, f"is at most {steps}")
    network_metrics = [name for name in metrics if name in NETWORK_METRICS]
    extractor = make_extractor(config, network_metrics, pipeline.device) if network_metrics else None
    folder = Path(config.output_dir)

    references = map(to_uint8, tqdm(my_batches(images, config.batch_size), desc="images"))
    spectra, kept, features = {}, {}, {}
    for name, batches in (("images", references), ("samples", generate(pipeline, config))):
        spectra[name], kept[name], features[name] = _look_at(batches, extractor, config)
    results = {
        "images": len(images),
        "samples": config.num_samples,
        "scheduler": type(pipeline.scheduler).__name__,
        "num_inference_steps": config.num_inference_steps,
    }
    if "algorithm_type" in pipeline.scheduler.config:  # of DPM-Solver: whether it adds noise changes every score
        results["algorithm_type"] = pipeline.scheduler.config.algorithm_type
    arrays = {}
    grid = kept["samples"][:GRID_SAMPLES] / 255
    if processes().is_main_process:
        save_grid(grid, folder / "samples.png", 8, display_scale(grid.shape[-2]))

    for name in network_metrics:
        pair = (features["samples"][name], features["images"][name])
        if name == "fid":
            results["fid"] = one_line(frechet_distance, *pair)
        else:
            results |= one_line({"kid": kernel_distance, "prc": precision_recall}[name], *pair)
    if "spectrum" in metrics:
        results["spectral_distance_db"] = spectral_distance(spectra["samples"], spectra["images"])
        arrays = {f"spectrum_of_{name}": values.tolist() for name, values in spectra.items()}
    if "neighbours" in metrics:
        kept = {name: part[: config.neighbour_samples] for name, part in kept.items()}
        results |= compare_neighbours(kept, train_images, config, mirrored)
    return results, arrays


def _look_at(batches, extractor, config: EvaluationConfig) -> tuple[torch.Tensor, torch.Tensor, dict | None]:
    """One pass over batches (B, c, H, W) uint8 of this process: what all processes find.

    Returns:
        the radial spectrum, the first images (n, c, H, W) uint8, and the features, where there is an extractor.
    """
    wanted = max(GRID_SAMPLES, config.neighbour_samples)
    spectrum, kept, features = PowerSpectrum(), [], []
    for batch in batches:
        spectrum(batch / 255)
        kept.append(batch.cpu() if sum(map(len, kept)) < wanted else batch[:0].cpu())
        if extractor is not None:
            features.append(extractor(batch))
    first = torch.cat(merge(kept))[:wanted]
    return spectrum.radial(merge), first, None if extractor is None else extractor.join(merge(features))


def compare_neighbours(
    kept: dict[str, torch.Tensor], train_images: ImageDataset, config: EvaluationConfig, mirrored: bool
) -> dict:
    """How near samples come to training images, beside how near other images come; writes `neighbours.png`.

    Args:
        kept: "samples" and "images", (n, c, H, W) uint8 each.
        train_images: where neighbours are sought.
        config: output folder and batch size.
        mirrored: among mirror images too.
    """
    queries = torch.cat([kept["samples"], kept["images"]]).float() / 255
    batches = DataLoader(train_images, batch_size=NEIGHBOUR_BATCH)
    batches = ((batch + 1) / 2 for batch in tqdm(batches, desc="nearest training images"))
    distances, positions = nearest_images(queries, batches, mirrored)
    of_samples, of_images = distances.split([len(kept["samples"]), len(kept["images"])])

    # The samples that come nearest, above their neighbours.
    order = of_samples.argsort()[:SHOWN_NEIGHBOURS]
    neighbours = torch.stack([train_images[int(positions[i])] for i in order])
    rows = torch.cat([queries[order], (neighbours + 1) / 2])
    if processes().is_main_process:
        save_grid(rows, Path(config.output_dir) / "neighbours.png", len(order), display_scale(rows.shape[-2]))
    return {
        "nearest_distance": of_samples.median().item(),
        "nearest_distance_smallest": of_samples.min().item(),
        "nearest_distance_of_images": of_images.median().item(),
        "nearest_distance_of_images_smallest": of_images.min().item(),
        "near_copies": int((of_samples < COPY_DISTANCE * of_images.median()).sum()),
    }


def generate(pipeline: FQLDMPipeline, config: EvaluationConfig):
    """Yield this process's batches of samples (B, c, H, W) uint8.

    Each sample has a seed of its own: none depends on the batch size or the number of processes.
    """
    pipeline.scheduler = sampling_scheduler(pipeline.scheduler, config.num_inference_steps)
    pipeline.set_progress_bar_config(disable=True)
    seeds = torch.randint(2**62, (config.num_samples,), generator=torch.Generator().manual_seed(config.seed))
    for part in tqdm(my_share(seeds.split(config.batch_size)), desc="sampling"):
        generators = [torch.Generator().manual_seed(seed) for seed in part.tolist()]
        images = pipeline(len(part), config.num_inference_steps, generators, output_type="pt").images
        yield to_uint8(images * 2 - 1)
