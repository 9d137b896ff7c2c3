"""The training loop that both scripts run."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from ..options import TrainingConfig
from .interruption import StopRequest, leave
from .nonfinite import Watch, make_watch
from .run import Progress, Run


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
        compute_loss: `compute_loss(prepared_model, batch)` gives the loss of a `Batch`, a scalar, and a dictionary of
            what the progress bar and the tracker show: numbers, scalar tensors, or functions that give one when it
            is shown.
        preview: `preview(step)` writes a picture and gives {name: arrays (n, H, W, 3)} for the tracker. All processes
            call it, since the model's weights may lie in shards; what others than the main one give is not used.
        ema: becomes the running mean of the model's parameters, whatever it holds.

    Returns:
        What was done in all.

    Raises:
        DataError: at a loss or gradient that is not finite, unless such steps are to be skipped; or if no checkpoint
            can be written or read.
        Stopped: after SIGTERM or Ctrl-C.
    """
    run = Run(accelerator, config, model, loader, ema)
    accelerator.init_trackers(run.folder.name)
    run.model.train()
    watch = make_watch(run)
    with run.bar() as bar, StopRequest(accelerator) as request:
        for batch in run.batches():
            # Accumulate gradients, and update the weights.
            with accelerator.accumulate(run.model):
                loss, shown = compute_loss(run.model, batch)
                run.scaler.before_step()
                watch.take(batch, loss)
                run.optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            run.complete_step(left_out=watch.complete())
            bar.update()

            # Log.
            if run.due(config.logging_steps):
                _log(run, watch, bar, {"loss": loss.detach(), **shown})

            # Draw.
            if run.due(config.preview_steps):
                _draw(run, preview)

            # Save, and stop if asked to.
            stop = request.agreed(run.progress.step)
            if stop or run.due(config.checkpointing_steps):
                watch.read({})
                run.save()
            if stop and not run.finished():
                leave(accelerator, run.progress.step, stop)
            run.start_step()
    run.count_skipped()
    accelerator.wait_for_everyone()
    return run.progress


def _log(run: Run, watch: Watch, bar: tqdm, values: dict) -> None:
    """Show scalars in the progress bar and the tracker; stop if fp16 can train nothing."""
    speed = run.speed()
    values = {name: value() if callable(value) else value for name, value in values.items()}
    values = watch.read({**values, **run.scaler.shown()})
    run.scaler.check(values, run.progress.step)
    bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()} | {"images/s": f"{speed:.0f}"})
    further = {"learning_rate": run.schedule.get_last_lr()[0], "images_per_second": speed}
    run.accelerator.log({**values, **further}, run.progress.step)


def _draw(run: Run, preview: Callable[[int], dict]) -> None:
    """Write the preview, and send it to the trackers that take pictures."""
    step = run.progress.step
    pictures = preview(step)
    if run.accelerator.is_main_process:
        for tracker in run.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images(pictures, step=step, **layout)
    run.model.train()
