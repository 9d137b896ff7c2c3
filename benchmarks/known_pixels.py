"""How are known pixels best kept? python benchmarks/known_pixels.py PIPELINE --images FOLDER [--samples 128]

Makes half of each held-out image anew, and its middle, at the same number of UNet evaluations: by pasting over samples
that know nothing of the image, by blending latents (the pipeline's `mask_image`), by blending twice (from the first
result with half of the noise on), and by RePaint (Lugmayr et al. 2022): every step is taken `r` times, with its noise
put back in between. Prints a Markdown table:

- error: root mean square of the made pixels against the real ones, over [0, 1]: how much they follow from the rest;
- seam: the jump between known and made pixels, in units of the jump there in real images;
- faces and confidence: what MTCNN finds, as in benchmarks/faces.py;
- distance: Fréchet distance of MTCNN's features (benchmarks/mtcnn_features.py) to those of other held-out images.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from faces import MTCNN_PROBABILITY, mtcnn_probabilities, prepare
from mtcnn_features import FaceFeatures

from fq_ldm import FQLDMPipeline
from fq_ldm.cards import save_grid
from fq_ldm.data import load_images, sample_images
from fq_ldm.metrics import to_uint8
from fq_ldm.metrics.fidelity import frechet_distance
from fq_ldm.options import DataConfig
from fq_ldm.pipelines.known_images import KnownImages

SHOWN = 8  # images of each way in the picture


def seeds(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + number) for number in range(count)]


def paste(pipeline: FQLDMPipeline, images: torch.Tensor, mask: torch.Tensor, steps: int) -> torch.Tensor:
    """Samples with the known pixels over them."""
    samples = pipeline(len(images), steps, seeds(len(images)), output_type="pt").images
    return torch.lerp(images, samples, mask)


def blend(pipeline: FQLDMPipeline, images: torch.Tensor, mask: torch.Tensor, steps: int) -> torch.Tensor:
    """What the pipeline does."""
    given = dict(image=images, mask_image=mask, output_type="pt")
    return pipeline(len(images), steps, seeds(len(images)), **given).images


def blend_twice(pipeline: FQLDMPipeline, images: torch.Tensor, mask: torch.Tensor, steps: int) -> torch.Tensor:
    """Two thirds of the evaluations first, then half of the noise on the result, and on from there."""
    first = blend(pipeline, images, mask, steps * 2 // 3)
    given = dict(image=first, mask_image=mask, strength=0.5, output_type="pt")
    return pipeline(len(images), steps * 2 // 3, seeds(len(images), 1000), **given).images


def repaint(times: int) -> Callable:
    """RePaint with every step taken so many times."""

    @torch.no_grad()
    def run(pipeline: FQLDMPipeline, images: torch.Tensor, mask: torch.Tensor, steps: int) -> torch.Tensor:
        vae, generator = pipeline.vqvae, torch.Generator().manual_seed(0)
        scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        scheduler.set_timesteps(steps // times)
        known = KnownImages(vae, images, mask, len(images), pipeline.config.quantize_samples, vae.device)

        def noise():
            return torch.randn(known.latents.shape, generator=generator)

        latents, timesteps = noise(), scheduler.timesteps
        for i, t in enumerate(timesteps):
            following = timesteps[i + 1] if i + 1 < len(timesteps) else None
            rounds = times if following is not None else 1  # nothing is put back behind the last step
            for again in range(rounds):
                prediction = pipeline.unet(latents, t).sample
                latents = scheduler.step(prediction, t, latents, generator=generator).prev_sample
                latents = known.keep_latents(latents, scheduler, following, generator)
                if again + 1 < rounds:
                    kept = scheduler.alphas_cumprod[t] / scheduler.alphas_cumprod[following]
                    latents = kept.sqrt() * latents + (1 - kept).sqrt() * noise()
        return known.keep_pixels(pipeline.decode(latents))

    return run


WAYS = {
    "pasting": paste,
    "blending (`mask_image`)": blend,
    "blending twice": blend_twice,
    **{f"RePaint, r = {times}": repaint(times) for times in (1, 2, 5, 10)},
}


def masks(side: int) -> dict[str, torch.Tensor]:
    """1 where pixels are made anew: (1, 1, side, side)."""
    half, middle = torch.zeros(1, 1, side, side), torch.zeros(1, 1, side, side)
    half[..., side // 2 :] = 1
    middle[..., side // 4 : -side // 4, side // 4 : -side // 4] = 1
    return {"right half": half, "middle": middle}


def seam(images: torch.Tensor, mask: torch.Tensor) -> float:
    """Mean absolute difference between neighbours of which one is known and one made."""
    jumps, count = 0.0, 0
    for axis in (-1, -2):
        across = (mask.diff(dim=axis) != 0).expand_as(images.diff(dim=axis))
        jumps += images.diff(dim=axis).abs()[across].sum().item()
        count += int(across.sum())
    return jumps / count


@torch.no_grad()
def features_of(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Images (n, 3, H, W) in [0, 1] -> features (n, 256)."""
    return network(to_uint8(images * 2 - 1))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder or Hub repository")
    parser.add_argument("--images", required=True, help="dataset")
    parser.add_argument("--validation_split")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--num_inference_steps", type=int, default=50, help="evaluations of the UNet for each image")
    parser.add_argument("--output", type=Path, help="picture: a row for each way, the images first")
    options = parser.parse_args()
    # Not all that is compared here can be guided as a pipeline was saved to be.
    pipeline = FQLDMPipeline.from_pretrained(options.pipeline, pag_scale=0.0)
    pipeline.set_progress_bar_config(disable=True)
    side = pipeline.vqvae.sample_size[0]
    data = DataConfig(dataset=options.images, validation_split=options.validation_split, resolution=[side])
    images = (sample_images(load_images(data)[1], 8 * options.samples, seed=0) + 1) / 2
    images, others = images[: options.samples], images[options.samples :]
    network = FaceFeatures("mtcnn-onet", ["256"])
    reference = features_of(network, others)

    def describe(made: torch.Tensor, mask: torch.Tensor) -> str:
        found = mtcnn_probabilities([prepare(image) for image in made])
        error = (((made - images) * mask).square().sum() / (mask.sum() * made.shape[0] * made.shape[1])).sqrt()
        share = sum(probability > MTCNN_PROBABILITY for probability in found) / len(found)
        distance = frechet_distance(features_of(network, made), reference)
        jump = seam(made, mask) / seam(images, mask)
        return f"{error:.3f} | {jump:.2f} | {share:.1%} | {sum(found) / len(found):.3f} | {distance:.4f}"

    rows = []
    print("| made anew | way | error | seam | faces | confidence | distance | s |\n|---|---|---|---|---|---|---|---|")
    for name, mask in masks(side).items():
        print(f"| {name} | the images themselves | {describe(images, mask)} | |", flush=True)
        rows.append(images[:SHOWN])
        for way, make in WAYS.items():
            start = time.perf_counter()
            made = make(pipeline, images, mask, options.num_inference_steps)
            seconds = time.perf_counter() - start
            print(f"| {name} | {way} | {describe(made, mask)} | {seconds:.0f} |", flush=True)
            rows.append(made[:SHOWN])
    if options.output:
        save_grid(torch.cat(rows), options.output, SHOWN, 2)


if __name__ == "__main__":
    main()
