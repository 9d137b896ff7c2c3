"""Images between two seeds: python examples/interpolation.py PIPELINE [--seeds 1 2] [--output interpolation.png]

The starting noise turns from that of one seed to that of the other; DDIM without added noise maps each to an image.
"""

import argparse
import math
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import DDIMScheduler

from fq_ldm import FQLDMPipeline
from fq_ldm.cards import display_scale, save_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder or Hub repository")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3], help="one row from each to the next")
    parser.add_argument("--images", type=int, default=9, help="in a row, both ends among them")
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--class_label", help="name of the class that all are of, where there are classes")
    parser.add_argument("--output", type=Path, default=Path("interpolation.png"))
    options = parser.parse_args()
    if len(options.seeds) < 2:
        parser.error("--seeds: give two or more")
    pipeline = FQLDMPipeline.from_pretrained(options.pipeline)
    label, names = options.class_label, pipeline.config.class_names or []
    if names and label not in names:
        parser.error(f"--class_label: give one of {', '.join(names)}")
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)

    shape = pipeline.vqvae.diffusion_latent_shape
    ends = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in options.seeds]
    angles = torch.linspace(0, math.pi / 2, options.images)
    # Independent noise is nearly orthogonal: on the quarter circle between two of it the variance stays one.
    noise = [math.cos(a) * first + math.sin(a) * second for first, second in pairwise(ends) for a in angles]
    # Guided or not by a threshold, neighbours on the way would jump: pag_scale=0.
    images = pipeline(
        len(noise), options.num_inference_steps, latents=torch.stack(noise), class_labels=label, output_type="pt",
        pag_scale=0.0,
    ).images  # fmt: skip
    save_grid(images, options.output, options.images, display_scale(images.shape[-2]))
    print(options.output)


if __name__ == "__main__":
    main()
