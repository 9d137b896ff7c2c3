"""FSDP2 in two processes on CPUs: shards train as whole weights do, and nothing that is saved shows them.

The processes read what configs/accelerate/fsdp2.yaml says.
"""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_accelerate_configs import launched
from test_scripts import LDM_OPTIONS, VAE_OPTIONS, to_flags
from test_slow_nodes import UNET_WEIGHTS, assert_same_weights
from test_slow_processes import launch
from test_slow_resume import assert_same, assert_same_run

from fq_ldm import FQLDMPipeline

pytestmark = pytest.mark.slow
WORKER = "tests/sharded_worker.py"
STEPS = 14  # processes agree to stop at every tenth one
OPTIONS = LDM_OPTIONS | dict(
    vae="vae", random_flip=True, unet_dropout=0.1, gradient_accumulation_steps=2, max_grad_norm=0.1, train_batch_size=4,
    max_train_steps=STEPS, checkpointing_steps=1000, preview_steps=7,
)  # fmt: skip
SHARDED = {name: value for name, value in launched("fsdp2")[1].items() if "FSDP" in name}


@pytest.fixture
def shard(monkeypatch):
    """From the call on, processes shard."""

    def shard(**changes):
        for name, value in (SHARDED | changes).items():
            monkeypatch.setenv(name, value)

    return shard


@pytest.fixture
def train(image_folder, tmp_path):
    """Runs `train_ldm.py` in two processes: what they print."""
    vae = dict(dataset=image_folder, output_dir="vae", max_train_steps=1, **VAE_OPTIONS)
    launch(1, "train_vae.py", tmp_path, *to_flags(vae))

    def train(folder, **changes):
        options = dict(dataset=image_folder, output_dir=folder, **OPTIONS) | changes
        return launch(2, WORKER, tmp_path, "train_ldm", *to_flags(options))

    return train


def checkpoint_of(folder):
    return folder / "checkpoints" / f"step_{STEPS:08d}"


def assert_close(first, second, noise=()):
    """Tensors by name, to a 10,000th of the largest number in each; those named in `noise` are rounding alone."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        if name not in noise:
            assert (second[name] - value).abs().max() <= 1e-4 * value.abs().max(), name


def test_shards_train_like_whole_weights(train, shard, tmp_path):
    """The same weights, running mean and optimizer state as DDP, up to the order of sums, in half of the room."""
    assert train("whole").stdout.count("holds 1.000 1.000 1.000") == 2
    shard()
    printed = train("shards").stdout
    held = [[float(part) for part in line.split()[1:]] for line in printed.splitlines() if line.startswith("holds")]
    assert len(held) == 2 and all(0.45 < part < 0.55 for parts in held for part in parts)
    assert [sum(parts) for parts in zip(*held, strict=True)] == pytest.approx([1, 1, 1], abs=2e-3)
    assert printed.count("validation: ") == 1

    whole, shards = tmp_path / "whole", tmp_path / "shards"
    assert_close(load_file(whole / UNET_WEIGHTS), load_file(shards / UNET_WEIGHTS))
    assert (whole / "unet" / "config.json").read_text() == (shards / "unet" / "config.json").read_text()
    means = [load_file(checkpoint_of(folder) / "ema.safetensors") for folder in (whole, shards)]
    assert_close(*means)
    weights = torch.load(checkpoint_of(shards) / "pytorch_model_fsdp.bin", weights_only=True)
    assert_close(load_file(checkpoint_of(whole) / "model.safetensors"), weights)
    states = [torch.load(checkpoint_of(f) / "optimizer.bin", weights_only=True)["state"] for f in (whole, shards)]
    keys = [name for name in weights if name.endswith("to_k.bias")]  # attention does not depend on them
    for moment in ("step", "exp_avg", "exp_avg_sq"):
        first = {name: states[0][number][moment] for number, name in enumerate(weights)}
        assert_close(first, {name: states[1][name][moment] for name in weights}, noise=keys)
    for folder in (whole, shards):
        assert {path.name for path in (folder / "previews").iterdir()} == {"00000007.png", "00000014.png"}

    unet = FQLDMPipeline.from_pretrained(shards).unet
    assert type(unet).__name__ == "UNet2DModel"
    for number, parameter in enumerate(unet.parameters()):
        assert torch.equal(parameter, means[1][str(number)]), number
    assert not torch.equal(unet.conv_in.weight, weights["conv_in.weight"])


def test_a_stopped_run_goes_on_in_the_same_bits(train, shard, tmp_path, monkeypatch):
    shard()
    train("shards")
    monkeypatch.setenv("STOP_AFTER", "8")
    assert train("parts").stdout.count("exit status 143") == 2
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["step_00000010"]
    monkeypatch.delenv("STOP_AFTER")
    shutil.copytree(tmp_path / "parts", tmp_path / "copy")
    assert train("parts").stdout.count("resuming from") == 1
    assert_same_run(tmp_path / "shards", tmp_path / "parts", UNET_WEIGHTS)
    folders = [checkpoint_of(tmp_path / name) for name in ("shards", "parts")]
    assert_same(*(torch.load(folder / "pytorch_model_fsdp.bin", weights_only=True) for folder in folders))

    for name in SHARDED:
        monkeypatch.delenv(name)
    result = train("copy")
    assert result.stdout.count("exit status 2") == 2
    assert "was written with FSDP, and cannot be resumed without it" in result.stderr


def test_faults_are_left_out_of_shards(shard, tmp_path):
    """A loss or a gradient that is not finite on one process, found at once or late: as with whole weights."""
    folders = [tmp_path / "whole", tmp_path / "shards"]
    for folder in folders:
        folder.mkdir()
        launch(2, WORKER, tmp_path, "faults", folder)
        shard()
    for late in (False, True):
        for spoil in ("loss", "gradient"):
            runs = [folder / f"{late}-{spoil}" for folder in folders]
            for name in ("weights.safetensors", "mean.safetensors"):
                assert_close(*(load_file(run / name) for run in runs))
            found = [(run / "nonfinite_steps.txt").read_text() for run in runs]
            assert found[0] == found[1] and found[0].startswith(f"step 4: the {spoil} is nan")
    for spoil in ("loss", "gradient"):
        names = [folders[1] / f"{late}-{spoil}" / "weights.safetensors" for late in (False, True)]
        assert_same_weights(*names)


def test_an_fq_vae_is_not_sharded(image_folder, tmp_path, shard):
    shard()
    options = dict(dataset=image_folder, output_dir="vae", max_train_steps=1, **VAE_OPTIONS)
    result = launch(2, WORKER, tmp_path, "train_vae", *to_flags(options))
    assert result.stdout.count("exit status 2") == 2 and "Traceback" not in result.stderr
    assert result.stderr.count("error: accelerate is configured for FSDP, and an FQ-VAE is not trained in shards") == 2


def test_checkpoints_are_not_folders(train, shard, tmp_path):
    shard(FSDP_STATE_DICT_TYPE="SHARDED_STATE_DICT")
    result = train("shards")
    assert result.stdout.count("exit status 2") == 2 and "Traceback" not in result.stderr
    assert result.stderr.count("error: fsdp_state_dict_type: must be FULL_STATE_DICT, not SHARDED_STATE_DICT") == 2
