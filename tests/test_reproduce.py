"""`reproduce.py`, judged by the files it leaves; the models are trained for a second each."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import smooth_images
from PIL import Image

import reproduce
from fq_ldm.options import run_script
from reproduction.experiments import EXPERIMENTS, PAPER, VQ
from reproduction.tables import COLUMNS, means

TINY_FLAGS = [
    "--resolution", "16", "--channels", "1", "--image_column", "image", "--latent_channels", "1", "--num_tokens", "16",
    "--num_vq_embeddings", "16", "--block_out_channels", "8", "--norm_num_groups", "4", "--init_images", "32",
    "--train_batch_size", "8", "--lr_warmup_steps", "1", "--report_to", "none",
]  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with images in the splits train and test."""
    folder = tmp_path_factory.mktemp("reproduce")
    for i, image in enumerate(smooth_images(48, 1, 16, 16)):
        split = folder / "images" / ("train" if i < 40 else "test")
        split.mkdir(parents=True, exist_ok=True)
        Image.fromarray(((image[0] + 1) * 127.5).round().to(torch.uint8).numpy()).save(split / f"{i:02d}.png")
    return folder


@pytest.fixture
def reproduce_(workplace, monkeypatch, capsys):
    """`reproduce_(name, *flags)` runs the script on tiny models; its exit status and what it said."""

    def call(name, *flags):
        monkeypatch.chdir(workplace)
        argv = [name, "--dataset", "cifar10", "--dataset_path", "images", "--budget", "1", *flags]
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *argv, *TINY_FLAGS])
        try:
            run_script(reproduce.main)
        except SystemExit as end:
            return end.code, capsys.readouterr()
        return 0, capsys.readouterr()

    return call


def test_a_table_then_figures_from_the_same_runs(workplace, reproduce_):
    status, said = reproduce_("table1", "--metrics", "--only", "vq_vae", "fq_vae")
    assert status == 0, said.err
    folder = workplace / "results" / "table1_cifar10"
    table = (folder / "table.md").read_text()
    assert "| VQ-VAE |" in table and "0.8590 |" in table and "python reproduce.py table1" in table
    data = json.loads((folder / "data.json").read_text())
    assert [row["config"] for row in data["rows"]] == ["methods/vq_vae", "methods/fq_vae"]
    for row in data["rows"]:
        assert row["runs"][0]["bits_per_image"] == 64 and row["runs"][0]["train_seconds"] >= 1  # the budget
        assert row["runs"][0]["images_seen"] == 8 * row["runs"][0]["steps"] > 0
    assert np.asarray(Image.open(folder / "figure.png")).std() > 0
    weights = sorted((workplace / "runs").rglob("diffusion_pytorch_model.safetensors"))
    times = [path.stat().st_mtime for path in weights]
    assert len(weights) == 2

    for name in ("fig3", "fig4", "fig5"):
        status, said = reproduce_(name, "--metrics", "--only", "vq_vae", "fq_vae")
        assert status == 0, said.err
        assert (workplace / "results" / f"{name}_cifar10" / "figure.png").is_file()
    assert [path.stat().st_mtime for path in weights] == times  # nothing was trained again
    status, said = reproduce_("table1", "--metrics", "--only", "vq_vae", "--learning_rate", "0.5")
    assert status == 2 and "holds checkpoints of a run with other options (learning_rate " in said.err
    shares = json.loads((workplace / "results" / "fig3_cifar10" / "data.json").read_text())["rows"][0]["runs"][0]
    assert len(shares["sorted_usage"]) == 16 and sum(shares["sorted_usage"]) == pytest.approx(1)


def test_generated_images_of_two_models(workplace, reproduce_):
    options = "--unet_block_out_channels 8 8 --unet_layers_per_block 1 --unet_attention_levels 1 --max_train_steps 1 "
    options += "--unet_attention_head_dim 4 --unet_norm_num_groups 4 --num_train_timesteps 3 --preview_images 1 "
    options += "--preview_inference_steps 2 --report_to none --mixed_precision no --train_batch_size 8"
    status, said = reproduce_("fig6", "--metrics", "--ldm_options", options)
    assert status == 0, said.err
    folder = workplace / "results" / "fig6_cifar10"
    assert np.asarray(Image.open(folder / "figure.png")).std() > 0
    losses = json.loads((folder / "data.json").read_text())["metrics"]
    assert len(losses) == 2 and all(row["steps"] == 1 and row["validation_loss"] > 0 for row in losses.values())


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--only", "magic"], "only: magic is no row; there are vq_vae, vq_vae_ema"),
        (["--learning_rat", "1"], "unrecognized arguments: --learning_rat 1"),
        (["--lpips_weights", "none.pth"], "lpips_weights: there is no file none.pth; get vgg16-397923af.pth"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(reproduce_, flags, message):
    status, said = reproduce_("table1", *flags)
    assert status == 2 and message in said.err and len(said.err.splitlines()) == 1


def test_means_and_spread_over_seeds():
    mean, spread = means([{"mse": 1.0, "codes_used": 4}, {"mse": 3.0, "codes_used": 4}])
    assert mean == {"mse": 2.0, "codes_used": 4} and spread == {"mse": pytest.approx(2**0.5), "codes_used": 0}


def test_the_papers_numbers_belong_to_rows_and_columns():
    for (name, _), rows in PAPER.items():
        configs = [row.config for row in EXPERIMENTS[name].rows]
        for config, numbers in rows.items():
            assert config in configs and set(numbers) <= set(COLUMNS)
    # "improves SSIM by 4.9 %, LPIPS by 36.4 %, rFID by 52.8 %" over VQ-VAE
    ours, vq = PAPER["table1", "cifar10"]["methods/fq_vae"], PAPER["table1", "cifar10"][VQ.config]
    assert ours["ssim"] / vq["ssim"] - 1 == pytest.approx(0.049, abs=0.001)
    assert 1 - ours["lpips"] / vq["lpips"] == pytest.approx(0.364, abs=0.001)
    assert 1 - ours["rfid"] / vq["rfid"] == pytest.approx(0.528, abs=0.001)
