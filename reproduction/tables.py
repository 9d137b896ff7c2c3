"""From the measurements of runs to a Markdown table and a JSON file."""

import json
import os
import platform
import statistics
from pathlib import Path

import torch

from .experiments import PAPER, Experiment
from .runs import Plan

COLUMNS = {  # metric -> heading, format
    "mse": ("MSE", ".5f"),
    "nmse": ("MSE / variance", ".4f"),
    "psnr": ("PSNR (dB)", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "lpips": ("LPIPS", ".4f"),
    "rfid": ("rFID", ".2f"),
    "codes_used": ("codes used", ".0f"),
    "perplexity": ("perplexity", ".1f"),
    "unit_information_mean": ("rise in MSE per code", ".2e"),
    "bits_per_image": ("bits", ".0f"),
    "parameters": ("parameters", ",.0f"),
    "steps": ("steps", ".0f"),
    "train_seconds": ("train s", ".0f"),
    "seconds_per_epoch": ("s / epoch", ".1f"),
    "images_per_second": ("images/s", ".0f"),
    "peak_memory_mb": ("peak memory (MB)", ".0f"),
}
BEST_IS_LOWEST = {"mse", "nmse", "lpips", "rfid", "seconds_per_epoch", "peak_memory_mb"}
BEST_IS_HIGHEST = {"psnr", "ssim", "codes_used", "perplexity", "unit_information_mean", "images_per_second"}


def machine() -> str:
    """The processor, its cores and the version of PyTorch, in words."""
    if torch.cuda.is_available():
        processor = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        cores = len(os.sched_getaffinity(0))
        processor = f"{cores} core{'s' if cores > 1 else ''} of {names[0] if names else platform.machine()}"
    return f"{processor}, PyTorch {torch.__version__}"


def means(measured: list[dict]) -> tuple[dict, dict]:
    """Over seeds: the mean of each metric, and its sample standard deviation (0 for one seed)."""
    mean = {k: statistics.fmean(m[k] for m in measured) for k in COLUMNS if all(m.get(k) is not None for m in measured)}
    spread = {k: statistics.stdev(m[k] for m in measured) if len(measured) > 1 else 0.0 for k in mean}
    return mean, spread


def save_table(
    folder: Path, name: str, experiment: Experiment, plan: Plan, measured: dict[str, list[dict]], command: str
) -> str:
    """Write `table.md` and `data.json`.

    Args:
        folder: made if need be.
        name: of the experiment.
        experiment: its rows and notes.
        plan: what the runs have in common.
        measured: configuration -> the metrics of each seed.
        command: that makes this table.

    Returns:
        The text of the table.
    """
    paper = PAPER.get((name, plan.dataset), {})
    results = {row.config: means(measured[row.config]) for row in experiment.rows if row.config in measured}
    columns = [k for k in COLUMNS if all(k in mean for mean, _ in results.values())]
    given = sorted({k for numbers in paper.values() for k in numbers}, key=list(COLUMNS).index)
    best = {}
    for k in columns:
        if k in BEST_IS_LOWEST | BEST_IS_HIGHEST:
            best[k] = (min if k in BEST_IS_LOWEST else max)(mean[k] for mean, _ in results.values())

    headings = ["", *(COLUMNS[k][0] for k in columns), *(f"paper: {COLUMNS[k][0]}" for k in given)]
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for row in experiment.rows:
        if row.config not in results:
            continue
        mean, spread = results[row.config]
        cells = [row.title, *(_cell(k, mean, spread, best) for k in columns)]
        cells += [format(paper[row.config][k], COLUMNS[k][1]) if k in paper.get(row.config, {}) else "" for k in given]
        lines.append("| " + " | ".join(cells) + " |")

    images = next(iter(measured.values()))[0]["images"]
    seeds = ", ".join(map(str, plan.seeds))
    about = (
        f"{experiment.caption}, {plan.dataset}: {images} held-out images, {plan.budget:g} s of training for each run, "
        f"seed{'s' if len(plan.seeds) > 1 else ''} {seeds}, on {machine()}."
    )
    notes = [*experiment.notes]
    if given:
        notes.append(
            "The paper trains until convergence, on a GPU: its columns are what it reports, not what it ran here."
        )
    text = "\n".join(
        [f"# {about}", "", *lines, "", *(f"- {note}" for note in notes), "", "```bash", command, "```", ""]
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(text)
    data = {
        "experiment": name,
        "dataset": plan.dataset,
        "budget_seconds": plan.budget,
        "seeds": plan.seeds,
        "machine": machine(),
        "command": command,
        "rows": [
            {"title": row.title, "config": row.config, "runs": measured[row.config], "paper": paper.get(row.config, {})}
            for row in experiment.rows
            if row.config in measured
        ],
    }
    (folder / "data.json").write_text(json.dumps(data, indent=1) + "\n")
    return text


def _cell(metric: str, mean: dict, spread: dict, best: dict) -> str:
    form = COLUMNS[metric][1]
    text = format(mean[metric], form)
    if spread[metric] and metric not in ("parameters", "steps", "train_seconds", "bits_per_image"):
        text += f" ± {format(spread[metric], form)}"
    return f"**{text}**" if best.get(metric) == mean[metric] else text
