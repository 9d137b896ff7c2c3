"""Measure and show what `make quickstart` has trained: python examples/quickstart_report.py runs/quickstart

Leaves `reconstructions.png`, `samples.png` and `metrics.json` in that folder.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from digit_classifier import CONFIDENT, read_digits, train_classifier

from fq_ldm import FQLDMPipeline
from fq_ldm.cards import save_grid, save_metrics
from fq_ldm.data import load_images
from fq_ldm.diffusion import fast_scheduler
from fq_ldm.options import DataConfig

NUM_SAMPLES = 200
NUM_STEPS = 50  # of DPM-Solver++


def main(folder: Path) -> None:
    pipeline = FQLDMPipeline.from_pretrained(folder / "pipeline")
    pipeline.scheduler = fast_scheduler(pipeline.scheduler)

    print(f"generating {NUM_SAMPLES} digits")
    seeds = [torch.Generator().manual_seed(seed) for seed in range(NUM_SAMPLES)]
    samples = pipeline(NUM_SAMPLES, NUM_STEPS, seeds, output_type="pt").images
    save_grid(samples[:16], folder / "samples.png", columns=8, scale=3)
    shutil.copy(folder / "vae" / "reconstructions.png", folder)

    data = DataConfig(dataset="digits", channels=1, resolution=[28], validation_size=500)
    (train_images, train_labels), (images, labels) = (
        (torch.stack(list(part)), torch.tensor(part.table["label"])) for part in load_images(data)
    )
    network = train_classifier(train_images, train_labels)
    digits, probability = read_digits(network, images)
    real = {
        "accuracy": (digits == labels).float().mean().item(),
        "read": (probability >= CONFIDENT).float().mean().item(),
    }
    digits, probability = read_digits(network, samples * 2 - 1)
    read = probability >= CONFIDENT
    counts = torch.bincount(digits, minlength=10).tolist()

    metrics = json.loads((folder / "vae" / "metrics.json").read_text())
    report = {
        "reconstruction": metrics,
        "classifier_on_held_out_digits": real,
        "samples": {"count": NUM_SAMPLES, "read": read.float().mean().item(), "of_each_digit": counts},
    }
    save_metrics(folder, report)
    codes = f"{metrics['codes_used']} codes used, perplexity {metrics['perplexity']:.0f}"
    print(f"held-out digits: SSIM {metrics['ssim']:.4f}, PSNR {metrics['psnr']:.2f} dB, {codes}")
    print(f"classifier: {real['accuracy']:.1%} of held-out digits right, {real['read']:.1%} read with p >= {CONFIDENT}")
    print(f"samples: {report['samples']['read']:.1%} of {NUM_SAMPLES} read with p >= {CONFIDENT}")
    print("samples of each digit, 0 to 9: " + " ".join(map(str, counts)))
    print(f"pictures and metrics: {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
