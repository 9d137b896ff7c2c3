"""The example scripts, judged by the pictures they leave."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, smooth_images, untrained_pipeline
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from test_painter import PAINTING, awake

from fq_ldm import FQLDMPipeline, FQModel

EXAMPLES = Path(__file__).parent.parent / "examples"
HEIGHT, WIDTH, BORDER, SCALE = 8, 12, 2, 12  # pixels, of the grids of such small images


@pytest.fixture
def example(monkeypatch):
    """Run a script of the examples with arguments."""

    def run(name, *argv):
        monkeypatch.setattr(sys, "argv", [name, *argv])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")

    return run


@pytest.fixture
def draw(pipeline, tmp_path, example):
    """Run an example on an untrained pipeline: its cells (rows, columns, H, W, 3) uint8."""
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path / "pipeline")

    def run(name, *options):
        output = tmp_path / f"{name}.png"
        example(name, str(tmp_path / "pipeline"), *options, "--output", str(output))
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


def test_interpolation_stays_in_a_class(model, tmp_path, example, capsys):
    untrained_pipeline(model, 20, ["ant", "bee"]).save_pretrained(tmp_path / "pipeline")
    argv = [str(tmp_path / "pipeline"), "--images", "2", "--seeds", "0", "1", "--num_inference_steps", "2"]
    pictures = []
    for i in range(2):  # classes that were drawn would differ
        example("interpolation", *argv, "--class_label", "bee", "--output", str(tmp_path / f"{i}.png"))
        pictures.append((tmp_path / f"{i}.png").read_bytes())
    assert pictures[0] == pictures[1]
    with pytest.raises(SystemExit):
        example("interpolation", *argv)
    assert "--class_label: give one of ant, bee" in capsys.readouterr().err


def test_a_trajectory_ends_at_the_sample(draw):
    rows = draw("trajectory", "--images", "2", "--columns", "3", "--num_inference_steps", "5")
    samples = draw("grid", "--samples", "2", "--columns", "1", "--num_inference_steps", "5")
    assert rows.shape[:2] == (2, 3)
    assert np.abs(rows[:, -1] - samples[:, 0]).max() <= 1
    assert np.abs(rows[:, 0] - samples[:, 0]).mean() > 1


def test_the_division_of_work(pipeline, images, tmp_path, monkeypatch):
    """Parts that are linear hold no frequency that tokens do not hold; the last part is what the pipeline samples."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    names = runpy.run_path(str(EXAMPLES / "division.py"))
    model = FQModel(**{**TINY, "sample_size": 16, "spectral_crop": 8})
    model.initialize_(torch.nn.functional.interpolate(images, (16, 16)) / 2)
    pipeline = untrained_pipeline(model.eval(), 20)
    given = torch.nn.functional.interpolate(images[:6], (16, 16)) / 2
    parts = names["divide"](pipeline, given, 3)
    assert list(parts)[0] == "images" and all(part.shape == (6, 3, 16, 16) for part in parts.values())
    for name in ("what their tokens hold", "what the UNet makes"):
        power = torch.fft.fft2(parts[name] - parts[name].mean((-2, -1), keepdim=True)).abs()
        assert power[..., 5:12, 5:12].max() < 1e-4 * power.max()
    seeds = [torch.Generator().manual_seed(seed) for seed in range(6)]
    torch.testing.assert_close(parts["what the decoder paints"], pipeline(6, 3, seeds, output_type="pt").images)
    names["draw"](parts, 8, tmp_path / "division.png")
    assert Image.open(tmp_path / "division.png").width == 810


def write_images(folder: Path, images: torch.Tensor) -> None:
    """A split of a folder of images (n, 3, H, W) in [-1, 1]."""
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(folder / f"{i}.png")


