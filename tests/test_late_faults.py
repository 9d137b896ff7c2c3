"""Faults as a GPU's runs find them, at logged steps; the CPU's optimizer can leave a step out as CUDA's does."""

import json

import pytest
import torch

from fq_ldm.options import DataError, TrainingConfig
from fq_ldm.training import nonfinite, optimizer
from fq_ldm.training.loop import train
from fq_ldm.training.setup import make_accelerator, make_loader

LOGGING_STEPS = 4


class Training:
    """Twelve steps on 24 numbers, the loss or the gradient of one batch spoiled."""

    def __init__(self, folder, monkeypatch, late, spoil, at, **options):
        monkeypatch.setattr(optimizer, "looks_late", lambda device: True)  # the same optimizer for both
        monkeypatch.setattr(nonfinite, "looks_late", lambda device: late)
        folder.mkdir(exist_ok=True)
        self.folder, self.spoil, self.at = folder, spoil, at
        self.config = TrainingConfig(
            output_dir=str(folder), max_train_steps=12, train_batch_size=4, report_to="none", lr_warmup_steps=0,
            learning_rate=0.1, checkpointing_steps=1000, preview_steps=1000, logging_steps=LOGGING_STEPS, **options,
        )  # fmt: skip
        torch.manual_seed(0)
        self.model = torch.nn.Linear(1, 1)
        self.batches = []

    def __call__(self):
        accelerator = make_accelerator(self.config)
        data = torch.linspace(-1, 1, 24).view(-1, 1)
        return train(accelerator, self.config, self.model, make_loader(data, self.config), self.loss, lambda step: {})

    def loss(self, prepared, drawn):
        batch = drawn.data
        self.batches.append(batch)
        prediction = prepared(batch)
        loss = (prediction - 3 * batch).square().mean()
        if len(self.batches) == self.at:
            loss = loss * float("nan") if self.spoil == "loss" else loss + (prediction - prediction).sum().sqrt()
        return loss, {"mean": prediction.mean().detach()}

    def log(self):
        path = self.folder / nonfinite.NONFINITE_FILE
        return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_a_step_that_is_left_out_late_is_the_one_left_out_at_once(tmp_path, monkeypatch, spoil, accumulation):
    found = []
    for late in (False, True):
        options = dict(skip_nonfinite=True, gradient_accumulation_steps=accumulation)
        training = Training(tmp_path / str(late), monkeypatch, late, spoil, at=6, **options)
        progress = training()
        assert progress.step == 12 and progress.skipped == 1
        found.append((training.model.weight.item(), training.model.bias.item(), training.log()))
    assert found[0] == found[1]
    assert found[0][2].startswith(f"step {6 if accumulation == 1 else 3}: the {spoil} is nan")


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_a_fault_stops_at_the_next_logged_step_and_names_its_own(tmp_path, monkeypatch, spoil):
    messages = []
    for late in (False, True):
        training = Training(tmp_path / str(late), monkeypatch, late, spoil, at=6)
        with pytest.raises(DataError) as error:
            training()
        messages.append(str(error.value))
        assert len(training.batches) == (8 if late else 6)
        assert training.model.weight.isfinite().all()
        (saved,) = (training.folder / "checkpoints").iterdir()
        assert saved.name == ("step_00000008" if late else "step_00000005")
    at_once, late = messages
    assert at_once.split(";")[0] == late.split(";")[0] and late.startswith(f"step 6: the {spoil} is nan")
    assert "the weights have not taken it; step 8 is saved" in late


def test_the_images_of_a_late_fault_are_those_of_its_epoch(tmp_path, monkeypatch):
    """Step 6 is the last of the first epoch: it is read in the second, whose order is another."""
    training = Training(tmp_path, monkeypatch, True, "loss", at=6)
    with pytest.raises(DataError) as error:
        training()
    named = [int(i) for i in str(error.value).split("training images ")[1].split(";")[0].split(", ")]
    data = torch.linspace(-1, 1, 24).view(-1, 1)
    assert torch.equal(data[named], training.batches[5])


def test_a_fault_is_told_before_a_checkpoint_is_kept(tmp_path, monkeypatch):
    training = Training(tmp_path, monkeypatch, True, "loss", at=2)
    training.config.checkpointing_steps = 3
    with pytest.raises(DataError, match="step 2: the loss is nan.*step 3 is saved"):
        training()


def test_what_is_logged_is_what_was_measured(tmp_path, monkeypatch):
    """The late reading brings the scalars along, with the scale of fp16 beside them."""
    training = Training(tmp_path, monkeypatch, True, "loss", at=-1)
    watch = []
    read = nonfinite.LateWatch.read

    def kept(self, values):
        numbers = read(self, values)
        watch.append((values, numbers))
        return numbers

    monkeypatch.setattr(nonfinite.LateWatch, "read", kept)
    training()
    logged = [(values, numbers) for values, numbers in watch if values]
    assert len(logged) == 3
    for values, numbers in logged:
        assert numbers == {name: pytest.approx(float(value)) for name, value in values.items()}
    progress = json.loads(max((tmp_path / "checkpoints").iterdir()).joinpath("progress.json").read_text())
    assert progress["progress"]["skipped"] == 0
