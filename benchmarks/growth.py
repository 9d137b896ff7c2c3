"""What an image costs as it grows: python benchmarks/growth.py [--output_dir .] [--threads 1] [--repeats 5]

Seconds and peak memory per image of 32 to 512 pixels at the same number of tokens for each pixel (64 tokens of 9 bits
at 32x32), with the slopes in log-log from 64 pixels up: 1 is linear in the number of pixels. Latents are random, in
batches of 512 x 512 pixels. The quantizer is everything between encoder and decoder; its training step is forward,
backward and the update of the codebook. Each size runs in a process of its own. Prints the table, and writes
growth.json and growth.png.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from memory import peak, start_peak

from fq_ldm import FQModel

SIDES = (32, 64, 128, 256, 512)
FIRST_SLOPE_SIDE = 64
PIXELS_PER_TOKEN = 16
BATCH_PIXELS = 512**2  # of all sizes the same, so that fixed costs of a step weigh alike
TASKS = {
    "tokenize": "latents to indices",
    "detokenize": "indices to latents",
    "quantizer": "training step of the quantizer",
    "model": "training step of the whole model",
}


def measure(task: str, side: int, repeats: int) -> dict:
    """Median seconds, and megabytes that the peak of the process's memory rises by, for one image."""
    torch.manual_seed(0)
    images = BATCH_PIXELS // side**2
    model = FQModel(sample_size=side, block_out_channels=(16,), num_tokens=side**2 // PIXELS_PER_TOKEN).train()
    quantizer, latents = model.quantize, torch.randn(images, 3, side, side)
    with torch.no_grad():
        indices = quantizer.nearest(latents)

    def step():
        if task == "tokenize":
            with torch.no_grad():
                quantizer.nearest(latents)
        elif task == "detokenize":
            with torch.no_grad():
                quantizer.refine(quantizer.codebook(indices))
        elif task == "quantizer":
            quantized = quantizer.quantize(latents.requires_grad_())
            (quantizer.refine(quantized.tokens).square().mean() + quantized.loss).backward()
        else:
            model.loss(latents, model(latents))[0].backward()
        model.zero_grad()
        latents.grad = None

    before, seconds = start_peak(), []
    step()
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    megabytes = (peak() - before) / 1024
    return {"seconds": statistics.median(seconds) / images, "megabytes": megabytes / images}


def slope(sides: list[int], values: list[float]) -> float:
    """Of the logarithm of the values over that of the number of pixels, by least squares."""
    x = [2 * math.log(side) for side in sides]
    return statistics.linear_regression(x, [math.log(value) for value in values]).slope


def draw(results: dict, path: Path) -> None:
    """Seconds and memory over the side of the image, in log-log."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    for axis, (name, label) in zip(
        axes, (("seconds", "seconds per image"), ("megabytes", "MB per image")), strict=True
    ):
        for task, title in TASKS.items():
            axis.loglog(SIDES, [results[task][side][name] for side in SIDES], marker="o", label=title)
        last = results["model"][SIDES[-1]][name]
        axis.loglog(SIDES, [last * (side / SIDES[-1]) ** 2 for side in SIDES], "--", color="grey", label="linear")
        axis.set(xlabel="side of the image (pixels)", ylabel=label)
        axis.set_xticks(SIDES, SIDES)
        axis.xaxis.set_minor_locator(plt.NullLocator())
    axes[1].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("."))
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--repeats", type=int, default=5, help="steps that are timed")
    parser.add_argument("--one", nargs=2, metavar=("TASK", "SIDE"), help="measure one of them in this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]), options.repeats)))
        return
    flags = ["--threads", str(options.threads), "--repeats", str(options.repeats)]
    results: dict[str, dict[int, dict]] = {task: {} for task in TASKS}
    print(f"| what | {' | '.join(f'{side} (ms, MB)' for side in SIDES)} | slopes: time, memory |")
    print("|---" * (len(SIDES) + 2) + "|")
    for task, title in TASKS.items():
        for side in SIDES:
            command = [sys.executable, __file__, *flags, "--one", task, str(side)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            results[task][side] = json.loads(output.splitlines()[-1])
        cells = [f"{1000 * r['seconds']:.2f}, {r['megabytes']:.1f}" for r in results[task].values()]
        large = [side for side in SIDES if side >= FIRST_SLOPE_SIDE]
        slopes = [slope(large, [results[task][s][name] for s in large]) for name in ("seconds", "megabytes")]
        print(f"| {title} | {' | '.join(cells)} | {slopes[0]:.2f}, {slopes[1]:.2f} |", flush=True)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "growth.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, options.output_dir / "growth.png")


if __name__ == "__main__":
    main()
