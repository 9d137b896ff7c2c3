"""Muon's first step, whose momentum is the gradient alone."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fq_ldm.options import TrainingConfig, UserError, check_same_run
from fq_ldm.training.optimizer import make_optimizer

RATE = 0.01
NADAMW = 1.9  # a first step of AdamW with Nesterov momentum: 1 + beta 1
ONE_PROCESS = SimpleNamespace(device=torch.device("cpu"))


def first_step(model, inputs):
    """How one step changes the weights, in units of the learning rate: {name: tensor}."""
    config = TrainingConfig(optimizer="muon", learning_rate=RATE)
    optimizer = make_optimizer(ONE_PROCESS, config, model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model(inputs).square().mean().backward()
    optimizer.step()
    return {name: (weight.detach() - before[name]) / RATE for name, weight in model.named_parameters()}


def test_a_convolution_moves_alike_in_all_directions_and_as_far_as_by_adamw():
    torch.manual_seed(0)
    model = torch.nn.Conv2d(16, 32, 3)
    change = first_step(model, torch.randn(8, 16, 9, 9))
    matrix = change["weight"].flatten(1)  # (32, 144)
    # Orthogonal rows of this norm are 0.2 for each number on the mean, what AdamW does.
    values = torch.linalg.svdvals(matrix) / (0.2 * matrix.shape[1] ** 0.5)
    assert 0.7 < values.min() and values.max() < 1.3
    assert matrix.square().mean().sqrt() == pytest.approx(0.2, rel=0.15)
    assert torch.allclose(change["bias"].abs(), torch.full((32,), NADAMW), atol=1e-2)


def test_a_narrow_matrix_is_left_to_adamw():
    change = first_step(torch.nn.Linear(256, 2), torch.randn(8, 256))
    assert torch.allclose(change["weight"].abs(), torch.full((2, 256), NADAMW), atol=1e-2)


def test_a_run_from_before_the_option_goes_on_with_adamw():
    check_same_run(Path("run"), {"seed": 0}, {"seed": 0, "optimizer": "adamw"})
    check_same_run(Path("run"), {"seed": 0}, {"seed": 0, "painter_equalizer": False})
    with pytest.raises(UserError, match="painter_equalizer False -> True"):
        check_same_run(Path("run"), {"seed": 0}, {"seed": 0, "painter_equalizer": True})
    with pytest.raises(UserError, match="optimizer adamw -> muon"):
        check_same_run(Path("run"), {"seed": 0}, {"seed": 0, "optimizer": "muon"})
