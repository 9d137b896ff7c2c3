"""The order of the images: another one in every epoch, whatever the processes and the stops."""

import json

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from order_worker import watch
from test_slow_processes import launch

IMAGES, STEPS_PER_EPOCH = 50, 6


def expected(epochs: int, images_per_step: int) -> list[list[int]]:
    """The images of each step: a permutation of all for each epoch, without what fills no step."""
    steps = []
    for epoch in range(epochs):
        order = np.random.default_rng([0, epoch]).permutation(IMAGES).tolist()
        steps += [order[i * images_per_step : (i + 1) * images_per_step] for i in range(IMAGES // images_per_step)]
    return steps


def alone(folder, steps, accumulation=1):
    AcceleratorState._reset_state(reset_partial_state=True)
    watch(folder, IMAGES, 8, steps, accumulation)
    return json.loads((folder / "0.json").read_text())


@pytest.mark.parametrize("stops", [[], [6], [4, 9, 14]], ids=["whole", "at an epoch's end", "inside of epochs"])
def test_every_epoch_has_an_order_of_its_own(tmp_path, stops):
    for steps in (*stops, 3 * STEPS_PER_EPOCH):
        seen = alone(tmp_path, steps)
    assert seen == expected(3, 8)
    epochs = [sum(seen[i : i + STEPS_PER_EPOCH], []) for i in (0, 6, 12)]
    assert all(len(set(epoch)) == 48 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_all_images_are_seen_over_epochs(tmp_path):
    """Each epoch leaves two of 50 out, never the same two for long."""
    seen = sum(alone(tmp_path, 5 * STEPS_PER_EPOCH), [])
    assert set(seen) == set(range(IMAGES))


def test_accumulated_batches_are_those_of_the_epoch(tmp_path):
    seen = alone(tmp_path, 6, accumulation=4)  # two steps an epoch: of four batches and of two
    assert seen == expected(3, 8)


@pytest.mark.slow
@pytest.mark.parametrize("stops", [[], [7]], ids=["whole", "resumed"])
def test_two_processes_share_the_order_of_one(tmp_path, stops):
    for steps in (*stops, 18):
        launch(2, "tests/order_worker.py", tmp_path, tmp_path, IMAGES, 4, steps)
    shares = [json.loads((tmp_path / f"{process}.json").read_text()) for process in (0, 1)]
    assert [first + second for first, second in zip(*shares, strict=True)] == expected(3, 8)