def test_an_equalizer_of_samples(tmp_path, example, capsys):
    """Samples with the power of the images, by a pipeline that is otherwise the same."""
    torch.manual_seed(0)
    model = FQModel(**PAINTING, painter_equalizer=True)
    images = smooth_images(64, 3, 16, 16)
    model.initialize_(images)
    awake(model)
    before = untrained_pipeline(model.eval(), 20)
    before.save_pretrained(tmp_path / "before")
    write_images(tmp_path / "images" / "test", images[:1])
    write_images(tmp_path / "images" / "train", images[1:])
    argv = [str(tmp_path / "before"), "--images", str(tmp_path / "images"), "--validation_split", "test"]
    argv += ["--batch_size", "32", "--output", str(tmp_path / "after")]
    for count, message in (("4096", "give 1 to 2048"), ("64", "has 63 images for training")):
        with pytest.raises(SystemExit):
            example("equalize", *argv, "--samples", count)
        assert message in capsys.readouterr().err
    example("equalize", *argv, "--samples", "48")
    after = FQLDMPipeline.from_pretrained(tmp_path / "after")
    powers = {}
    for name, pipeline in (("before", before), ("after", after)):
        pipeline.set_progress_bar_config(disable=True)
        seeds = [torch.Generator().manual_seed(i) for i in range(48)]
        latents = pipeline(48, generator=seeds, output_type="latent").images
        painted = pipeline.decode(latents, torch.Generator().manual_seed(0))
        powers[name] = torch.fft.rfft2(painted).abs().square().mean((0, 1))
        powers[name, "latents"] = latents
    assert torch.equal(powers["before", "latents"], powers["after", "latents"])
    wanted = torch.fft.rfft2((images + 1) / 2).abs().square().mean((0, 1))
    strong = wanted > wanted.flatten().quantile(0.5)  # others have less than rounding adds
    error = {name: (powers[name] / wanted).log()[strong].abs().mean() for name in ("before", "after")}
    assert error["after"] < 0.5 * error["before"], error


@pytest.fixture
def script():
    """The functions of examples/tokens.py."""
    return runpy.run_path(str(EXAMPLES / "tokens.py"))


@torch.no_grad()
def test_the_parts_that_tokens_hold_add_up(script, model, images):
    latents = model.encode(images[:1]).latents
    parts, empty = script["token_parts"](model, model.quantize.split(latents)[0])
    assert parts.shape == (16, 3, 8, 12) and parts.flatten(1).norm(dim=1).min() > 0
    torch.testing.assert_close(parts.sum(0, keepdim=True) + empty, model.project_latents(latents))
    torch.testing.assert_close(script["linear_images"](model, latents), model._linear_decode(latents))


@torch.no_grad()
def test_a_filter_of_the_bank_has_one_unit_of_energy(script, model):
    energy = script["filter_energy"](model, [3])
    assert energy.shape == (3, 96) and energy.sum().item() == pytest.approx(4, rel=1e-4)  # of m = 4 filters
    assert script["filter_energy"](model, range(16)).max() <= 1 + 1e-4  # filters are orthonormal


@torch.no_grad()
def test_a_token_has_the_frequencies_that_are_drawn(script, images):
    model = FQModel(**TINY, tokens="interleaved")
    model.initialize_(images)
    tokens = model.quantize.split(model.encode(images[:1]).latents)[0]
    spectra = torch.fft.fft2(script["token_parts"](model, tokens)[0]).abs().amax(1)  # (U, h, w)
    chosen = [2, 13]
    planes = script["frequency_planes"](model, chosen)
    assert planes.shape == (3, 3, 9, 13)
    for plane, token in zip(planes, chosen, strict=False):
        lit = {(row - 4, column - 6) for row, column in (plane.amax(0) > script["AXES"] + 1e-6).nonzero().tolist()}
        present = (spectra[token] > 1e-4 * spectra[token].max()).nonzero().tolist()
        # A frequency of half the side is its own negative, and drawn at both ends.
        assert {(row % 8, column % 12) for row, column in lit} == set(map(tuple, present))
    lit = planes.amax(1) > script["AXES"] + 1e-6
    assert lit[-1].sum() > lit[0].sum() and (lit[-1] >= lit[0]).all()


