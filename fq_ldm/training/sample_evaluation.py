"""What `evaluate.py` measures on the samples of a pipeline."""

from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .. import FQLDMPipeline
from ..metrics import to_uint8
from ..metrics.fidelity import frechet_distance, kernel_distance, precision_recall
from ..metrics.samples import PowerSpectrum, nearest_images, spectral_distance
from .config import check
from .data import ImageDataset
from .evaluation import NETWORK_METRICS, EvaluationConfig, make_extractor, one_line
from .pictures import display_scale, save_grid

GRID_SAMPLES = 64  # in samples.png
SHOWN_NEIGHBOURS = 12  # in neighbours.png
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

    spectra = {"images": PowerSpectrum(), "samples": PowerSpectrum()}
    kept = {"images": [], "samples": []}
    wanted = max(GRID_SAMPLES, config.neighbour_samples)

    def observed(batches, name):
        for batch in batches:
            spectra[name](batch / 255)
            if sum(map(len, kept[name])) < wanted:
                kept[name].append(batch.cpu())
            yield batch

    references = DataLoader(images, batch_size=config.batch_size)
    references = observed((to_uint8(batch) for batch in tqdm(references, desc="images")), "images")
    samples = observed(generate(pipeline, config), "samples")
    results, arrays = {"images": len(images), "samples": config.num_samples}, {}
    if extractor is None:
        for batches in (references, samples):
            for _ in batches:
                pass
    else:
        references, features = extractor.extract(references), extractor.extract(samples)
    results |= {"scheduler": type(pipeline.scheduler).__name__, "num_inference_steps": config.num_inference_steps}
    kept = {name: torch.cat(batches)[:wanted] for name, batches in kept.items()}
    grid = kept["samples"][:GRID_SAMPLES] / 255
    save_grid(grid, folder / "samples.png", 8, display_scale(grid.shape[-2]))

    for name in network_metrics:
        pair = (features[name], references[name])
        if name == "fid":
            results["fid"] = one_line(frechet_distance, *pair)
        else:
            results |= one_line({"kid": kernel_distance, "prc": precision_recall}[name], *pair)
    if "spectrum" in metrics:
        radial = {name: spectrum.radial() for name, spectrum in spectra.items()}
        results["spectral_distance_db"] = spectral_distance(radial["samples"], radial["images"])
        arrays = {f"spectrum_of_{name}": values.tolist() for name, values in radial.items()}
    if "neighbours" in metrics:
        kept = {name: part[: config.neighbour_samples] for name, part in kept.items()}
        results |= compare_neighbours(kept, train_images, config, mirrored)
    return results, arrays


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
    batches = DataLoader(train_images, batch_size=512)
    batches = ((batch + 1) / 2 for batch in tqdm(batches, desc="nearest training images"))
    distances, positions = nearest_images(queries, batches, mirrored)
    of_samples, of_images = distances.split([len(kept["samples"]), len(kept["images"])])

    # The samples that come nearest, above their neighbours.
    order = of_samples.argsort()[:SHOWN_NEIGHBOURS]
    neighbours = torch.stack([train_images[int(positions[i])] for i in order])
    rows = torch.cat([queries[order], (neighbours + 1) / 2])
    save_grid(rows, Path(config.output_dir) / "neighbours.png", len(order), display_scale(rows.shape[-2]))
    return {
        "nearest_distance": of_samples.median().item(),
        "nearest_distance_smallest": of_samples.min().item(),
        "nearest_distance_of_images": of_images.median().item(),
        "nearest_distance_of_images_smallest": of_images.min().item(),
        "near_copies": int((of_samples < COPY_DISTANCE * of_images.median()).sum()),
    }


def generate(pipeline: FQLDMPipeline, config: EvaluationConfig):
    """Yield batches of samples (B, c, H, W) uint8. Each has a seed of its own: none depends on the batch size."""
    if config.num_inference_steps < pipeline.scheduler.config.num_train_timesteps:
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    seeds = torch.randint(2**62, (config.num_samples,), generator=torch.Generator().manual_seed(config.seed))
    for part in tqdm(seeds.split(config.batch_size), desc="sampling"):
        generators = [torch.Generator().manual_seed(seed) for seed in part.tolist()]
        images = pipeline(len(part), config.num_inference_steps, generators, output_type="pt").images
        yield to_uint8(images * 2 - 1)
