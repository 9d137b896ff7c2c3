"""Leaving in order when a scheduler (SIGTERM) or a person (Ctrl-C) asks for it."""

import signal

import torch
from accelerate import Accelerator

from ..options import UserError

ASK_STEPS = 10  # of several processes: asking waits for all of them


class Stopped(UserError):
    """The run was asked to stop and has saved where it was."""

    def __init__(self, step: int, signal_number: int, is_main_process: bool):
        name = signal.Signals(signal_number).name
        super().__init__(
            f"{name}: stopped after step {step}, which is saved; run the same command again to go on"
            if is_main_process
            else ""
        )
        self.exit_status = 128 + signal_number  # as a shell reports it


def leave(accelerator: Accelerator, step: int, signal_number: int) -> None:
    """End a run that is saved, before its last step.

    Raises:
        Stopped: always.
    """
    accelerator.end_training()
    raise Stopped(step, signal_number, accelerator.is_main_process)


class StopRequest:
    """Notes SIGTERM and Ctrl-C instead of dying from them; a second one kills as usual.

    Use it as a context around the training loop.

    Args:
        accelerator: its processes all stop at the same step, whichever was asked.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._signal = 0

    def __enter__(self) -> "StopRequest":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error) -> None:
        self._restore()

    def agreed(self, step: int) -> int:
        """The signal that any process has been sent, or 0; the same on all of them, which ask at every tenth step."""
        if self.accelerator.num_processes == 1:
            return self._signal
        if step % ASK_STEPS:
            return 0
        mine = torch.tensor([self._signal], device=self.accelerator.device)
        return int(self.accelerator.gather(mine).max())

    def _note(self, number: int, frame) -> None:
        self._signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
