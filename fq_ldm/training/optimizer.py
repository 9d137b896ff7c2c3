"""The optimizer of a run."""

import torch
from accelerate import Accelerator

from ..options import TrainingConfig


def make_optimizer(accelerator: Accelerator, config: TrainingConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW, or Muon (Jordan et al. 2024) of timm, whose steps are as long as those of AdamW (Liu et al. 2025).

    So one learning rate serves both. Muon orthogonalises the steps of matrices, and of convolutions as matrices with a
    row for each output channel, on a GPU those of each shape together; biases, norms and what is too narrow for it are
    trained by AdamW with the same Nesterov momentum.

    Args:
        accelerator: of the run.
        config: the options of the run.
        model: not prepared.
    """
    betas = (config.adam_beta1, config.adam_beta2)
    common = dict(lr=config.learning_rate, betas=betas, weight_decay=config.weight_decay)
    if config.optimizer == "muon":
        # Seconds to import, which other runs need not wait for.
        from timm.optim import Muon

        from .muon import BatchedMuon

        # On a CPU the copies of a batch cost more than they save.
        chosen = BatchedMuon if accelerator.device.type == "cuda" else Muon
        return chosen(model.parameters(), nesterov=True, **common)
    fused = looks_late(accelerator.device) or None  # such an optimizer can leave a step out by itself
    return torch.optim.AdamW(model.parameters(), fused=fused, **common)


def looks_late(device: torch.device) -> bool:
    """Whether faults are looked for at logged steps alone: on a GPU, where to look is to wait."""
    return device.type == "cuda"
