"""Losses and gradients that are not finite: how they are found, and what happens then."""

import torch

from ..options import DataError
from .run import Batch, Run

NONFINITE_FILE = "nonfinite_steps.txt"


def loss_fault(run: Run, batch: Batch, loss: torch.Tensor) -> str | None:
    """What is wrong with the loss of a batch, the same words on all processes; None if nothing."""
    losses = run.accelerator.gather(loss.detach().float().view(1))
    if torch.isfinite(losses).all():
        return None
    process = int((~torch.isfinite(losses)).nonzero()[0])
    size = run.config.train_batch_size
    start = (batch.number * run.accelerator.num_processes + process) * size
    images = list(run.sampler)[start : start + size]
    return f"the loss is {losses[process].item()} for the training images {', '.join(map(str, images))}"


def gradient_fault(run: Run) -> str | None:
    """Clip the gradients of a complete step; what is wrong with them, or None."""
    if not run.accelerator.sync_gradients:
        return None
    norm = run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.max_grad_norm)
    # The scaler of fp16 expects overflows, and skips such steps itself.
    if run.accelerator.scaler is not None or torch.isfinite(norm):
        return None
    return f"the gradient is {norm.item()}"


def at_fault(run: Run, fault: str) -> None:
    """Save the state before the step and stop; or, with `skip_nonfinite`, note in the log that it is left out.

    Raises:
        DataError: with the fault, unless such steps are skipped.
    """
    step = run.progress.step + 1
    if not run.config.skip_nonfinite:
        run.save()
        raise DataError(
            f"step {step}: {fault}; the state before the step is saved: lower learning_rate, look at the images, or "
            "go on with skip_nonfinite"
        )
    if run.accelerator.sync_gradients and run.accelerator.is_main_process:
        with (run.folder / NONFINITE_FILE).open("a") as file:
            file.write(f"step {step}: {fault}; skipped\n")
