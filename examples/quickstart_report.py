"""Measure and show what `make quickstart` has trained: python examples/quickstart_report.py runs/quickstart

Leaves `reconstructions.png`, `classes.png` and `metrics.json` in that folder.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

from fq_ldm import FQLDMPipeline
from fq_ldm.cards import save_grid, save_metrics
from fq_ldm.data import load_images
from fq_ldm.diffusion import fast_scheduler
from fq_ldm.evaluation import judge_classes, make_judge
from fq_ldm.metrics import to_uint8
from fq_ldm.metrics.classifier import CONFIDENT
from fq_ldm.options import DataConfig, EvaluationConfig

OF_EACH_DIGIT = 20
NUM_STEPS = 50  # of DPM-Solver++
GUIDANCE = 1.5  # of digits that are asked for
SHOWN = 10  # of each digit, in classes.png


def generate(pipeline: FQLDMPipeline, digits: torch.Tensor | None) -> torch.Tensor:
    """Digits asked for, or as they come: (n, 1, 28, 28) in [0, 1], one seed each."""
    count = 10 * OF_EACH_DIGIT
    seeds = [torch.Generator().manual_seed(seed) for seed in range(count)]
    scale = 1.0 if digits is None else GUIDANCE
    return pipeline(count, NUM_STEPS, seeds, output_type="pt", class_labels=digits, guidance_scale=scale).images


def main(folder: Path) -> None:
    pipeline = FQLDMPipeline.from_pretrained(folder / "pipeline")
    pipeline.scheduler = fast_scheduler(pipeline.scheduler)
    data = DataConfig(dataset="digits", channels=1, resolution=[28], validation_size=500, label_column="label")
    train_images, held_out = load_images(data)
    classifier = make_judge(train_images, EvaluationConfig(), mirrored=False, device=torch.device("cpu"))
    real = classifier.judge(torch.stack(list(held_out)))
    names = held_out.class_names

    def judge(samples: torch.Tensor, asked: torch.Tensor | None) -> dict:
        judged = {"images": real, "samples": classifier.judge(to_uint8(samples * 2 - 1) / 127.5 - 1)}
        results, of_each = judge_classes(judged, held_out.labels, asked, names)
        return {"count": len(samples), **results, "of_each_class": of_each}

    asked = torch.arange(len(names)).repeat_interleave(OF_EACH_DIGIT)
    print(f"generating {len(asked)} digits that are asked for")
    samples = generate(pipeline, asked)
    rows = samples.unflatten(0, (len(names), OF_EACH_DIGIT))[:, :SHOWN].flatten(0, 1)
    save_grid(rows, folder / "classes.png", SHOWN, scale=3)
    shutil.copy(folder / "vae" / "reconstructions.png", folder)
    print(f"generating {len(asked)} digits as they come")
    report = {
        "reconstruction": json.loads((folder / "vae" / "metrics.json").read_text()),
        "guidance_scale": GUIDANCE,
        "asked_for": judge(samples, asked),
        "as_they_come": judge(generate(pipeline, None), None),
    }
    save_metrics(folder, report)
    show(report)
    print(f"pictures and metrics: {folder}")


def show(report: dict) -> None:
    """Print the report in a few lines."""
    metrics, asked, free = report["reconstruction"], report["asked_for"], report["as_they_come"]
    codes = f"{metrics['codes_used']} codes used, perplexity {metrics['perplexity']:.0f}"
    print(f"held-out digits: SSIM {metrics['ssim']:.4f}, PSNR {metrics['psnr']:.2f} dB, {codes}")
    right, read = asked["classifier_accuracy"], asked["images_read"]
    print(f"classifier: {right:.1%} of held-out digits right, {read:.1%} read with p >= {CONFIDENT}")
    print(f"asked for: {asked['agreement_read']:.1%} of {asked['count']} read as the digit asked for")
    print("of each digit, 0 to 9: " + " ".join(f"{share:.0%}" for share in asked["of_each_class"]["agreement_read"]))
    read_as = " ".join(map(str, free["of_each_class"]["samples_read_as"]))
    print(f"as they come: {free['samples_read']:.1%} of {free['count']} read, as 0 to 9: {read_as}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
