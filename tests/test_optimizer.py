"""Muon: its first step, whose momentum is the gradient alone, and the matrices of a shape taken together."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from timm.optim import Muon

from fq_ldm.options import TrainingConfig, UserError, check_same_run
from fq_ldm.training.muon import BatchedMuon
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


def trained(optimizer_class, steps=range(4), start=None, device="cpu"):
    """How far weights have moved, in learning rates, and the optimizer's state."""
    torch.manual_seed(0)
    shapes = [(8, 8, 3, 3), (8, 8, 3, 3), (8, 72), (12, 8), (8,), (8, 8, 1, 1), (8, 8)]
    first = [torch.randn(shape) for shape in shapes]
    weights = [torch.nn.Parameter(value.clone().to(device)) for value in (first if start is None else start[0])]
    groups = [{"params": weights[:1], "lr": 2 * RATE}, {"params": weights[1:]}]
    optimizer = optimizer_class(groups, lr=RATE, weight_decay=5, nesterov=True)
    if start is not None:
        optimizer.load_state_dict(start[1])
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator).to(device)
        weights[-1].grad = None  # always
        weights[1].grad = None if step == 2 else weights[1].grad
        before = [weight.grad for weight in weights]
        optimizer.step()
        assert all(weight.grad is gradient for weight, gradient in zip(weights, before, strict=True))
    moved = [(weight.detach().cpu() - value) / RATE for weight, value in zip(weights, first, strict=True)]
    return weights, optimizer.state_dict(), moved


def assert_same(found, expected):
    # Matrices are bfloat16 inside: their steps, of about 0.2, are right to a hundredth.
    torch.testing.assert_close(found[2], expected[2], rtol=0, atol=0.02)
    torch.testing.assert_close(found[1]["state"], expected[1]["state"], rtol=1e-4, atol=1e-6)


def test_matrices_taken_together_move_as_one_by_one():
    expected = trained(Muon)
    assert min(moved.abs().mean() for moved in expected[2][:-1]) > 0.5
    assert_same(trained(BatchedMuon), expected)


@pytest.mark.parametrize("kinds", [(Muon, BatchedMuon), (BatchedMuon, Muon)])
def test_one_goes_on_with_the_state_of_the_other(kinds):
    assert_same(trained(kinds[1], range(2, 4), trained(kinds[0], range(2))), trained(Muon))


def test_a_closure_is_called_once_before_the_step():
    weights = [torch.nn.Parameter(torch.ones(8, 8)) for _ in range(2)]
    optimizer, calls = BatchedMuon(weights, lr=RATE, nesterov=True), []

    def closure():
        optimizer.zero_grad()
        calls.append(sum((weight * weight).sum() for weight in weights))
        calls[-1].backward()
        return calls[-1]

    for step in range(3):
        assert optimizer.step(closure) is calls[step] and len(calls) == step + 1
    assert calls[2] < calls[1] < calls[0]


def test_other_modes_of_muon_are_refused():
    with pytest.raises(ValueError, match="the algo muon and the conv_mode flatten alone"):
        BatchedMuon([torch.nn.Parameter(torch.ones(8, 8))], algo="adamuon")


@pytest.mark.parametrize("device, kind", [("cpu", Muon), ("cuda", BatchedMuon)])
def test_matrices_are_taken_together_on_a_gpu(device, kind):
    config = TrainingConfig(optimizer="muon")
    optimizer = make_optimizer(SimpleNamespace(device=torch.device(device)), config, torch.nn.Linear(8, 8))
    assert type(optimizer) is kind and optimizer.defaults["nesterov"]


def test_a_run_from_before_the_option_goes_on_with_adamw():
    check_same_run(Path("run"), {"seed": 0}, {"seed": 0, "optimizer": "adamw"})
    check_same_run(Path("run"), {"seed": 0}, {"seed": 0, "painter_equalizer": False})
    with pytest.raises(UserError, match="painter_equalizer False -> True"):
        check_same_run(Path("run"), {"seed": 0}, {"seed": 0, "painter_equalizer": True})
    with pytest.raises(UserError, match="optimizer adamw -> muon"):
        check_same_run(Path("run"), {"seed": 0}, {"seed": 0, "optimizer": "muon"})
