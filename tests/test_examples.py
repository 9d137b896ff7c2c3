"""The example scripts, judged by the pictures they leave."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
HEIGHT, WIDTH, BORDER, SCALE = 8, 12, 2, 12  # pixels, of the grids of such small images


@pytest.fixture
def draw(pipeline, tmp_path, monkeypatch):
    """Run an example on an untrained pipeline: its cells (rows, columns, H, W, 3) uint8."""
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path / "pipeline")

    def run(name, *options):
        output = tmp_path / f"{name}.png"
        monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "pipeline"), *options, "--output", str(output)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        pixels = np.asarray(Image.open(output))[::SCALE, ::SCALE]
        rows, columns = (pixels.shape[0] - BORDER) // (HEIGHT + BORDER), (pixels.shape[1] - BORDER) // (WIDTH + BORDER)
        cells = pixels[BORDER:, BORDER:].reshape(rows, HEIGHT + BORDER, columns, WIDTH + BORDER, 3)
        return cells.transpose(0, 2, 1, 3, 4)[:, :, :HEIGHT, :WIDTH].astype(int)

    return run


def test_a_larger_grid_begins_with_the_smaller_one(draw):
    small = draw("grid", "--samples", "2", "--columns", "2", "--num_inference_steps", "2")
    large = draw("grid", "--samples", "6", "--columns", "2", "--num_inference_steps", "2")
    assert small.shape[:2] == (1, 2) and large.shape[:2] == (3, 2)
    assert np.abs(small[0] - large[0]).max() <= 1
    assert np.abs(large[0, 0] - large[0, 1]).mean() > 1
    late = draw("grid", "--samples", "2", "--columns", "2", "--num_inference_steps", "2", "--first_seed", "4")
    assert np.abs(late[0] - large[2]).max() <= 1


def test_interpolation_goes_from_one_seed_to_the_next(draw):
    cells = draw("interpolation", "--seeds", "0", "1", "2", "--images", "4", "--num_inference_steps", "2")
    assert cells.shape[:2] == (2, 4)
    assert np.abs(cells[0, -1] - cells[1, 0]).max() <= 1
    assert np.abs(cells[0, 0] - cells[0, -1]).mean() > 1


def test_a_trajectory_ends_at_the_sample(draw):
    rows = draw("trajectory", "--images", "2", "--columns", "3", "--num_inference_steps", "5")
    samples = draw("grid", "--samples", "2", "--columns", "1", "--num_inference_steps", "5")
    assert rows.shape[:2] == (2, 3)
    assert np.abs(rows[:, -1] - samples[:, 0]).max() <= 1
    assert np.abs(rows[:, 0] - samples[:, 0]).mean() > 1
