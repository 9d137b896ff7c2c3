"""Runs that stop before their end: signals, damaged checkpoints, full disks, numbers that are not finite."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from test_scripts import ROOT, VAE_OPTIONS, call, to_flags  # noqa: F401  (call is a fixture)

import train_vae
from fq_ldm.models import TokenAutoencoder
from fq_ldm.options import DataError
from fq_ldm.training import checkpoint as checkpoint_module
from fq_ldm.training.checkpoint import checkpoints, newest_intact

COMMON = {**VAE_OPTIONS, "output_dir": "out", "report_to": "none"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(image_folder, tmp_path, number):
    """Though it reaches all processes, those that load images too, as from a scheduler or a terminal."""
    options = {**COMMON, "dataset": image_folder, "max_train_steps": 100_000, "checkpointing_steps": 100_000}
    command = [sys.executable, str(ROOT / "train_vae.py"), *to_flags(options | {"dataloader_num_workers": 1})]
    pipes = dict(stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes) as process:
        while "loss=" not in process.stderr.readline():
            assert process.poll() is None
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    (saved,) = checkpoints(tmp_path / "out" / "checkpoints")
    step = json.loads((saved / "progress.json").read_text())["progress"]["step"]
    line = errors.strip().splitlines()[-1]
    assert f"{number.name}: stopped after step {step}, which is saved; run the same command again" in line
    assert "Traceback" not in errors


@pytest.fixture
def saved(image_folder, tmp_path, call):  # noqa: F811
    """The folder of checkpoints of a run of four steps, with two of them."""
    assert call(train_vae.main, **COMMON, dataset=image_folder, max_train_steps=4, checkpointing_steps=2)[0] == 0
    return tmp_path / "out" / "checkpoints"


def damage(path, how):
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "progress.json"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(saved, tmp_path, name, how):
    if (name, how) == ("progress.json", "flipped"):
        pytest.skip("which bit was flipped decides whether it is still JSON")
    lines = []
    assert newest_intact(saved, lines.append).name == "step_00000004" and not lines
    damage(saved / "step_00000004" / name, how)
    assert newest_intact(saved, lines.append).name == "step_00000002"
    assert len(lines) == 1 and "step_00000004: is damaged (" in lines[0] and name in lines[0]
    damage(saved / "step_00000002" / name, how)
    with pytest.raises(DataError, match="all checkpoints are damaged; delete the folder to start anew"):
        newest_intact(saved, lines.append)


def test_training_goes_on_from_the_one_before(saved, image_folder, tmp_path, call):  # noqa: F811
    expected = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    damage(saved / "step_00000004" / "optimizer.bin", "cut")
    status, output, errors = call(
        train_vae.main, **COMMON, dataset=image_folder, max_train_steps=4, checkpointing_steps=2
    )
    assert status == 0, errors
    assert "step_00000004: is damaged (optimizer.bin has changed since it was written)" in output
    assert "resuming from" in output and "step_00000002" in output
    found = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_full_disk_leaves_the_last_checkpoint(image_folder, tmp_path, call, monkeypatch):  # noqa: F811
    save_state, calls = Accelerator.save_state, []

    def fill_up(self, folder):
        calls.append(folder)
        save_state(self, folder)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Accelerator, "save_state", fill_up)
    status, _, errors = call(train_vae.main, **COMMON, dataset=image_folder, max_train_steps=4, checkpointing_steps=2)
    assert status == 1
    line = errors.strip().splitlines()[-1]
    assert "the checkpoint of step 4 cannot be written ([Errno 28] No space left on device)" in line
    assert "the last complete one is step_00000002: make room" in line
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step_00000002"]
    assert newest_intact(tmp_path / "out" / "checkpoints", print).name == "step_00000002"


class Poison:
    """Spoils the loss of one step."""

    def __init__(self, monkeypatch, step, value):
        self.calls = 0
        loss = TokenAutoencoder.loss

        def spoiled(model, images, output):
            total, reconstruction = loss(model, images, output)
            self.calls += 1
            return (total * value if self.calls == step else total), reconstruction

        monkeypatch.setattr(TokenAutoencoder, "loss", spoiled)


@pytest.mark.parametrize("value, shown", [(float("nan"), "nan"), (float("inf"), "inf")])
def test_a_loss_that_is_not_finite_stops(image_folder, tmp_path, call, monkeypatch, value, shown):  # noqa: F811
    Poison(monkeypatch, 3, value)
    status, _, errors = call(train_vae.main, **COMMON, dataset=image_folder, max_train_steps=4)
    assert status == 1
    line = errors.strip().splitlines()[-1]
    assert f"step 3: the loss is {shown} for the training images " in line and "skip_nonfinite" in line
    images = line.split("training images ")[1].split(";")[0].split(", ")
    assert len(set(images)) == 8 and all(0 <= int(i) < 32 for i in images)
    (saved,) = checkpoints(tmp_path / "out" / "checkpoints")
    assert saved.name == "step_00000002"
    assert all(value.isfinite().all() for value in load_file(saved / "model.safetensors").values())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_steps_that_are_not_finite_are_skipped_when_asked(
    image_folder, tmp_path, call, monkeypatch, accumulation  # noqa: F811
):  # fmt: skip
    Poison(monkeypatch, 3, float("nan"))
    options = dict(max_train_steps=4, skip_nonfinite=True, gradient_accumulation_steps=accumulation)
    status, _, errors = call(train_vae.main, **COMMON, dataset=image_folder, **options)
    assert status == 0, errors
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["steps_skipped"] == 1
    log = (tmp_path / "out" / "nonfinite_steps.txt").read_text().splitlines()
    assert len(log) == 1 and log[0].startswith(f"step {3 if accumulation == 1 else 2}: the loss is nan")
    weights = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def test_a_resumed_average_counts_the_steps_that_were_made(image_folder, tmp_path, call, monkeypatch):  # noqa: F811
    """Its decay grows with the steps averaged: the skipped one is not among them, whether the run is resumed or not."""
    options = {
        **COMMON,
        "dataset": image_folder,
        "skip_nonfinite": True,
        "decoder_ema_decay": 0.9,
        "lr_scheduler": "constant",
    }
    saved = {}
    for name, stops in (("whole", (5,)), ("parts", (3, 5))):
        with monkeypatch.context() as patch:
            Poison(patch, 2, float("nan"))
            for stop in stops:
                run = dict(output_dir=name, max_train_steps=stop, checkpointing_steps=stop)
                status, _, errors = call(train_vae.main, **{**options, **run})
                assert status == 0, errors
        saved[name] = tmp_path / name / "checkpoints" / "step_00000005"
        assert json.loads((saved[name] / "progress.json").read_text())["averaged_steps"] == 4
    whole, parts = (load_file(path / "ema.safetensors") for path in saved.values())
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_gradient_that_is_not_finite_stops(image_folder, call, monkeypatch):  # noqa: F811
    loss = TokenAutoencoder.loss

    def spoiled(model, images, output):
        total, reconstruction = loss(model, images, output)
        zero = (output.sample - output.sample.detach()).sum()  # its square root has no derivative there
        return total + zero.sqrt(), reconstruction

    monkeypatch.setattr(TokenAutoencoder, "loss", spoiled)
    status, _, errors = call(train_vae.main, **COMMON, dataset=image_folder, max_train_steps=4)
    assert status == 1 and "step 1: the gradient is nan; the state before the step is saved" in errors


class Bomb:
    def __reduce__(self):
        return (exec, ("open('exploded', 'w').close()",))


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl"])
def test_a_pickle_in_a_checkpoint_is_not_run(saved, image_folder, tmp_path, call, name):  # noqa: F811
    """Someone sends a checkpoint with a pickle that runs code, and right digests."""
    planted = saved / "step_00000004" / name
    planted.write_bytes(pickle.dumps(Bomb()))
    progress = json.loads((planted.parent / "progress.json").read_text())
    progress["digests"][name] = checkpoint_module._digest(planted)
    (planted.parent / "progress.json").write_text(json.dumps(progress))
    status, _, errors = call(train_vae.main, **COMMON, dataset=image_folder, max_train_steps=5, checkpointing_steps=2)
    assert not (tmp_path / "exploded").exists()
    if name == "optimizer.bin":
        assert status == 1 and "cannot be loaded" in errors.strip().splitlines()[-1]
