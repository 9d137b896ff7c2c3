"""Samples in a grid: python examples/grid.py PIPELINE [--samples 64] [--output grid.png]

The images of the seeds 0, 1, 2 and so on, none left out: an image has a seed of its own, so it stays the same in a
larger grid.
"""

import argparse
from pathlib import Path

import torch

from fq_ldm import FQLDMPipeline
from fq_ldm.cards import display_scale, save_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder or Hub repository")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--num_inference_steps", type=int, help="the pipeline's own number by default")
    parser.add_argument("--temperature", type=float, default=1.0, help="below 1: calmer faces, more alike")
    parser.add_argument("--learnt_temperature", type=float, help="of learnt channels; the pipeline's own by default")
    parser.add_argument("--pag_scale", type=float, help="guidance by attention; the pipeline's own by default")
    parser.add_argument("--pag_threshold", type=float, help="whom it guides: inf for all; its own by default")
    parser.add_argument("--output", type=Path, default=Path("grid.png"))
    options = parser.parse_args()
    pipeline = FQLDMPipeline.from_pretrained(options.pipeline)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    seeds = range(options.first_seed, options.first_seed + options.samples)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipeline(
        options.samples,
        options.num_inference_steps,
        generators,
        output_type="pt",
        temperature=options.temperature,
        learnt_temperature=options.learnt_temperature,
        pag_scale=options.pag_scale,
        pag_threshold=options.pag_threshold,
    ).images
    save_grid(images, options.output, options.columns, display_scale(images.shape[-2]))
    print(options.output)


if __name__ == "__main__":
    main()