def test_one_token_changes_the_whole_image(script, model, images, tmp_path, monkeypatch, capsys):
    write_images(tmp_path / "images" / "train", images[:2])
    write_images(tmp_path / "images" / "test", images[2:4])
    model.save_pretrained(tmp_path / "vae")
    argv = [str(tmp_path / "vae"), "--images", str(tmp_path / "images"), "--validation_split", "test"]
    monkeypatch.setattr(sys, "argv", ["tokens.py", *argv, "--output_dir", str(tmp_path)])
    script["main"]()
    shares = [float(number) for number in re.findall(r"changes ([\d.]+)%", capsys.readouterr().out)]
    assert len(shares) == 3 and min(shares) > 90
    scale = 11  # to 128 pixels and more
    pixels = np.asarray(Image.open(tmp_path / "token_change.png")).astype(int)
    tiles = pixels[BORDER:, BORDER:].reshape(3, 8 * scale + BORDER, 3, 12 * scale + BORDER, 3)
    tiles = tiles.transpose(0, 2, 1, 3, 4)[:, :, : 8 * scale : scale, : 12 * scale : scale]
    difference = np.abs(tiles[:, 2] - 127.5).max(-1)  # (tokens, H, W)
    assert (difference > 1).mean() > 0.9
    quarters = difference.reshape(3, 2, 4, 2, 6).mean((2, 4))
    assert (quarters > 0.2 * difference.mean((1, 2))[:, None, None]).all()
    filters = np.asarray(Image.open(tmp_path / "token_filters.png"))
    assert filters.shape == (3 * (8 * scale + BORDER) + BORDER, 6 * (12 * scale + BORDER) + BORDER, 3)


@torch.no_grad()
def test_one_token_is_replaced_by_the_entry_that_errs_most(script, model, images):
    indices = model.tokenize(images[:1])
    replaced = script["replace_token"](model, indices, 5)
    assert (replaced != indices).nonzero().tolist() == [[0, 5]]
    before = model.quantize.join(model.quantize.codebook(indices))
    errors = []
    for entry in range(32):
        indices[0, 5] = entry
        errors.append((model.quantize.join(model.quantize.codebook(indices)) - before).square().sum())
    assert int(torch.stack(errors).argmax()) == replaced[0, 5]


def test_tokens_of_a_grid_are_refused(script, tmp_path, monkeypatch, capsys):
    FQModel(
        in_channels=3, sample_size=8, block_out_channels=(8,), norm_num_groups=4, num_tokens=16, num_vq_embeddings=32,
        tokens="grid",
    ).save_pretrained(tmp_path)  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["tokens.py", str(tmp_path), "--images", "none"])
    with pytest.raises(SystemExit):
        script["main"]()
    assert "its tokens are no filters of a bank and no Fourier coefficients" in capsys.readouterr().err


def test_classes_one_a_row(model, tmp_path, example):
    pipeline = untrained_pipeline(model, 100, ["ant", "bee", "cow"])
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path / "pipeline")
    for name, options in (("all", ()), ("some", ("--classes", "cow", "ant"))):
        argv = [str(tmp_path / "pipeline"), *options, "--columns", "2", "--num_inference_steps", "2"]
        example("classes", *argv, "--output", str(tmp_path / f"{name}.png"))
    rows = HEIGHT + BORDER
    all_, some = (np.asarray(Image.open(tmp_path / f"{name}.png"))[::SCALE, ::SCALE] for name in ("all", "some"))
    assert all_.shape[0] == BORDER + 3 * rows and some.shape[0] == BORDER + 2 * rows
    for row, of_all in enumerate((2, 0)):
        mine, theirs = (x[BORDER + i * rows :][:HEIGHT].astype(int) for x, i in ((some, row), (all_, of_all)))
        assert np.abs(mine - theirs).max() <= 1


def test_a_pipeline_without_classes_has_no_rows(pipeline, tmp_path, example, capsys):
    pipeline.save_pretrained(tmp_path / "pipeline")
    with pytest.raises(SystemExit):
        example("classes", str(tmp_path / "pipeline"))
    assert "knows no classes" in capsys.readouterr().err
