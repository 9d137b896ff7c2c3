"""Training what a table or figure lacks, by the scripts that users run."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from fq_ldm.cards import CONFIG_FILE
from fq_ldm.options import VAE_CONFIGS, DataError, check_same_run, parse_config, resolved

ROOT = Path(__file__).parents[1]


@dataclass
class Plan:
    """What all runs of a table or figure have in common.

    Attributes:
        dataset: folder under `configs/`.
        budget: seconds of training of each run.
        seeds: one run for each.
        folder: where the runs lie, to be shared by tables and figures.
        options: flags of `train_vae.py` on top of the configurations.
    """

    dataset: str
    budget: float
    seeds: list[int]
    folder: Path
    options: list[str]

    def run_folder(self, config: str, seed: int) -> Path:
        """Where the model of a configuration lies."""
        return self.folder / f"{self.dataset}_{self.budget:g}s" / config / f"seed{seed}"

    def config_files(self, config: str) -> list[str]:
        """The configuration files of a run."""
        return [str(codec_file(self.dataset)), str(ROOT / "configs" / f"{config}.yaml")]

    def dataset_options(self) -> dict:
        """The dataset's own configuration."""
        return yaml.safe_load(codec_file(self.dataset).read_text())


def codec_file(dataset: str) -> Path:
    """The configuration of all frequencies, by squared error: the paper compares such codecs.

    Where a dataset's `vae.yaml` leaves high frequencies to a decoder that paints them, it lies beside it.
    """
    folder = ROOT / "configs" / dataset
    codec = folder / "codec.yaml"
    return codec if codec.is_file() else folder / "vae.yaml"


def paints(config: Path) -> bool:
    """Whether a configuration leaves frequencies to a decoder that paints them: no codec to compare."""
    return "painter_block_out_channels" in yaml.safe_load(config.read_text())


def train_vae(plan: Plan, config: str, seed: int) -> Path:
    """Train a configuration, or finish or find the run that is there; returns its folder.

    Raises:
        DataError: if training fails.
    """
    folder = plan.run_folder(config, seed)
    options = yaml.safe_load(Path(plan.config_files(config)[1]).read_text())
    base = plan.dataset_options()
    flags = ["--config", *plan.config_files(config), "--output_dir", str(folder), "--seed", str(seed)]
    flags += ["--max_train_seconds", str(plan.budget)]
    if "spectral_crop" in base and options.get("spectral_crop", 0) is None:
        # Folded to the side of the others' latents: one UNet then fits all of them.
        folds = base["resolution"][0] // base["spectral_crop"] * base.get("diffusion_patch_size", 1)
        flags += ["--diffusion_patch_size", str(folds)]
    finish("train_vae.py", VAE_CONFIGS, folder, flags + plan.options)
    return folder


def finish(script: str, config_classes: tuple, folder: Path, flags: list[str]) -> None:
    """Train what a folder lacks; what is there must be of the same options.

    Raises:
        DataError: if training fails.
        UserError: if the folder holds a run with other options.
    """
    if (folder / "metrics.json").is_file():
        old = yaml.safe_load((folder / CONFIG_FILE).read_text())
        check_same_run(folder, old, resolved(*parse_config(flags, *config_classes)))
    else:
        run(script, flags)


def run(script: str, flags: list[str]) -> None:
    """Run one of this repository's scripts.

    Raises:
        DataError: if it fails.
    """
    command = [sys.executable, str(ROOT / script), *flags]
    status = subprocess.run(command).returncode
    if status:
        raise DataError(f"{script} failed with exit status {status}; the lines above say why")


def read_metrics(folder: Path) -> dict:
    """What `train_vae.py` measured."""
    return json.loads((folder / "metrics.json").read_text())


def efficiency(folder: Path, train_images: int) -> dict:
    """Throughput and memory from a fresh process, and the time that training takes for one epoch."""
    command = [sys.executable, str(ROOT / "benchmarks" / "efficiency.py"), str(folder)]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    metrics = read_metrics(folder)
    return {**measured, "seconds_per_epoch": metrics["train_seconds"] * train_images / metrics["images_seen"]}
