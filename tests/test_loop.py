"""A run measured in seconds: its learning rate follows the clock, and it resumes with the time it has used."""

import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from diffusers.optimization import get_scheduler
from test_scripts import VAE_OPTIONS, call  # noqa: F401 - a fixture

import train_vae
from fq_ldm.options import DataError, TrainingConfig
from fq_ldm.training.run import CLOCK_TICKS, Progress, Run, follow_clock
from fq_ldm.training.setup import make_accelerator, make_loader


@pytest.mark.parametrize("seconds", [0.0, 2.5, 5.0, 9.0, 10.0, 12.0])
def test_the_learning_rate_is_that_of_the_time_that_has_passed(seconds):
    config = TrainingConfig(max_train_seconds=10.0, lr_warmup_steps=4, learning_rate=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=CLOCK_TICKS)
    cosine = 0.1 * (1 + math.cos(math.pi * min(seconds / 10, 1))) / 2
    for step, warm_up in ((1, 0.5), (3, 1.0), (100, 1.0)):
        follow_clock(schedule, optimizer, Progress(step=step, seconds=seconds), config)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(warm_up * cosine, abs=1e-9)


def test_a_run_of_seconds_ends_with_the_step_that_reaches_them(call, image_folder, tmp_path, monkeypatch):  # noqa: F811
    clock = itertools.count()  # a second passes each time that it is looked at: two looks a step, one second of it
    monkeypatch.setattr("fq_ldm.training.run.time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    options = {
        **VAE_OPTIONS,
        "dataset": image_folder,
        "max_train_seconds": 2.5,
        "output_dir": "run",
        "report_to": "none",
    }
    status, _, said = call(train_vae.main, **options)
    assert status == 0, said
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (measured["steps"], measured["train_seconds"]) == (3, 3.0)


def test_processes_that_see_different_checkpoints_stop(tmp_path, monkeypatch):
    """Two machines whose output folder is not the same one: one would go on, the other start anew."""
    config = TrainingConfig(output_dir=str(tmp_path), train_batch_size=2, report_to="none")
    accelerator = make_accelerator(config)
    monkeypatch.setattr(accelerator, "gather", lambda tensor: torch.cat([tensor, tensor + 300]))
    loader = make_loader(torch.zeros(4, 1), config)
    with pytest.raises(DataError, match=r"different steps in .* \(\[0, 300\]\): it must lie in a file system that all"):
        Run(accelerator, config, torch.nn.Linear(1, 1), loader, None)


def test_each_process_needs_a_batch(monkeypatch):
    """Or else an epoch would have no step, and the untrained model would be the result."""
    config = TrainingConfig(train_batch_size=4)
    assert len(make_loader(torch.zeros(10, 1), config)) == 2
    monkeypatch.setattr("fq_ldm.training.setup.processes", lambda: SimpleNamespace(num_processes=3))
    with pytest.raises(DataError, match="10 training images do not fill a batch of 4 in each of 3 processes"):
        make_loader(torch.zeros(10, 1), config)
