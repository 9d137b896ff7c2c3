"""The state of a training run: what is trained, by what, and how far it is."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from ..options import DataError, TrainingConfig
from .checkpoint import load_checkpoint, newest_intact, save_checkpoint
from .optimizer import make_optimizer
from .scaler import ScalerWatch
from .setup import seed_batch

CLOCK_TICKS = 100_000  # steps of the learning rate schedule in a run that is measured in seconds


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer steps made or skipped.
        images: training images in those steps, over all processes.
        seconds: wall-clock time of those steps with their data, without checkpoints and pictures.
        skipped: steps that changed no weight, since a loss or a gradient was not finite: by skip_nonfinite, and those
            that the scaler of fp16 left out.
    """

    step: int = 0
    images: int = 0
    seconds: float = 0.0
    skipped: int = 0

    def metrics(self) -> dict[str, float]:
        """What `metrics.json` says of it."""
        metrics = {"steps": self.step, "images_seen": self.images, "train_seconds": self.seconds}
        return metrics | ({"steps_skipped": self.skipped} if self.skipped else {})


@dataclass
class Batch:
    """One batch of one process.

    Attributes:
        data: what the dataset gives, stacked.
        number: of the batch in its epoch.
        generator: of flips and noise, seeded by seed, process, epoch and number.
        share: of the run that was done before its step, in 0 .. 1.
    """

    data: torch.Tensor
    number: int
    generator: torch.Generator
    share: float


