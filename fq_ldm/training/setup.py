"""What a run stands on before its first step: its folder, the accelerator and the order of the images."""

import os
import signal
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed

from ..atomic import replacing
from ..cards import CONFIG_FILE, check_hub
from ..distributed import processes
from ..options import DataError, TrainingConfig, UserError, check_same_run, to_yaml
from .checkpoint import checkpoints
from .sharding import check_sharding

MODEL_FILES = ("config.json", "model_index.json")  # of diffusers


class SeededShuffle(torch.utils.data.Sampler):
    """A new order every epoch that depends on the seed and the epoch alone, so that a resumed run repeats it."""

    def __init__(self, length: int, seed: int):
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        yield from map(int, self.order(self.epoch))

    def order(self, epoch: int) -> np.ndarray:
        """The images of an epoch, (length,) int64."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.length)


def start_run(config: TrainingConfig, options: dict) -> None:
    """Print the resolved configuration and save it in the output folder.

    Raises:
        UserError: if the folder holds another model, or checkpoints of a run with other options; if the result cannot
            be uploaded where it is to be.
        DataError: if it cannot be written.
    """
    folder = Path(config.output_dir)
    if not processes().is_main_process:
        return
    saved = folder / CONFIG_FILE
    if checkpoints(folder / "checkpoints") or any((folder / name).exists() for name in MODEL_FILES):
        if not saved.is_file():
            raise UserError(f"output_dir: {folder} holds a model that was not trained there; choose another one")
        try:
            old = yaml.safe_load(saved.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(f"{saved}: cannot be read ({' '.join(str(error).split())})") from error
        check_same_run(folder, old if isinstance(old, dict) else {}, options)
    if not config.dry_run:
        check_hub(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(saved) as file:
            file.write_text(to_yaml(options))
    except OSError as error:
        raise DataError(f"output_dir: {folder} cannot be written ({error})") from error
    print(to_yaml(options))


def make_accelerator(config: TrainingConfig, may_shard: bool = False) -> Accelerator:
    """The accelerator of a run; sets the seed too.

    Args:
        config: the options of the run.
        may_shard: whether the weights may lie in shards over the processes.

    Raises:
        UserError: for a precision or a tracker that this machine does not have, or sharding that is not supported.
    """
    if config.mixed_precision == "fp16" and processes().device.type == "cpu":
        raise UserError("mixed_precision: fp16 needs a GPU; on a CPU use no, or bf16 where the CPU has it")
    try:
        accelerator = Accelerator(
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            mixed_precision=config.mixed_precision,
            log_with=None if config.report_to == "none" else config.report_to,
            project_config=ProjectConfiguration(config.output_dir, logging_dir=str(Path(config.output_dir) / "logs")),
            step_scheduler_with_optimizer=False,
            dataloader_config=DataLoaderConfiguration(non_blocking=True),  # copies beside the step; memory is pinned
        )
    except ValueError as error:  # accelerate's word for an unknown or missing tracker
        raise UserError(f"report_to: {error}") from error
    check_sharding(accelerator, may_shard, config.optimizer)
    if config.report_to != "none" and not accelerator.log_with:
        raise UserError(f"report_to: the package of the tracker '{config.report_to}' is not installed")
    if accelerator.device.type == "cpu" and accelerator.num_processes == 1 and torch.get_num_threads() == 1:
        # accelerate launch gives a CPU process one thread by default; alone, it may have all the cores.
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    set_seed(config.seed)
    return accelerator


def make_loader(dataset, config: TrainingConfig, num_workers: int = 0) -> torch.utils.data.DataLoader:
    """Shuffled batches of one process; the last, incomplete one is left out.

    Raises:
        DataError: if the dataset is smaller than a batch of each process.
    """
    count = processes().num_processes
    if len(dataset) < config.train_batch_size * count:
        of_each = f" in each of {count} processes" if count > 1 else ""
        raise DataError(
            f"{len(dataset)} training images do not fill a batch of {config.train_batch_size}{of_each}: lower "
            "train_batch_size"
        )
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=config.train_batch_size,
        sampler=SeededShuffle(len(dataset), config.seed),
        drop_last=True,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,  # an epoch of cached latents is seconds on a GPU
        worker_init_fn=_outlive_signals,
    )


def _outlive_signals(worker: int) -> None:
    """Leave signals, which schedulers and terminals send to all processes, to the one that trains: it saves."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def seed_batch(device: torch.device, *key: int) -> torch.Generator:
    """Seed all random numbers of a batch by the key alone, so that they need no saved state to repeat after a resume.

    Returns:
        A generator on the device, for flips and noise.
    """
    seed, models_seed = (int(word >> 1) for word in np.random.SeedSequence(key).generate_state(2, np.uint64))
    torch.manual_seed(models_seed)  # dropout, Gumbel noise, random anchors
    return torch.Generator(device).manual_seed(seed)
