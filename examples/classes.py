"""A grid of classes: python examples/classes.py PIPELINE [--columns 10] [--guidance_scale 1] [--output classes.png]

One class a row, one seed a column: noise that begins alike becomes another class in every row.
"""

import argparse
from pathlib import Path

import torch

from fq_ldm import FQLDMPipeline
from fq_ldm.cards import display_scale, save_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder or Hub repository of a pipeline with classes")
    parser.add_argument("--classes", nargs="+", help="names of some; all by default")
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--num_inference_steps", type=int, help="the pipeline's own number by default")
    parser.add_argument("--output", type=Path, default=Path("classes.png"))
    options = parser.parse_args()
    pipeline = FQLDMPipeline.from_pretrained(options.pipeline)
    if not pipeline.num_classes:
        parser.error(f"{options.pipeline} knows no classes: it was trained without label_column")
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    names = options.classes or pipeline.config.class_names
    generators = [torch.Generator().manual_seed(seed) for _ in names for seed in range(options.columns)]
    labels = [name for name in names for _ in range(options.columns)]
    images = pipeline(
        len(labels), options.num_inference_steps, generators, output_type="pt", class_labels=labels,
        guidance_scale=options.guidance_scale,
    ).images  # fmt: skip
    save_grid(images, options.output, options.columns, display_scale(images.shape[-2]))
    print(options.output)


if __name__ == "__main__":
    main()
