"""Muon of timm, with the matrices of each shape taken together."""

from collections import defaultdict

import torch
from timm.optim.muon import Muon, muon

OPTIONS = (
    "lr", "weight_decay", "momentum", "nesterov", "ns_steps", "ns_coefficients", "eps", "safety_factor", "adjust_lr_fn",
    "scale_eps",
)  # fmt: skip


class BatchedMuon(Muon):
    """timm's Muon (Jordan et al. 2024), which computes the same in fewer and larger operations.

    timm orthogonalises one matrix after another, in some thirty operations each. A UNet has a hundred matrices of two
    dozen shapes, and on a GPU each operation costs its launch: here those of one shape are one batch.

    Args:
        params: of one device and dtype.
        options: as timm's, but `algo` and `conv_mode` as they are by default.
    """

    def __init__(self, params, **options):
        super().__init__(params, **options)
        if any((group["algo"], group["conv_mode"]) != ("muon", "flatten") for group in self.param_groups):
            raise ValueError("BatchedMuon has the algo muon and the conv_mode flatten alone: take timm.optim.Muon")

    @torch.no_grad()
    def step(self, closure=None):
        """One step. timm makes the first one of each weight, and decides in it whether that is a matrix for Muon."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        taken = []
        for group in self.param_groups:
            options = {name: group[name] for name in OPTIONS}
            shapes = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None and "momentum_buffer" in self.state[weight]:
                    shapes[weight.shape].append(weight)
            for weights in shapes.values():
                self._move_(weights, options)
                taken += [(weight, weight.grad) for weight in weights]
        for weight, _ in taken:
            weight.grad = None  # so timm passes over it
        super().step()
        for weight, gradient in taken:
            weight.grad = gradient
        return loss

    def _move_(self, weights: list[torch.Tensor], options: dict) -> None:
        """The step of weights of one shape: to timm they are one convolution, which has each at a place of its own."""
        momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
        stacks = [
            torch.stack([tensor.flatten(1) for tensor in tensors])
            for tensors in (weights, [weight.grad for weight in weights], momenta)
        ]
        kernels = [[stack.permute(1, 2, 0)] for stack in stacks]  # (rows, columns, weights)
        muon(*kernels, **options, conv_mode="batched", normalize_spatial=False)
        for tensors, stack in ((weights, stacks[0]), (momenta, stacks[2])):
            torch._foreach_copy_(tensors, [new.view_as(old) for new, old in zip(stack, tensors, strict=True)])
