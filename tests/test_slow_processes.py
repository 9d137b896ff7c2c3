"""Several processes do what one does."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from test_hostile import saved_pipeline  # noqa: F401  (a fixture)
from test_scripts import LDM_OPTIONS, ROOT, VAE_OPTIONS, to_flags

from fq_ldm import FQModel

pytestmark = pytest.mark.slow
ALIKE = ["closest", "paper"]
RANDOM = ["random", "probabilistic", "sq", "ema", "residual"]  # the last two in their k-means start


def launch(count, script, folder, *arguments):
    """Run a script in so many processes on CPUs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count), str(ROOT / script)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
    result = subprocess.run(
        [*command, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result


def test_shares_of_a_batch_train_like_the_whole_batch(tmp_path):
    """1 x 48, 2 x 24 and 3 x 16 images, with all that is shared the same on all processes at every step.

    Where no random numbers are drawn, losses and codebook are those of one process, up to the order of sums.
    """
    for count in (1, 2, 3):
        (tmp_path / str(count)).mkdir()
        launch(count, "tests/distributed_worker.py", tmp_path, str(count), *ALIKE, *RANDOM)
    for kind in ALIKE:
        one, *others = (load_file(tmp_path / str(count) / f"{kind}.safetensors") for count in (1, 2, 3))
        for other in others:
            torch.testing.assert_close(other["losses"], one["losses"], rtol=1e-4, atol=1e-6)
            for name, value in one.items():
                if "codebook" in name and value.is_floating_point():
                    torch.testing.assert_close(other[name], value, rtol=1e-2, atol=1e-3, msg=f"{kind}: {name}")


@pytest.mark.parametrize("count", [2, 3])
def test_scripts_share_the_work(image_folder, tmp_path, count):
    """Each process trains on batches of its own, and nothing is written twice."""
    options = dict(dataset=image_folder, output_dir="vae", max_train_steps=2, **{**VAE_OPTIONS, "train_batch_size": 5})
    result = launch(count, "train_vae.py", tmp_path, *to_flags(options))
    assert result.stdout.count("num_vq_embeddings: 16") == 1 and result.stdout.count("validation: images") == 1
    metrics = json.loads((tmp_path / "vae" / "metrics.json").read_text())
    assert metrics["images"] == 8 and metrics["images_seen"] == 2 * count * 5  # steps, processes, batch
    assert FQModel.from_pretrained(tmp_path / "vae").config.num_tokens == 8
    options = dict(dataset=image_folder, vae=tmp_path / "vae", output_dir="ldm", max_train_steps=2, **LDM_OPTIONS)
    result = launch(count, "train_ldm.py", tmp_path, *to_flags(options))
    assert result.stdout.count("validation: ") == 1
    assert json.loads((tmp_path / "ldm" / "metrics.json").read_text())["images_seen"] == 2 * count * 8
    assert len(list((tmp_path / "ldm" / "logs").rglob("events.out.tfevents*"))) >= 1


@pytest.mark.parametrize("adversarial_loss", ["hinge", "non_saturating"])
def test_a_discriminator_on_two_processes(image_folder, tmp_path, adversarial_loss):
    """Saved once, with all steps seen; stopped and started again it goes on."""
    options = {
        **VAE_OPTIONS, "dataset": image_folder, "output_dir": "vae", "train_batch_size": 4, "report_to": "none",
        "painter_block_out_channels": [4, 8], "adversarial_weight": 0.1, "adversarial_start": 0.25,
        "latent_noise": 0.1, "decoder_ema_decay": 0.9, "discriminator_block_out_channels": [4, 8],
        "adversarial_loss": adversarial_loss, "max_train_steps": 4,
        "discriminator_norm": "spectral" if adversarial_loss == "hinge" else "none",
    }  # fmt: skip
    launch(2, "train_vae.py", tmp_path, *to_flags(options))
    metrics = json.loads((tmp_path / "vae" / "metrics.json").read_text())
    assert metrics["images_seen"] == 4 * 2 * 4 and metrics["nmse"] > 0
    first = load_file(tmp_path / "vae" / "checkpoints" / "step_00000004" / "model.safetensors")
    assert any(name.startswith("layers.0.") for name in first)
    launch(2, "train_vae.py", tmp_path, *to_flags({**options, "max_train_steps": 6}))
    again = load_file(tmp_path / "vae" / "checkpoints" / "step_00000006" / "model.safetensors")
    assert first.keys() == again.keys() and not all(torch.equal(first[name], again[name]) for name in first)


def test_tokens_of_learnt_latents_are_found_once(image_folder, tmp_path):
    options = {
        **VAE_OPTIONS, "dataset": image_folder, "output_dir": "vae", "train_batch_size": 4, "report_to": "none",
        "painter_block_out_channels": [4, 8], "latent_channels": 3, "learnt_channels": 2, "reader_width": 8,
        "reader_layers": 1, "num_tokens": 48, "learnt_noise": 0.3, "decode_unquantized": True, "max_train_steps": 2,
    }  # fmt: skip
    result = launch(2, "train_vae.py", tmp_path, *to_flags(options))
    assert result.stdout.count("finding tokens in the learnt latents") == 1
    metrics = json.loads((tmp_path / "vae" / "metrics.json").read_text())
    assert metrics["images_seen"] == 2 * 2 * 4 and metrics["nmse"] > 0


def test_two_halves_of_a_batch_train_like_the_batch(image_folder, tmp_path):
    """`train_vae.py` with 2 x 4 images and with 1 x 8, past an epoch: the same weights up to the order of sums."""
    common = dict(dataset=image_folder, max_train_steps=6, report_to="none")
    weights = []
    for count in (1, 2):
        options = {**VAE_OPTIONS, **common, "train_batch_size": 8 // count, "output_dir": f"vae{count}"}
        launch(count, "train_vae.py", tmp_path, *to_flags(options))
        weights.append(load_file(tmp_path / f"vae{count}" / "diffusion_pytorch_model.safetensors"))
    for name, value in weights[0].items():
        # Means of quantized latents: a rounding that tips one token shows in them.
        tolerance = 1e-2 if "diffusion_view" in name else 2e-3
        torch.testing.assert_close(weights[1][name], value, rtol=1e-2, atol=tolerance, msg=name)


@pytest.mark.parametrize("count", [2, 3])
def test_evaluation_gives_the_numbers_of_one_process(image_folder, saved_pipeline, tmp_path, count):  # noqa: F811
    train = dict(dataset=image_folder, output_dir="vae", max_train_steps=1, **VAE_OPTIONS)
    launch(1, "train_vae.py", tmp_path, *to_flags(train))
    data = dict(dataset=image_folder, channels=1, resolution=16, validation_size=15, batch_size=2)
    found = []
    for processes in (1, count):
        options = dict(model=tmp_path / "vae", output_dir=f"vae_on_{processes}", **data)
        launch(processes, "evaluate.py", tmp_path, *to_flags(options))
        found.append(json.loads((tmp_path / f"vae_on_{processes}" / "evaluation.json").read_text()))
    assert found[0]["metrics"] == found[1]["metrics"] and found[0]["codebook"] == found[1]["codebook"]
    assert found[0]["metrics"]["images"] == 15

    found = []
    data |= dict(channels=3, convert_images=True, metrics=["spectrum", "neighbours"], num_samples=7)
    for processes in (1, count):
        options = dict(model=saved_pipeline, output_dir=f"pipe_on_{processes}", num_inference_steps=2, **data)
        launch(processes, "evaluate.py", tmp_path, *to_flags(options))
        found.append(json.loads((tmp_path / f"pipe_on_{processes}" / "evaluation.json").read_text()))
    assert found[0]["metrics"] == found[1]["metrics"] and found[0]["spectrum"] == found[1]["spectrum"]
