"""The model that comes with the repository."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from fq_ldm import FQLDMPipeline

FOLDER = Path(__file__).parent.parent / "checkpoints" / "celeba64"
CELL, BORDER = 64, 2  # pixels, of the grid in samples.png


@pytest.fixture(scope="module")
def pipeline():
    pipeline = FQLDMPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_it_is_small_and_complete():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".png"}
    card = (FOLDER / "README.md").read_text()
    for heading in ("## Usage", "## Metrics", "## Evaluation", "## Data", "## Limits and intended use", "## Training"):
        assert heading in card
    assert "license:" in card.split("---")[1]


def test_it_has_the_tokens_of_the_paper(pipeline):
    assert pipeline.vqvae.bits_per_image == 256 * 10
    assert pipeline.vqvae.sample_size == (64, 64)
    assert isinstance(pipeline.scheduler, DPMSolverMultistepScheduler)


def test_it_makes_the_samples_of_its_card(pipeline):
    seeds = [torch.Generator().manual_seed(seed) for seed in range(2)]
    images = pipeline(num_images=2, generator=seeds, num_inference_steps=20, output_type="np").images
    grid = np.asarray(Image.open(FOLDER / "samples.png")) / 255
    for column, image in enumerate(images):
        left = BORDER + column * (CELL + BORDER)
        shown = grid[BORDER : BORDER + CELL, left : left + CELL]
        # Other processors round differently, which changes a token here and there.
        assert np.abs(image - shown).mean() < 0.02
        assert np.abs(image - grid[-BORDER - CELL : -BORDER, -BORDER - CELL : -BORDER]).mean() > 0.05  # another seed's
