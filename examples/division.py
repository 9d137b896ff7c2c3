"""Who makes what: python examples/division.py PIPELINE --images DATASET [--output division.png]

One picture. Above, the power of images over spatial frequency: of real images, of what their tokens hold, of what the
UNet makes, and of what the decoder paints from that; tokens and the UNet's latents are decoded by the linear map that
the decoder is built around. Below, a row of images for each.
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from tokens import linear_images

from fq_ldm import FQLDMPipeline
from fq_ldm.cards import display_scale
from fq_ldm.data import load_images, sample_images
from fq_ldm.diffusion import sampling_scheduler
from fq_ldm.metrics.samples import PowerSpectrum
from fq_ldm.options import DataConfig

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend must be chosen first)

SHOWN = 6  # images of each kind
COLORS = ("#34495e", "#2980b9", "#27ae60", "#c0392b")


@torch.no_grad()
def divide(pipeline: FQLDMPipeline, images: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    """What each part makes, (n, c, H, W) in [0, 1] but for what overshoots; samples have the seeds 0 .. n - 1.

    Args:
        pipeline: to sample from.
        images: (n, c, H, W) in [-1, 1].
        steps: of sampling.
    """
    vae, count = pipeline.vqvae, len(images)
    tokens = vae.quantize.codebook(vae.tokenize(images.to(vae.device)))
    pipeline.scheduler = sampling_scheduler(pipeline.scheduler, steps)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(count)]
    made = pipeline(count, steps, seeds, output_type="latent", pag_scale=0.0).images  # the UNet alone
    latents = vae.from_diffusion_latents(made)
    if pipeline.config.quantize_samples:
        sampled = vae.quantize.codebook(vae.quantize.nearest(latents))
    else:
        sampled = vae.quantize.split(latents)
    parts = {
        "images": images,
        "what their tokens hold": linear_images(vae, vae.quantize.refine(tokens)),
        "what the UNet makes": linear_images(vae, vae.quantize.refine(sampled)),
    }
    shown = {name: part.float().cpu() / 2 + 0.5 for name, part in parts.items()}
    return shown | {"what the decoder paints": pipeline.decode(made, seeds).cpu()}


def draw(parts: dict[str, torch.Tensor], crop: int, path: Path) -> None:
    """The spectra, with a line where the tokens end, and the images."""
    figure = plt.figure(figsize=(9, 10), layout="constrained")
    grid = figure.add_gridspec(len(parts) + 3, SHOWN)
    axis = figure.add_subplot(grid[:3, :])
    for (name, part), color in zip(parts.items(), COLORS, strict=True):
        spectrum = PowerSpectrum()
        spectrum(part)
        power = 10 * spectrum.radial().log10()
        axis.plot(range(1, len(power) + 1), power, color=color, label=name, linewidth=2)
    lowest = power.min().item()
    axis.set_ylim(lowest - 15, None)  # nothing is left of the linear decodings beyond the tokens
    axis.axvline(crop / 2, color="grey", linestyle=":", label="here the tokens end")
    axis.set_xlabel("cycles per image")
    axis.set_ylabel("power (dB)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    for row, (name, part) in enumerate(parts.items(), start=3):
        scale = display_scale(part.shape[-2])
        for column in range(SHOWN):
            cell = figure.add_subplot(grid[row, column])
            picture = part[column].clamp(0, 1).permute(1, 2, 0).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
            cell.imshow(picture.squeeze(-1), cmap="gray", vmin=0, vmax=1)
            cell.axis("off")
            if column == 0:
                cell.set_title(name, loc="left", fontsize=10, color=COLORS[row - 3])
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder or Hub repository")
    parser.add_argument("--images", required=True, help="dataset")
    parser.add_argument("--validation_split")
    parser.add_argument("--center_crop", type=int, help="of the images, as in training")
    parser.add_argument("--count", type=int, default=64, help="images that the spectra are the mean of")
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path("division.png"))
    options = parser.parse_args()
    pipeline = FQLDMPipeline.from_pretrained(options.pipeline)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    vae = pipeline.vqvae
    data = DataConfig(
        dataset=options.images,
        validation_split=options.validation_split,
        center_crop=options.center_crop,
        channels=vae.config.in_channels,
        resolution=list(vae.sample_size),
    )
    images = sample_images(load_images(data)[1], max(SHOWN, options.count), seed=0)
    if len(images) < SHOWN:
        parser.error(f"--images: {options.images} has {len(images)} held-out images: {SHOWN} are shown")
    draw(divide(pipeline, images, options.num_inference_steps), vae.diffusion_view.spectral_crop[0], options.output)
    print(options.output)


if __name__ == "__main__":
    main()
