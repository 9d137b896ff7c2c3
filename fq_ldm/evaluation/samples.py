"""Measuring the samples of a pipeline."""

import math
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..cards import display_scale, save_grid
from ..data import ImageDataset, sample_images
from ..diffusion import sampling_scheduler
from ..distributed import merge, my_batches, my_share, processes
from ..metrics import to_uint8
from ..metrics.fidelity import frechet_distance, kernel_distance, precision_recall
from ..metrics.samples import PowerSpectrum, nearest_images, spectral_distance, spectral_gain
from ..options import NETWORK_METRICS, EvaluationConfig, check
from ..pipelines import FQLDMPipeline
from ..pipelines.schedules import adds_noise
from .classes import check_classes, judge_classes, labels_of, make_judge, spread_classes
from .networks import make_extractor, one_line

DEFAULT_STEPS = 50
TEMPERATURES = ("temperature", "learnt_temperature")
ATTENTION = ("pag_scale", "pag_threshold")
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
        pipeline: what is measured; it is given the scheduler for so many steps.
        images: what samples are compared with.
        train_images: where their nearest neighbours are sought, and what the classifier learns from.
        config: how many samples, and the rest.
        metrics: out of `PIPELINE_METRICS`.
        mirrored: the classifier learns from mirror images too.

    Returns:
        metrics (name -> number, or text), and arrays: "spectrum" over frequencies, "classes" over classes, each
        (name -> list).

    Raises:
        UserError: if the weights of the feature extractor are missing, there are too few images, or too many steps; if
            the classes are not those of the pipeline.
    """
    asked_steps = config.num_inference_steps or pipeline.config.num_inference_steps or DEFAULT_STEPS
    config = replace(config, num_inference_steps=asked_steps)
    steps = pipeline.scheduler.config.num_train_timesteps
    check(config.num_inference_steps <= steps, "num_inference_steps", config.num_inference_steps, f"is at most {steps}")
    check_classes(pipeline, train_images, config)
    pipeline.scheduler = sampling_scheduler(pipeline.scheduler, config.num_inference_steps)
    noisy = adds_noise(pipeline.scheduler)
    if config.learnt_temperature is None:
        config = replace(config, learnt_temperature=pipeline.own_learnt_temperature())
    for name in TEMPERATURES:
        check(getattr(config, name) == 1 or not noisy, name, getattr(config, name),
              "is for a pipeline that was saved with dpm_solver_ode, in fewer steps than those of the training: noise "
              "in each step makes that of the start forgotten")  # fmt: skip
    check(config.learnt_temperature == 1 or pipeline.vqvae.diffusion_view.has_learnt_channels, "learnt_temperature",
          config.learnt_temperature, "is for a pipeline with learnt channels")  # fmt: skip
    one_line(pipeline.own_attention_guidance, config.pag_scale, config.pag_threshold)
    network_metrics = [name for name in metrics if name in NETWORK_METRICS]
    extractor = make_extractor(config, network_metrics, pipeline.device) if network_metrics else None
    judge = None
    if "classes" in metrics and train_images.class_names:
        judge = make_judge(train_images, config, mirrored, pipeline.device)
        labels_of(images)  # one that is missing is told before an hour of sampling
    asked = None
    if pipeline.num_classes:
        asked = spread_classes(pipeline.config.class_shares, config.num_samples, config.seed)

    references = map(to_uint8, tqdm(my_batches(images, config.batch_size), desc="images"))
    shown = max(GRID_SAMPLES, config.neighbour_samples)
    spectra, kept, features, judged = {}, {}, {}, {}
    for name, batches, keep in (("images", references, 0), ("samples", generate(pipeline, config, asked), shown)):
        spectra[name], kept[name], features[name], judged[name] = look_at(batches, extractor, judge, keep)
    results = {"images": len(images), "samples": config.num_samples, **_sampling(pipeline, config)}
    arrays = {}
    grid = kept["samples"][:GRID_SAMPLES] / 255
    if processes().is_main_process:
        save_grid(grid, Path(config.output_dir) / "samples.png", 8, display_scale(grid.shape[-2]))

    for name in network_metrics:
        pair = (features["samples"][name], features["images"][name])
        if name == "fid":
            results["fid"] = one_line(frechet_distance, *pair)
        else:
            results |= one_line({"kid": kernel_distance, "prc": precision_recall}[name], *pair)
    if "spectrum" in metrics:
        results["spectral_distance_db"] = spectral_distance(spectral_gain(spectra["samples"], spectra["images"]))
        arrays["spectrum"] = {f"spectrum_of_{name}": values.tolist() for name, values in spectra.items()}
    if judge is not None:
        found, arrays["classes"] = judge_classes(judged, labels_of(images), asked, train_images.class_names)
        results |= found
    if "neighbours" in metrics:
        # Of the images any: files often lie in the order of their classes.
        some = to_uint8(sample_images(images, config.neighbour_samples, seed=0))
        queries = {"samples": kept["samples"][: config.neighbour_samples], "images": some}
        results |= compare_neighbours(queries, train_images, config)
    return results, arrays


def _sampling(pipeline: FQLDMPipeline, config: EvaluationConfig) -> dict:
    """How the samples were made, for the report."""
    scheduler = pipeline.scheduler
    made = {"scheduler": type(scheduler).__name__, "num_inference_steps": config.num_inference_steps}
    if isinstance(scheduler, DPMSolverMultistepScheduler):  # DDPM keeps these for others, and does not use them
        names = ["algorithm_type", "solver_order"]  # noise in steps, and their spacing, change every score
        if scheduler.config.use_exponential_sigmas:
            names += ["use_exponential_sigmas", "sigma_max", "sigma_min"]
        made |= {name: scheduler.config[name] for name in names if name in scheduler.config}
    made |= {name: getattr(config, name) for name in TEMPERATURES if getattr(config, name) != 1}
    scale, threshold = pipeline.own_attention_guidance(config.pag_scale, config.pag_threshold)
    if scale:
        threshold = threshold if math.isfinite(threshold) else "all"  # JSON knows no infinity
        made |= {"pag_scale": scale, "pag_threshold": threshold}
    if pipeline.num_classes:
        made["guidance_scale"] = config.guidance_scale
    return made


def look_at(batches, extractor, judge, keep: int) -> tuple:
    """One pass over batches (B, c, H, W) uint8 of this process: what all processes find.

    Returns:
        the radial spectrum, the first `keep` images (n, c, H, W) uint8, the features, where there is an extractor, and
        what the classifier says, where there is one.
    """
    spectrum, kept, features, judged = PowerSpectrum(), [], [], []
    for batch in batches:
        spectrum(batch / 255)
        kept.append(batch.cpu() if sum(map(len, kept)) < keep else batch[:0].cpu())
        if extractor is not None:
            features.append(extractor(batch))
        if judge is not None:
            said = judge.judge(batch.to(next(judge.parameters()).device) / 127.5 - 1)
            judged.append([values.cpu() for values in said])
    first = torch.cat(merge(kept))[:keep]
    found = None if extractor is None else extractor.join(merge(features))
    said = None if judge is None else [torch.cat(values) for values in zip(*merge(judged), strict=True)]
    return spectrum.radial(merge), first, found, said


def compare_neighbours(kept: dict[str, torch.Tensor], train_images: ImageDataset, config: EvaluationConfig) -> dict:
    """How near samples come to training images, mirrored or not, beside how near other images come.

    Writes `neighbours.png`.

    Args:
        kept: "samples" and "images", (n, c, H, W) uint8 each.
        train_images: where neighbours are sought.
        config: output folder and batch size.
    """
    queries = torch.cat([kept["samples"], kept["images"]]).float() / 255
    batches = DataLoader(train_images, batch_size=NEIGHBOUR_BATCH)
    batches = ((batch + 1) / 2 for batch in tqdm(batches, desc="nearest training images"))
    distances, positions = nearest_images(queries, batches)
    of_samples, of_images = distances.split([len(kept["samples"]), len(kept["images"])])

    # The samples that come nearest, above their neighbours.
    order = of_samples.argsort()[:SHOWN_NEIGHBOURS]
    neighbours = torch.stack([train_images[int(positions[i])] for i in order])
    rows = torch.cat([queries[order], (neighbours + 1) / 2])
    if processes().is_main_process:
        save_grid(rows, Path(config.output_dir) / "neighbours.png", len(order), display_scale(rows.shape[-2]))
    results = {"nearest_distance": of_samples.median().item(), "nearest_distance_smallest": of_samples.min().item()}
    if config.reference == "train":
        return results  # the images are among those that are sought
    return results | {
        "nearest_distance_of_images": of_images.median().item(),
        "nearest_distance_of_images_smallest": of_images.min().item(),
        "near_copies": int((of_samples < COPY_DISTANCE * of_images.median()).sum()),
    }


def generate(pipeline: FQLDMPipeline, config: EvaluationConfig, classes: torch.Tensor | None):
    """Yield this process's batches of samples (B, c, H, W) uint8, of classes (num_samples,) where there are any.

    Each sample has a seed of its own: none depends on the batch size or the number of processes.
    """
    pipeline.set_progress_bar_config(disable=True)
    seeds = torch.randint(2**62, (config.num_samples,), generator=torch.Generator().manual_seed(config.seed))
    options = {name: getattr(config, name) for name in (*TEMPERATURES, *ATTENTION)}
    if classes is not None:
        options |= {"guidance_scale": config.guidance_scale, "guidance_interval": config.guidance_interval}
    for part in tqdm(my_share(torch.arange(config.num_samples).split(config.batch_size)), desc="sampling"):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[part].tolist()]
        if classes is not None:
            options["class_labels"] = classes[part]
        images = pipeline(len(part), config.num_inference_steps, generators, output_type="pt", **options).images
        yield to_uint8(images * 2 - 1)
