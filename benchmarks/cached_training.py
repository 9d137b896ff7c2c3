"""Memory and speed of diffusion training on very many encoded images:

    python -m benchmarks.cached_training checkpoints/celeba64_codec/vqvae --images 1000000 --processes 2

Writes a dataset of that many equal images and shards of random tokens into a temporary folder, as if they had been
encoded, and trains a small UNet on them for some steps with train_ldm.py's own code. Prints a line of JSON for each
process: its resident memory in MB before the images are opened, and its peak, in which are the mapped pages that it has
read: processes share them, and the system takes them back when it needs to; and its images/s.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import torch
from PIL import Image

from fq_ldm import load_vae, train_ldm
from fq_ldm.data import load_images
from fq_ldm.diffusion.latent_cache import fingerprint, shard_paths, token_type, write_shard
from fq_ldm.options import LATENTS_FOLDER, DataConfig, LDMConfig, TrainingConfig, parse_config

HELD_OUT = 64


def flags(folder: Path, vae: str, steps: int) -> list[str]:
    """The options of the run."""
    model = load_vae(vae)
    options = {
        "dataset": folder / "images", "vae": vae, "output_dir": folder / "run", "channels": model.config.in_channels,
        "resolution": f"{model.sample_size[0]} {model.sample_size[1]}", "validation_size": HELD_OUT,
        "unet_block_out_channels": "32 32", "unet_layers_per_block": 1, "unet_attention_levels": 1,
        "max_train_steps": steps, "logging_steps": steps, "checkpointing_steps": steps, "preview_steps": steps,
        "preview_images": 1, "preview_inference_steps": 2, "report_to": "none", "lr_warmup_steps": 1,
    }  # fmt: skip
    return [word for name, value in options.items() for word in (f"--{name}", *str(value).split())]


def prepare(folder: Path, vae: str, count: int, argv: list[str]) -> None:
    """The images and their tokens."""
    model = load_vae(vae)
    Image.new("RGB", model.sample_size[::-1]).save(folder / "image.png")
    cell = {"bytes": (folder / "image.png").read_bytes(), "path": None}
    (folder / "images").mkdir()
    features = datasets.Features(image=datasets.Image())
    table = datasets.Dataset.from_dict({"image": [cell] * (count + HELD_OUT)}, features=features)
    table.to_parquet(folder / "images" / "images.parquet")

    data, ldm, _ = parse_config(argv, DataConfig, LDMConfig, TrainingConfig)
    images = load_images(data)[0]
    model.requires_grad_(False)
    key = fingerprint(model, images, ldm.target, data.random_flip)
    latents = folder / "run" / LATENTS_FOLDER
    latents.mkdir(parents=True)
    codes, tokens = model.config.num_vq_embeddings, model.config.num_tokens
    for path, part in shard_paths(latents, len(images)):
        items = torch.randint(codes, (len(part), 1, tokens), dtype=torch.int32)
        write_shard(path, items.to(token_type(codes)), key)


def memory(key: str) -> int:
    """A line of the kernel's account of this process, in MB (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) // 1024


def work(argv: list[str]) -> None:
    """In each process: train, and say what that took."""
    before = memory("VmRSS")
    train_ldm.main(argv)
    report = {"process": int(os.environ["RANK"]), "resident_before": before, "peak": memory("VmHWM")}
    print(json.dumps(report), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vae", help="folder of a trained FQ-VAE")
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a process that is to work
    options = parser.parse_args()
    if options.folder is not None:
        return work(flags(options.folder, options.vae, options.steps))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.vae, options.images, flags(folder, options.vae, options.steps))
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(options.processes), "-m"]
        command += ["benchmarks.cached_training", *sys.argv[1:], "--folder", name]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if not torch.cuda.is_available():  # or else each of several processes takes itself for the only one
            environment["ACCELERATE_USE_CPU"] = "true"
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        metrics = json.loads((folder / "run" / "metrics.json").read_text())  # of all processes, written by one
        speed = round(metrics["images_seen"] / metrics["train_seconds"], 1)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                print(json.dumps({"images": options.images, "images_per_second": speed} | json.loads(line)))


if __name__ == "__main__":
    main()
