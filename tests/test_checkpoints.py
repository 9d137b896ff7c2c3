"""The models that come with the repository."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from fq_ldm import FQLDMPipeline, load_vae

ROOT = Path(__file__).parent.parent / "checkpoints"
BORDER = 2  # pixels, of the grid in samples.png


@pytest.fixture(scope="module", params=["celeba64", "celeba64_codec"])
def folder(request):
    return ROOT / request.param


@pytest.fixture(scope="module")
def pipeline(folder):
    pipeline = FQLDMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_they_are_small():
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) < 64e6


def test_it_is_complete(folder):
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".md", ".png"}
    card = (folder / "README.md").read_text()
    for heading in ("## Usage", "## Metrics", "## Evaluation", "## Data", "## Limits and intended use", "## Training"):
        assert heading in card
    assert "license:" in card.split("---")[1]


def test_it_divides_the_work_as_it_says(folder, pipeline):
    vae = pipeline.vqvae
    tokens, latents, snapped = {"celeba64": (192, (6, 16, 16), False), "celeba64_codec": (256, (12, 16, 16), True)}[
        folder.name
    ]
    assert vae.bits_per_image == tokens * 10 and vae.diffusion_latent_shape == latents
    assert pipeline.config.quantize_samples is snapped
    assert isinstance(pipeline.scheduler, DPMSolverMultistepScheduler)


def test_it_makes_the_samples_of_its_card(folder, pipeline):
    assert_first_samples(pipeline, folder / "samples.png")


def test_the_same_unet_makes_larger_faces():
    pipeline = FQLDMPipeline.from_pretrained(ROOT / "celeba64", vqvae=load_vae(ROOT / "celeba128"))
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.vqvae.sample_size == (128, 128)
    assert_first_samples(pipeline, ROOT.parent / "results" / "diffusion_celeba64" / "faces128.png")


def assert_first_samples(pipeline, picture):
    """Of seeds 0 and 1, in a grid of eight columns."""
    seeds = [torch.Generator().manual_seed(seed) for seed in range(2)]
    images = pipeline(num_images=2, generator=seeds, num_inference_steps=20, output_type="np").images
    grid = np.asarray(Image.open(picture)) / 255
    side = pipeline.vqvae.sample_size[0]
    for column, image in enumerate(images):
        left = BORDER + column * (side + BORDER)
        shown = grid[BORDER : BORDER + side, left : left + side]
        # Other processors round differently, which changes a token here and there.
        assert np.abs(image - shown).mean() < 0.02
        assert np.abs(image - grid[-BORDER - side : -BORDER, -BORDER - side : -BORDER]).mean() > 0.05  # another seed's
