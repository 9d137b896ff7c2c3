"""Denoising step by step (Fig. 6 of the paper): python examples/trajectory.py PIPELINE [--output trajectory.png]

Each row is one image; its columns decode the latents after ever more steps.
"""

import argparse
from pathlib import Path

import torch

from fq_ldm import FQLDMPipeline
from fq_ldm.cards import display_scale, save_grid
from fq_ldm.diffusion import sampling_scheduler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder or Hub repository")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--columns", type=int, default=10, help="moments shown, the last step among them")
    parser.add_argument("--num_inference_steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("trajectory.png"))
    options = parser.parse_args()
    pipeline = FQLDMPipeline.from_pretrained(options.pipeline)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.scheduler = sampling_scheduler(pipeline.scheduler, options.num_inference_steps)

    shown = set(torch.linspace(0, options.num_inference_steps - 1, options.columns).round().int().tolist())
    moments = []

    def keep(pipe, step, timestep, tensors):
        if step in shown:
            moments.append(pipe.decode(tensors["latents"]))
        return {}

    generators = [torch.Generator().manual_seed(options.seed + i) for i in range(options.images)]
    how = {"callback_on_step_end": keep, "output_type": "pt", "pag_scale": 0.0}  # the UNet alone
    pipeline(options.images, options.num_inference_steps, generators, **how)
    images = torch.stack(moments, dim=1).flatten(0, 1)  # image by image, moment by moment
    save_grid(images, options.output, len(moments), display_scale(images.shape[-2]))
    print(options.output)


if __name__ == "__main__":
    main()
