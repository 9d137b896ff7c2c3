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
from fq_ldm.evaluation import train_judge
from fq_ldm.metrics.classifier import CONFIDENT, Classifier
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


def judge(classifier: Classifier, images: torch.Tensor, asked: torch.Tensor | None) -> dict:
    """How many digits the classifier reads, as which, and how many as the digit asked for."""
    digits, probability, _ = classifier.judge(images * 2 - 1)
    read = probability >= CONFIDENT
    report = {
        "count": len(images),
        "read": read.double().mean().item(),
        "read_as": torch.bincount(digits, minlength=10).tolist(),
    }
    if asked is not None:
        agree = (read & (digits == asked)).double()
        report["read_as_asked"] = agree.mean().item()
        report["read_as_asked_by_digit"] = [agree[asked == digit].mean().item() for digit in range(10)]
    return report


def main(folder: Path) -> None:
    pipeline = FQLDMPipeline.from_pretrained(folder / "pipeline")
    pipeline.scheduler = fast_scheduler(pipeline.scheduler)
    data = DataConfig(dataset="digits", channels=1, resolution=[28], validation_size=500, label_column="label")
    train_images, held_out = load_images(data)
    classifier = train_judge(train_images, EvaluationConfig(), mirrored=False, device=torch.device("cpu"))
    digits, probability, _ = classifier.judge(torch.stack(list(held_out)))

    asked = torch.arange(10).repeat_interleave(OF_EACH_DIGIT)
    print(f"generating {len(asked)} digits that are asked for")
    samples = generate(pipeline, asked)
    rows = samples.unflatten(0, (10, OF_EACH_DIGIT))[:, :SHOWN].flatten(0, 1)
    save_grid(rows, folder / "classes.png", SHOWN, scale=3)
    shutil.copy(folder / "vae" / "reconstructions.png", folder)
    print(f"generating {len(asked)} digits as they come")
    metrics = json.loads((folder / "vae" / "metrics.json").read_text())
    report = {
        "reconstruction": metrics,
        "classifier_on_held_out_digits": {
            "accuracy": (digits == held_out.labels).double().mean().item(),
            "read": (probability >= CONFIDENT).double().mean().item(),
        },
        "guidance_scale": GUIDANCE,
        "asked_for": judge(classifier, samples, asked),
        "as_they_come": judge(classifier, generate(pipeline, None), None),
    }
    save_metrics(folder, report)
    show(report)
    print(f"pictures and metrics: {folder}")


def show(report: dict) -> None:
    """Print the report in a few lines."""
    metrics, real = report["reconstruction"], report["classifier_on_held_out_digits"]
    codes = f"{metrics['codes_used']} codes used, perplexity {metrics['perplexity']:.0f}"
    print(f"held-out digits: SSIM {metrics['ssim']:.4f}, PSNR {metrics['psnr']:.2f} dB, {codes}")
    print(f"classifier: {real['accuracy']:.1%} of held-out digits right, {real['read']:.1%} read with p >= {CONFIDENT}")
    asked, free = report["asked_for"], report["as_they_come"]
    print(f"asked for: {asked['read_as_asked']:.1%} of {asked['count']} read as the digit asked for")
    print("of each digit, 0 to 9: " + " ".join(f"{share:.0%}" for share in asked["read_as_asked_by_digit"]))
    print(f"as they come: {free['read']:.1%} of {free['count']} read, as 0 to 9: {' '.join(map(str, free['read_as']))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
