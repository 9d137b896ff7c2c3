"""Losses and gradients that are not finite: how they are found, and what happens then.

On the CPU each loss and each gradient is looked at before it does anything. On a GPU to look is to wait: there fused
AdamW leaves such steps out by itself, and whether there were any is read together with the logged numbers. Muon cannot,
and waits once a step.
"""

import torch

from ..options import DataError
from .optimizer import looks_late
from .run import Batch, Run
from .sharding import whole

NONFINITE_FILE = "nonfinite_steps.txt"


class Watch:
    """Makes the steps of a run, and stops it at a fault."""

    def __init__(self, run: Run):
        self.run = run
        self.fault: str | None = None  # of the current step

    def take(self, batch: Batch, loss: torch.Tensor) -> None:
        """Add the gradients of a batch and, if it completes a step, update the weights.

        Raises:
            DataError: at a fault, unless such steps are to be skipped.
        """
        run = self.run
        self.fault = self.fault or self._loss_fault(batch, loss) or self._gradient_fault(loss)
        if self.fault is None:
            run.optimizer.step()
        elif not run.config.skip_nonfinite:
            stop_at(run, run.progress.step + 1, self.fault, "the state before the step is saved")
        elif run.accelerator.sync_gradients:
            note_skipped(run, run.progress.step + 1, self.fault)

    def complete(self) -> bool:
        """To be called after each complete step: whether it was left out."""
        left_out, self.fault = self.fault is not None, None
        return left_out

    def read(self, values: dict[str, torch.Tensor | float]) -> dict[str, float]:
        """The logged scalars as numbers."""
        return {name: torch.as_tensor(value).item() for name, value in values.items()}

    def _loss_fault(self, batch: Batch, loss: torch.Tensor) -> str | None:
        losses = self.run.accelerator.gather(loss.detach().float().view(1))
        if torch.isfinite(losses).all():
            return None
        process = int((~torch.isfinite(losses)).nonzero()[0])
        return describe(self.run, losses[process].item(), self.run.progress.step + 1, batch.number, process)

    def _gradient_fault(self, loss: torch.Tensor) -> str | None:
        norm = self._backward(loss)
        return None if norm is None or torch.isfinite(norm) else f"the gradient is {norm.item()}"

    def _backward(self, loss: torch.Tensor) -> torch.Tensor | None:
        """Add the gradients of a loss, and clip those of a complete step; their norm, where it is ours to judge."""
        accelerator = self.run.accelerator
        accelerator.backward(loss)
        if not accelerator.sync_gradients:
            return None
        norm = whole(accelerator.clip_grad_norm_(self.run.model.parameters(), self.run.config.max_grad_norm))
        # The scaler of fp16 expects overflows, and skips such steps itself.
        return norm if accelerator.scaler is None else None


class LateWatch(Watch):
    """The same without waiting for the device at every step.

    A step whose gradient is not finite changes nothing: fused AdamW is told so on the device, as a scaler tells it. The
    first fault since the last reading keeps its step, its batch and its value until it is read.
    """

    def __init__(self, run: Run):
        super().__init__(run)
        self._clear()

    def _clear(self) -> None:
        # Steps left out; of the first fault its step, its batch (-1 for a gradient), and the loss or the norm. Float64
        # holds every step exactly.
        zero = torch.zeros((), dtype=torch.float64, device=self.run.accelerator.device)
        self._left_out, self._step, self._number, self._value = zero, zero, zero, zero

    def take(self, batch: Batch, loss: torch.Tensor) -> None:
        """As `Watch.take`, but faults are told by `read`."""
        optimizer = self.run.optimizer
        self._note(loss.detach(), batch.number)
        norm = self._backward(loss)
        if norm is not None:
            self._note(norm, -1)
            left_out = ~torch.isfinite(norm)
            optimizer.optimizer.found_inf = left_out.float()
            self._left_out = self._left_out + left_out
        optimizer.step()

    def complete(self) -> bool:
        """False: `read` counts what was left out."""
        return False

    def read(self, values: dict[str, torch.Tensor | float]) -> dict[str, float]:
        """The logged scalars as numbers, by one transfer.

        Raises:
            DataError: if there was a fault since the last reading, unless such steps are to be skipped.
        """
        device = self.run.accelerator.device
        scalars = [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values.values()]
        state = (self._left_out, self._step, self._number, self._value)
        numbers = self.run.accelerator.gather(torch.stack([*state, *scalars])[None]).tolist()
        self._tell([row[:4] for row in numbers])
        own = numbers[self.run.accelerator.process_index]
        return dict(zip(values, own[4:], strict=True))

    def _note(self, value: torch.Tensor, number: int) -> None:
        first = ~torch.isfinite(value) & (self._step == 0)
        self._step = torch.where(first, self.run.progress.step + 1, self._step)
        self._number = torch.where(first, number, self._number)
        self._value = torch.where(first, value.double(), self._value)

    def _tell(self, states: list[list[float]]) -> None:
        """Count, and stop at or note, what the processes have found."""
        self._clear()
        self.run.progress.skipped += int(max(skipped for skipped, *_ in states))
        found = [(int(step), int(number), value, i) for i, (_, step, number, value) in enumerate(states) if step]
        if not found:
            return
        # A loss tells more than the gradient that it spoils.
        step, number, value, process = min(found, key=lambda fault: (fault[0], fault[1] < 0))
        fault = f"the gradient is {value}" if number < 0 else describe(self.run, value, step, number, process)
        if self.run.config.skip_nonfinite:
            note_skipped(self.run, step, fault)
        else:
            stop_at(self.run, step, fault, f"the weights have not taken it; step {self.run.progress.step} is saved")


def make_watch(run: Run) -> Watch:
    """The watch that fits the device and the optimizer."""
    late = looks_late(run.accelerator.device) and run.config.optimizer == "adamw"  # Muon leaves no step out by itself
    return (LateWatch if late else Watch)(run)


def describe(run: Run, loss: float, step: int, number: int, process: int) -> str:
    """The loss of batch `number` of the epoch of a step, with the images of its process."""
    size = run.config.train_batch_size
    start = (number * run.accelerator.num_processes + process) * size
    images = run.sampler.order((step - 1) // run.steps_per_epoch)[start : start + size]
    return f"the loss is {loss} for the training images {', '.join(map(str, images))}"


def stop_at(run: Run, step: int, fault: str, saved: str) -> None:
    """Write a checkpoint and stop.

    Raises:
        DataError: always, with the fault.
    """
    run.save()
    raise DataError(
        f"step {step}: {fault}; {saved}: lower learning_rate, look at the images, or go on with skip_nonfinite"
    )


def note_skipped(run: Run, step: int, fault: str) -> None:
    """Name a step that was left out in the run's log of such steps."""
    if run.accelerator.is_main_process:
        with (run.folder / NONFINITE_FILE).open("a") as file:
            file.write(f"step {step}: {fault}; skipped\n")
