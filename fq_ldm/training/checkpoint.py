"""Checkpoints to resume from: written aside, renamed when complete, the oldest removed.

They hold what training needs and are no release: the final weights are diffusers folders. A checkpoint carries the
digests of its files, so that one that was damaged after it was written is found out and the one before it used.
"""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils.constants import FSDP_MODEL_NAME
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..options import DataError, UserError
from .sharding import copy_whole_, whole

PROGRESS_FILE = "progress.json"
EMA_FILE = "ema.safetensors"


def save_checkpoint(
    accelerator: Accelerator, folder: Path, progress: dict, schedule: dict, ema: EMAModel | None, limit: int
) -> None:
    """Write `folder/step_<progress["step"]>` and keep the newest `limit` checkpoints.

    Raises:
        DataError: if it cannot be written; earlier checkpoints stay as they are.
    """
    partial, final = folder / "partial", folder / f"step_{progress['step']:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        averages = {} if ema is None else _averages(ema, accelerator.is_main_process)
        if accelerator.is_main_process:
            if ema is not None:
                save_file(averages, partial / EMA_FILE)
            digests = {path.name: _digest(path) for path in sorted(partial.iterdir())}
            state = {"progress": progress, "schedule": schedule, "digests": digests}
            if ema is not None:
                state["averaged_steps"] = ema.optimization_step  # fewer than steps, where some were skipped
            (partial / PROGRESS_FILE).write_text(json.dumps(state))
            for path in partial.iterdir():
                _flush(path)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _flush(folder)
            for old in checkpoints(folder)[:-limit]:
                shutil.rmtree(old)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have words of their own for it
        shutil.rmtree(partial, ignore_errors=True)
        kept = checkpoints(folder)
        left = f"the last complete one is {kept[-1].name}" if kept else "there is none yet"
        reason = " ".join(str(error).split())
        raise DataError(
            f"{folder}: the checkpoint of step {progress['step']} cannot be written ({reason}); {left}: make room and "
            "run the same command again"
        ) from error
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, ema: EMAModel | None) -> tuple[dict, dict]:
    """Restore everything that was prepared with the accelerator; returns the progress and the schedule's state.

    Pickled parts (the optimizer's state, the random states) are read with `weights_only=True`.

    Raises:
        UserError: if it holds sharded weights and these are not, or the other way round.
        DataError: if it cannot be loaded.
    """
    sharded = (checkpoint / f"{FSDP_MODEL_NAME}.bin").is_file()
    if sharded != accelerator.is_fsdp2:
        raise UserError(
            f"{checkpoint}: was written {'with' if sharded else 'without'} FSDP, and cannot be resumed "
            f"{'without' if sharded else 'with'} it: use the same configuration of accelerate"
        )
    try:
        accelerator.load_state(str(checkpoint))
        parameters = load_file(checkpoint / EMA_FILE) if ema is not None else {}
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        raise DataError(f"{checkpoint}: cannot be loaded ({' '.join(str(error).split())[:300]})") from error
    saved = json.loads((checkpoint / PROGRESS_FILE).read_text())
    if ema is not None:
        for i, shadow in enumerate(ema.shadow_params):
            copy_whole_(shadow, parameters[str(i)])
        ema.optimization_step = saved.get("averaged_steps", saved["progress"]["step"])  # of an older run
    return saved["progress"], saved["schedule"]


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("step_*"))


def newest_intact(folder: Path, report) -> Path | None:
    """The newest checkpoint whose files are what was written, or None if there is no checkpoint.

    Args:
        folder: of the checkpoints.
        report: called with a line about each damaged one.

    Raises:
        DataError: if all are damaged.
    """
    found = checkpoints(folder)
    for checkpoint in reversed(found):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        report(f"{checkpoint}: is damaged ({damage}); trying the one before")
    if found:
        raise DataError(f"{folder}: all checkpoints are damaged; delete the folder to start anew")
    return None


def _averages(ema: EMAModel, keep: bool) -> dict[str, torch.Tensor]:
    """The running means, whole, in the memory of the processes that keep them; shards come from all processes."""
    averages = {}
    for i, shadow in enumerate(ema.shadow_params):  # one by one, which never takes the room of all on a GPU
        parameter = whole(shadow)
        if keep:
            averages[str(i)] = parameter.cpu().contiguous()
    return averages


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words."""
    try:
        digests = json.loads((checkpoint / PROGRESS_FILE).read_text())["digests"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{PROGRESS_FILE} is missing or unreadable"
    for name, digest in digests.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if _digest(checkpoint / name) != digest:
            return f"{name} has changed since it was written"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Let a file, or the names in a folder, reach the disk before anything that relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
