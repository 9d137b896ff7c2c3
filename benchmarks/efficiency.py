"""Throughput and memory of a trained FQ-VAE or baseline: python benchmarks/efficiency.py FOLDER [--batch_size 64]

Prints one line of JSON: images/s of encoding and reconstructing in evaluation mode, and the peak memory in MB: of the
GPU if there is one, else what the process grew by while it worked (Linux only).
"""

import argparse
import json
import time

import torch
from memory import peak, start_peak

from fq_ldm import load_vae

WARM_UP, BATCHES = 3, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--batch_size", type=int, default=64)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_vae(options.folder).to(device)
    images = torch.rand(options.batch_size, model.config.in_channels, *model.sample_size, device=device) * 2 - 1
    before = start_peak()

    with torch.inference_mode():
        for i in range(WARM_UP + BATCHES):
            if i == WARM_UP:
                _wait(device)
                start = time.perf_counter()
            model(images)
        _wait(device)
    speed = BATCHES * options.batch_size / (time.perf_counter() - start)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**20
    else:
        memory = (peak() - before) / 2**10
    print(json.dumps({"images_per_second": speed, "peak_memory_mb": memory}))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
