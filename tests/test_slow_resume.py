"""Killed at any moment and started again, training ends in the same bits."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from test_scripts import LDM_OPTIONS, ROOT, VAE_OPTIONS, to_flags

pytestmark = pytest.mark.slow
KILLS = 21


def train(script, kills, folder, **options):
    """Run the script to its end through `kills` deaths: what killable.py reports."""
    command = [sys.executable, str(ROOT / "tests" / "killable.py"), script, str(kills), *to_flags(options)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    log = folder / "attempts.log"
    assert result.returncode == 0, result.stderr + (log.read_text()[-3000:] if log.exists() else "")
    return json.loads(result.stdout)


def assert_same(first, second):
    """Two values out of `torch.load`, equal bit for bit."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for pair in zip(first, second, strict=True):
            assert_same(*pair)
    else:
        assert first == second


def assert_same_run(whole, parts, weights):
    """Final weights, and all that the last checkpoints hold but the time that it took."""
    assert_same(load_file(whole / weights), load_file(parts / weights))
    whole, parts = (max((folder / "checkpoints").glob("step_*")) for folder in (whole, parts))
    assert whole.name == parts.name
    names = {path.name for path in whole.iterdir()}
    assert names == {path.name for path in parts.iterdir()} and "optimizer.bin" in names
    for name in names:
        if name.endswith(".safetensors"):
            assert_same(load_file(whole / name), load_file(parts / name))
        elif name == "optimizer.bin":
            assert_same(*(torch.load(folder / name, weights_only=True) for folder in (whole, parts)))
    progress = [json.loads((folder / "progress.json").read_text()) for folder in (whole, parts)]
    assert progress[0]["schedule"] == progress[1]["schedule"]
    for key in ("step", "images", "skipped"):
        assert progress[0]["progress"][key] == progress[1]["progress"][key]


@pytest.mark.parametrize(
    "changes",
    [
        dict(gradient_accumulation_steps=2),
        dict(dataloader_num_workers=1),
        # Both draw random numbers inside the model: the posterior, and the anchors.
        dict(quantizer="sq", num_tokens=16, vq_embed_dim=None, spectral_crop=None),
        dict(anchors="random"),
    ],
    ids=["accumulation", "workers", "sq", "random-anchors"],
)
def test_vae_survives_kills(image_folder, tmp_path, changes):
    options = dict(
        dataset=image_folder, random_flip=True, checkpointing_steps=3, preview_steps=20, **{**VAE_OPTIONS, **changes},
    )  # fmt: skip
    options = {name: value for name, value in options.items() if value is not None}
    kills = KILLS if changes == dict(gradient_accumulation_steps=2) else 6
    options["max_train_steps"] = 25 * kills
    assert train("train_vae.py", 0, tmp_path, output_dir="whole", **options)["kills"] == 0
    report = train("train_vae.py", kills, tmp_path, output_dir="parts", **options)
    assert report["kills"] == kills and report["during_write"] >= 2
    assert "resuming from" in (tmp_path / "attempts.log").read_text()
    assert_same_run(tmp_path / "whole", tmp_path / "parts", "diffusion_pytorch_model.safetensors")


def test_ldm_survives_kills(image_folder, tmp_path):
    train("train_vae.py", 0, tmp_path, dataset=image_folder, output_dir="vae", max_train_steps=1, **VAE_OPTIONS)
    options = dict(
        dataset=image_folder, vae=tmp_path / "vae", random_flip=True, checkpointing_steps=3, preview_steps=30,
        max_train_steps=25 * KILLS, unet_dropout=0.1, gradient_accumulation_steps=2, **LDM_OPTIONS,
    )  # fmt: skip
    train("train_ldm.py", 0, tmp_path, output_dir="whole", **options)
    report = train("train_ldm.py", KILLS, tmp_path, output_dir="parts", **options)
    assert report["kills"] == KILLS and report["during_write"] >= 2
    assert_same_run(tmp_path / "whole", tmp_path / "parts", "unet/diffusion_pytorch_model.safetensors")
