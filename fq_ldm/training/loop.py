"""The training loop that both scripts run."""

import math
import time
from collections.abc import Callable
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
from .interruption import Stopped, StopRequest
from .setup import seed_batch

CLOCK_TICKS = 100_000  # steps of the learning rate schedule in a run that is measured in seconds
NONFINITE_FILE = "nonfinite_steps.txt"


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer steps made or skipped.
        images: training images in those steps, over all processes.
        seconds: wall-clock time of those steps with their data, without checkpoints and pictures.
        skipped: steps that changed no weight, since a loss or a gradient was not finite.
    """

    step: int = 0
    images: int = 0
    seconds: float = 0.0
    skipped: int = 0


def train(
    accelerator: Accelerator,
    config: TrainingConfig,
    model: torch.nn.Module,
    loader: torch.utils.data.DataLoader,
    compute_loss: Callable,
    preview: Callable[[int], dict],
    ema: EMAModel | None = None,
) -> Progress:
    """Train `model` until its last step, resuming where an earlier run of the same folder stopped.

    Args:
        accelerator: from `make_accelerator`.
        config: the options of the run.
        model: what is trained; its weights hold the result.
        loader: from `make_loader`.
        compute_loss: `compute_loss(prepared_model, batch, generator)` gives the loss, a scalar, and a dictionary
            of what the progress bar and the tracker show (numbers or scalar tensors).
        preview: `preview(step)` writes a picture and gives {name: arrays (n, H, W, 3)} for the tracker.
        ema: running mean of the model's parameters.

    Returns:
        What was done in all.

    Raises:
        DataError: at a loss or gradient that is not finite, unless such steps are to be skipped; or if no checkpoint
            can be written or read.
        Stopped: after SIGTERM or Ctrl-C.
    """
    folder = Path(config.output_dir)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.weight_decay,
    )
    sampler = loader.sampler
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps_per_epoch = math.ceil(len(loader) / config.gradient_accumulation_steps)
    max_steps = config.max_train_steps or config.num_train_epochs * steps_per_epoch
    by_clock = config.max_train_seconds is not None
    # Not prepared: accelerate would step it once for every process.
    schedule = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=0 if by_clock else config.lr_warmup_steps,
        num_training_steps=CLOCK_TICKS if by_clock else max_steps,
    )

    # Resume
    progress = Progress()
    if checkpoint := newest_intact(folder / "checkpoints", accelerator.print):
        state, schedule_state = load_checkpoint(accelerator, checkpoint, ema)
        progress = Progress(**state)
        schedule.load_state_dict(schedule_state)
        accelerator.step = 0  # of the accumulation: checkpoints lie between optimizer steps
        accelerator.print(f"resuming from {checkpoint}")
    accelerator.init_trackers(folder.name)

    def save():
        state = asdict(progress)
        save_checkpoint(
            accelerator, folder / "checkpoints", state, schedule.state_dict(), ema, config.checkpoints_total_limit
        )

    def finished():
        return progress.seconds >= config.max_train_seconds if by_clock else progress.step >= max_steps

    model.train()
    images, clock = progress.images, time.perf_counter()  # at the last logged line
    started = clock  # of the current step
    batches = 0  # of the current step
    fault = None  # of the current step
    bar = tqdm(
        total=None if by_clock else max_steps,
        initial=progress.step,
        desc=folder.name,
        disable=not accelerator.is_main_process,
    )
    with bar, StopRequest(accelerator) as request:
        while not finished():
            epoch, steps_done = divmod(progress.step, steps_per_epoch)
            sampler.set_epoch(epoch)
            first = steps_done * config.gradient_accumulation_steps
            for number, batch in enumerate(accelerator.skip_first_batches(loader, first), start=first):
                generator = seed_batch(accelerator.device, config.seed, accelerator.process_index, epoch, number)
                with accelerator.accumulate(model):
                    loss, shown = compute_loss(model, batch, generator)
                    fault = fault or _faulty_loss(loss, accelerator, sampler, config, number)
                    if fault is None:
                        accelerator.backward(loss)
                        if accelerator.sync_gradients:
                            norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                            # The scaler of fp16 expects overflows, and skips such steps itself.
                            if accelerator.scaler is None and not torch.isfinite(norm):
                                fault = f"the gradient is {norm.item()}"
                    if fault is None:
                        optimizer.step()
                    elif not config.skip_nonfinite:
                        save()
                        raise DataError(
                            f"step {progress.step + 1}: {fault}; the state before the step is saved: lower "
                            "learning_rate, look at the images, or go on with skip_nonfinite"
                        )
                    optimizer.zero_grad()
                batches += 1
                if not accelerator.sync_gradients:
                    continue

                # An optimizer step is complete.
                progress.step += 1
                progress.images += batches * config.train_batch_size * accelerator.num_processes
                progress.seconds += _seconds_since(started, accelerator, by_clock)
                if by_clock:
                    _follow_clock(schedule, optimizer, progress, config)
                else:
                    schedule.step()
                if fault is not None:
                    progress.skipped += 1
                    _note_skipped(folder, progress.step, fault, accelerator)
                elif ema is not None:
                    ema.step(model.parameters())
                batches, fault = 0, None
                bar.update()
                step, last = progress.step, finished()
                if step % config.logging_steps == 0 or last:
                    speed = (progress.images - images) / (time.perf_counter() - clock)
                    values = {
                        name: torch.as_tensor(value).item() for name, value in {"loss": loss.detach(), **shown}.items()
                    }
                    bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()} | {"images/s": f"{speed:.0f}"})
                    accelerator.log(
                        {**values, "learning_rate": schedule.get_last_lr()[0], "images_per_second": speed}, step
                    )
                if step % config.preview_steps == 0 or last:
                    if accelerator.is_main_process:
                        log_pictures(accelerator, preview(step), step)
                    model.train()
                stop = request.agreed()
                if step % config.checkpointing_steps == 0 or last or stop:
                    save()
                if stop and not last:
                    accelerator.end_training()
                    raise Stopped(step, stop, accelerator.is_main_process)
                started = time.perf_counter()
                if step % config.logging_steps == 0:
                    images, clock = progress.images, started
                if last:
                    break
    accelerator.wait_for_everyone()
    return progress


def log_pictures(accelerator: Accelerator, pictures: dict, step: int) -> None:
    """Send pictures, name -> arrays (n, H, W, 3), to the trackers that take them."""
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(pictures, step=step, **layout)


def _faulty_loss(
    loss: torch.Tensor, accelerator: Accelerator, sampler, config: TrainingConfig, number: int
) -> str | None:
    """What is wrong with the loss of batch `number` of the epoch, the same words on all processes; None if nothing."""
    losses = accelerator.gather(loss.detach().float().view(1))
    if torch.isfinite(losses).all():
        return None
    process = int((~torch.isfinite(losses)).nonzero()[0])
    start = (number * accelerator.num_processes + process) * config.train_batch_size
    images = list(sampler)[start : start + config.train_batch_size]
    return f"the loss is {losses[process].item()} for the training images {', '.join(map(str, images))}"


def _note_skipped(folder: Path, step: int, fault: str, accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        with (folder / NONFINITE_FILE).open("a") as file:
            file.write(f"step {step}: {fault}; skipped\n")


def _seconds_since(started: float, accelerator: Accelerator, agree: bool) -> float:
    """Seconds since then; with `agree`, those of the first process, or else some would stop before others."""
    seconds = time.perf_counter() - started
    if agree and accelerator.num_processes > 1:
        seconds = broadcast(torch.tensor(seconds, device=accelerator.device, dtype=torch.float32)).item()
    return seconds


def _follow_clock(schedule, optimizer, progress: Progress, config: TrainingConfig) -> None:
    """Set the learning rate by the part of the seconds that has passed; the warm-up still counts steps."""
    schedule.last_epoch = int(CLOCK_TICKS * min(progress.seconds / config.max_train_seconds, 1)) - 1
    schedule.step()
    for group in optimizer.param_groups:
        group["lr"] *= min(1, (progress.step + 1) / max(config.lr_warmup_steps, 1))