class Run:
    """A run at its first step or, if its folder holds a checkpoint, where that was written.

    The arguments are those of `train`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainingConfig,
        model: torch.nn.Module,
        loader: torch.utils.data.DataLoader,
        ema: EMAModel | None,
    ):
        self.accelerator = accelerator
        self.config = config
        self.ema = ema
        self.folder = Path(config.output_dir)
        self.sampler = loader.sampler
        optimizer = make_optimizer(accelerator, config, model)
        self.model, self.optimizer, self.loader = accelerator.prepare(model, optimizer, loader)
        if ema is not None:  # where the weights are now, and in shards if they are
            ema.shadow_params = [parameter.detach().clone() for parameter in self.model.parameters()]
        if config.compile:
            # With several processes the codebook's sums over them break the graph.
            self.model = torch.compile(self.model, fullgraph=accelerator.num_processes == 1)
        self.steps_per_epoch = math.ceil(len(self.loader) / config.gradient_accumulation_steps)
        self.max_steps = config.max_train_steps or config.num_train_epochs * self.steps_per_epoch
        self.by_clock = config.max_train_seconds is not None
        # Not prepared: accelerate would step it once for every process.
        self.schedule = get_scheduler(
            config.lr_scheduler,
            self.optimizer,
            num_warmup_steps=0 if self.by_clock else config.lr_warmup_steps,
            num_training_steps=CLOCK_TICKS if self.by_clock else self.max_steps,
        )
        self.progress = Progress()
        checkpoint = newest_intact(self.folder / "checkpoints", accelerator.print)
        self._check_shared(checkpoint)
        if checkpoint is not None:
            self._resume(checkpoint)
        self.scaler = ScalerWatch(accelerator.scaler)
        self._step_batches = 0  # so far in this step
        self._step_start = 0.0  # time
        self._logged = (0, 0.0)  # images and time at the last logged step

    def _check_shared(self, checkpoint: Path | None) -> None:
        """Raise a `DataError` if processes see different checkpoints: some would start anew, others go on."""
        mine = int(checkpoint.name.removeprefix("step_")) if checkpoint is not None else 0
        steps = self.accelerator.gather(torch.tensor([mine], device=self.accelerator.device)).tolist()
        if len(set(steps)) > 1:
            raise DataError(
                f"output_dir: processes find checkpoints of different steps in {self.folder} ({steps}): it must lie in "
                "a file system that all machines share"
            )

    def _resume(self, checkpoint: Path) -> None:
        state, schedule_state = load_checkpoint(self.accelerator, checkpoint, self.ema)
        self.progress = Progress(**state)
        self.schedule.load_state_dict(schedule_state)
        self.accelerator.step = 0  # of the accumulation: checkpoints lie between optimizer steps
        self.accelerator.print(f"resuming from {checkpoint}")

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            DataError: if it cannot be written.
        """
        self.count_skipped()
        save_checkpoint(
            self.accelerator,
            self.folder / "checkpoints",
            asdict(self.progress),
            self.schedule.state_dict(),
            self.ema,
            self.config.checkpoints_total_limit,
        )

    def count_skipped(self) -> None:
        """Bring `progress.skipped` up to date."""
        self.progress.skipped += self.scaler.collect()

    def finished(self) -> bool:
        """Whether the last step is made."""
        if self.by_clock:
            return self.progress.seconds >= self.config.max_train_seconds
        return self.progress.step >= self.max_steps

    def share(self) -> float:
        """How much of the run is done, in 0 .. 1."""
        if self.by_clock:
            return self.progress.seconds / self.config.max_train_seconds
        return self.progress.step / self.max_steps

    def due(self, steps: int) -> bool:
        """Whether what is done every so many steps, and at the end, is to be done after this one."""
        return self.progress.step % steps == 0 or self.finished()

    def batches(self) -> Iterator[Batch]:
        """The batches of this process, from the next one on until the run is finished."""
        self._step_start = time.perf_counter()
        self._logged = (self.progress.images, self._step_start)
        while not self.finished():
            epoch, steps_done = divmod(self.progress.step, self.steps_per_epoch)
            self.sampler.set_epoch(epoch)
            first = steps_done * self.config.gradient_accumulation_steps
            rest = self.accelerator.skip_first_batches(self.loader, first) if first else self.loader
            rest.set_epoch(epoch)  # a new loader counts epochs from 0, and would shuffle as in the first one
            rest._non_blocking = self.loader._non_blocking  # accelerate forgets to hand it on
            for number, data in enumerate(rest, start=first):
                key = (self.config.seed, self.accelerator.process_index, epoch, number)
                self._step_batches += 1
                yield Batch(data, number, seed_batch(self.accelerator.device, *key), self.share())
                if self.finished():
                    return

    def complete_step(self, left_out: bool) -> None:
        """Count an optimizer step, made or left out; learning rate and running mean follow."""
        progress, config = self.progress, self.config
        progress.step += 1
        progress.images += self._step_batches * config.train_batch_size * self.accelerator.num_processes
        progress.seconds += self._seconds_of_step()
        progress.skipped += left_out
        self._step_batches = 0
        self.scaler.after_step()
        if self.by_clock:
            follow_clock(self.schedule, self.optimizer, progress, config)
        else:
            self.schedule.step()
        if self.ema is not None and not left_out:
            self.ema.step(self.model.parameters())

    def start_step(self) -> None:
        """Start the clock of the next step, and after a logged one that of the speed."""
        self._step_start = time.perf_counter()
        if self.progress.step % self.config.logging_steps == 0:
            self._logged = (self.progress.images, self._step_start)

    def speed(self) -> float:
        """Images per second, of all processes, since the last logged step."""
        images, start = self._logged
        return (self.progress.images - images) / (time.perf_counter() - start)

    def bar(self) -> tqdm:
        """The progress bar, in steps."""
        return tqdm(
            total=None if self.by_clock else self.max_steps,
            initial=self.progress.step,
            desc=self.folder.name,
            disable=not self.accelerator.is_main_process,
        )

    def _seconds_of_step(self) -> float:
        """By the clock they are those of the first process, or else some would stop before others."""
        seconds = time.perf_counter() - self._step_start
        if self.by_clock and self.accelerator.num_processes > 1:
            seconds = broadcast(torch.tensor(seconds, device=self.accelerator.device, dtype=torch.float32)).item()
        return seconds


def follow_clock(schedule, optimizer, progress: Progress, config: TrainingConfig) -> None:
    """Set the learning rate by the part of the seconds that has passed; the warm-up still counts steps."""
    schedule.last_epoch = int(CLOCK_TICKS * min(progress.seconds / config.max_train_seconds, 1)) - 1
    schedule.step()
    for group in optimizer.param_groups:
        group["lr"] *= min(1, (progress.step + 1) / max(config.lr_warmup_steps, 1))
