"""Typed options of the training scripts: a YAML file, then flags on top of it."""

import argparse
import difflib
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import yaml
from diffusers.optimization import SchedulerType
from transformers import HfArgumentParser

LATENTS_FILE = "latents.safetensors"  # cached in the output folder; needed for training alone


class UserError(Exception):
    """Something the user can mend; scripts print its one line and leave with `exit_status`."""

    exit_status = 2  # usage


class DataError(UserError):
    """A wrong or unreadable input file."""

    exit_status = 1


def option(default, help: str, **kwargs):
    """A dataclass field with a help text for `--help`."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, **kwargs})
    return field(default=default, metadata={"help": help, **kwargs})


@dataclass
class DataConfig:
    """Where images come from and how they are cut."""

    dataset: str = option("", "Hub dataset, folder of images, parquet file or folder, or 'digits' (5,000 of MNIST)")
    dataset_config: str | None = option(None, "configuration of a Hub dataset")
    train_split: str = option("train", "split to train on")
    validation_split: str | None = option(None, "split to measure on; by default some training images are held out")
    validation_size: int = option(500, "training images held out when there is no validation split")
    image_column: str = option("image", "column that holds the images")
    channels: int = option(3, "1 for greyscale images, 3 for colour")
    convert_images: bool = option(False, "convert images with other channels instead of stopping at them")
    center_crop: int | None = option(None, "first cut a centred square of this many pixels (CelebA: 140)")
    resolution: list[int] = option([32], "height and width in pixels, or one number for both")
    random_flip: bool = option(False, "flip half of the training images left to right")
    max_train_images: int | None = option(None, "use only this many training images")
    skip_bad_images: bool = option(
        False, "look at all images first and leave out those that cannot be used, instead of stopping at one"
    )
    dataloader_num_workers: int = option(0, "processes that load images; 0 loads them in the training process")

    def __post_init__(self):
        check(self.channels in (1, 3), "channels", self.channels, "must be 1 or 3")
        check(
            len(self.resolution) in (1, 2) and min(self.resolution) > 0,
            "resolution",
            self.resolution,
            "must be one or two positive numbers",
        )
        check(self.center_crop is None or self.center_crop > 0, "center_crop", self.center_crop, "must be positive")
        check(self.validation_size > 0, "validation_size", self.validation_size, "must be positive")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.resolution[0], self.resolution[-1])


@dataclass
class TrainingConfig:
    """What both training scripts share."""

    output_dir: str = option("", "folder for weights, checkpoints, pictures, logs and the model card")
    seed: int = option(0, "seed of initialisation, data order, flips and noise")
    train_batch_size: int = option(64, "images per process and step")
    gradient_accumulation_steps: int = option(1, "batches summed into one optimizer step")
    num_train_epochs: int = option(100, "passes over the training images; not used when max_train_steps is given")
    max_train_steps: int | None = option(None, "optimizer steps, instead of epochs")
    max_train_seconds: float | None = option(
        None, "seconds of optimizer steps, instead of epochs; the learning rate follows the clock"
    )
    learning_rate: float = option(1e-3, "peak learning rate")
    lr_scheduler: str = option(
        "cosine", "learning rate schedule, by its name in diffusers", choices=[name.value for name in SchedulerType]
    )
    lr_warmup_steps: int = option(500, "optimizer steps of linear warm-up")
    adam_beta1: float = option(0.9, "AdamW beta 1")
    adam_beta2: float = option(0.99, "AdamW beta 2")
    weight_decay: float = option(0.0, "AdamW weight decay")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    mixed_precision: str = option("no", "no, fp16 (GPU only) or bf16", choices=["no", "fp16", "bf16"])
    report_to: str = option("tensorboard", "experiment tracker, by its name in accelerate, or 'none'")
    logging_steps: int = option(50, "optimizer steps between logged values")
    checkpointing_steps: int = option(1000, "optimizer steps between checkpoints")
    checkpoints_total_limit: int = option(2, "checkpoints kept")
    preview_steps: int = option(1000, "optimizer steps between pictures")
    card_notes: str | None = option(None, "paragraph for the model card, for example on the licence of the data")
    push_to_hub: bool = option(False, "upload the result to the Hub")
    hub_model_id: str | None = option(None, "Hub repository to upload to; the name of output_dir by default")
    hub_private: bool = option(False, "make the Hub repository private")
    skip_nonfinite: bool = option(False, "skip steps whose loss or gradient is not finite, and name them in a log")
    dry_run: bool = option(False, "print the resolved configuration and stop")

    def __post_init__(self):
        for name in (
            "train_batch_size",
            "gradient_accumulation_steps",
            "num_train_epochs",
            "logging_steps",
            "checkpointing_steps",
            "checkpoints_total_limit",
            "preview_steps",
            "learning_rate",
            "max_grad_norm",
        ):
            check(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        for name in ("max_train_steps", "max_train_seconds"):
            value = getattr(self, name)
            check(value is None or value > 0, name, value, "must be positive")
        check(
            self.max_train_steps is None or self.max_train_seconds is None,
            "max_train_seconds",
            self.max_train_seconds,
            "stands instead of max_train_steps: give one of them",
        )
        check(self.lr_warmup_steps >= 0, "lr_warmup_steps", self.lr_warmup_steps, "must not be negative")


@dataclass
class VAEConfig:
    """The FQ-VAE; the names are `FQModel`'s."""

    block_out_channels: list[int] = option([32], "channels of the convolutional levels; n levels shrink by 2^(n-1)")
    layers_per_block: int = option(1, "residual blocks in each level")
    norm_num_groups: int = option(8, "groups of the group normalisations")
    mid_block_add_attention: bool = option(False, "self-attention in the middle of encoder and decoder")
    latent_channels: int = option(3, "D, channels of the latent")
    tokens: str = option(
        "interleaved",
        "interleaved or paper (equations 3-5) frequency tokens; grid for none; transformer for a grid with attention",
        choices=["interleaved", "paper", "grid", "transformer"],
    )
    filter_start: str = option("partition", "how the paper's filters start", choices=["partition", "alike"])
    num_tokens: int = option(64, "U, tokens in an image; the paper's N is num_tokens / latent_channels")
    num_vq_embeddings: int = option(512, "M, codebook entries")
    vq_embed_dim: int | None = option(None, "m, Fourier coefficients in an interleaved token; 8 by default")
    spectral_crop: int | None = option(None, "side of the square of low frequencies that interleaved tokens use")
    diffusion_patch_size: int = option(1, "fold patches of this side into channels of the diffusion latents")
    diffusion_layout: str = option(
        "spatial", "diffusion latents are an image, or Fourier coefficients", choices=["spatial", "spectral"]
    )
    commitment_weight: float = option(0.5, "beta of equation 1; the paper has 0.25")
    usage_decay: float = option(0.99, "gamma of equation 8")
    quantizer: str = option(
        "codebook",
        "codebook of equations 1 and 6-10, or a baseline's: ema (VQ-VAE), sq (SQ-VAE), hqa, fsq, residual, simvq",
        choices=["codebook", "ema", "sq", "hqa", "fsq", "residual", "simvq"],
    )
    anchors: str = option(
        "closest",
        "where starving entries move; closest is the paper's, the next two are CVQ-VAE's, none leaves equation 1 alone",
        choices=["closest", "random", "probabilistic", "none"],
    )
    dependency: bool = option(True, "let correlated entries move more, equations 9 and 10")
    fsq_levels: list[int] | None = option(None, "values of each rounded number of FSQ; by default powers of two")
    residual_stages: int = option(4, "entries for each cell of residual quantization")
    temperature_decay: float = option(1e-5, "per step, of the Gumbel softmax of sq and hqa")
    graph_module: bool = option(True, "refine quantized tokens by equation 12")
    init_images: int = option(4096, "training images that choose the coefficients and start the codebook")

    def __post_init__(self):
        _check_positive(self)


@dataclass
class LDMConfig:
    """The diffusion model on the FQ-VAE's latents."""

    vae: str = option("", "folder or Hub repository of the trained FQ-VAE")
    target: str = option(
        "quantized",
        "what the UNet learns: quantized latents, or unquantized ones, which the decoder quantizes",
        choices=["quantized", "unquantized"],
    )
    latent_layout: str | None = option(
        None, "image (spatial) or Fourier coefficients (spectral); by default as the FQ-VAE's diffusion_layout"
    )
    latent_patch_size: int | None = option(
        None, "fold patches of this side into channels; by default as the FQ-VAE's diffusion_patch_size"
    )
    start_from: str | None = option(
        None, "pipeline, folder or Hub repository, from whose UNet training goes on; by default from random weights"
    )
    unet_block_out_channels: list[int] = option([128, 256, 512], "channels of the UNet's levels")
    unet_layers_per_block: int = option(2, "residual blocks in each level")
    unet_attention_levels: list[int] = option([1, 2], "levels with self-attention, counted from 0")
    unet_attention_head_dim: int = option(32, "channels of an attention head")
    unet_norm_num_groups: int = option(32, "groups of the group normalisations")
    unet_dropout: float = option(0.0, "dropout in the residual blocks")
    num_train_timesteps: int = option(1000, "steps of the diffusion")
    beta_schedule: str = option("linear", "noise schedule, by its name in diffusers")
    beta_start: float = option(0.0015, "first beta of a linear schedule")
    beta_end: float = option(0.0195, "last beta of a linear schedule")
    prediction_type: str = option("epsilon", "what the UNet predicts", choices=["epsilon", "v_prediction"])
    snr_gamma: float | None = option(None, "min-SNR weighting of the loss; its paper has 5; by default none")
    use_ema: bool = option(True, "sample with a running mean of the weights")
    ema_decay: float = option(0.9999, "decay of the running mean, approached as (1 + step) / (10 + step)")
    cache_latents: bool = option(True, "encode the training images once, before training")
    preview_images: int = option(16, "images in a picture of samples")
    preview_inference_steps: int = option(50, "DPM-Solver++ steps for the pictures")
    save_scheduler: str = option(
        "ddpm",
        "scheduler of the saved pipeline: DDPM with all steps, as in the paper, or DPM-Solver++, which needs 20 to 50",
        choices=["ddpm", "dpm_solver"],
    )
    save_precision: str = option("fp32", "of the UNet's saved weights", choices=["fp32", "fp16"])

    def __post_init__(self):
        check(min(self.unet_attention_levels, default=0) >= 0, "unet_attention_levels", self.unet_attention_levels,
              "must not be negative")  # fmt: skip
        _check_positive(self, but=("unet_attention_levels", "unet_dropout", "ema_decay"))
        check(0 <= self.unet_dropout < 1, "unet_dropout", self.unet_dropout, "must lie in 0 .. 1")
        check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "must lie in 0 .. 1")


def check(condition: bool, name: str, value, rule: str) -> None:
    """Raise a `UserError` that names the option, its value and the rule that it breaks."""
    if not condition:
        raise UserError(f"{name}: {rule}, not {value}")


def _check_positive(config, but: tuple[str, ...] = ()) -> None:
    """Every number of a configuration, alone or in a list, must be positive."""
    for field_ in fields(config):
        value = getattr(config, field_.name)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool) and field_.name not in but:
                check(number > 0, field_.name, value, "must be positive")


def parse_config(argv: list[str], *config_classes, required: tuple[str, ...] = ()) -> tuple:
    """Read `--config FILE ...` and `--key value` flags, which win, into one instance of each dataclass.

    Of several files the later wins, and a null there takes an option back to its default. Values from files are
    parsed as flags are, so both have the same types and the same messages.

    Raises:
        UserError: for an unreadable file, an unknown key, a wrong value or a missing required option.
    """
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config", nargs="+", default=[])
    known, flags = own.parse_known_args(argv)
    parser = _Parser(config_classes, prog=Path(sys.argv[0]).name, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", nargs="+", help="YAML files with any of these options")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error was found")
    values = {}
    for path in known.config:
        values.update(_read_file(path, config_classes))
    file_flags = []
    for key, value in values.items():
        if value is not None:
            file_flags += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    namespace = vars(parser.parse_args(file_flags + flags))
    configs = tuple(cls(**{f.name: namespace[f.name] for f in fields(cls) if f.init}) for cls in config_classes)
    for name in required:
        check(
            namespace[name] not in ("", None),
            name,
            "nothing",
            f"is required: give --{name} or put it in the configuration",
        )
    return configs


class _Parser(HfArgumentParser):
    def error(self, message):
        raise UserError(f"{message} (--help lists the options)")


def _read_file(path: str, config_classes) -> dict:
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold 'key: value' lines")
    names = [f.name for cls in config_classes for f in fields(cls)]
    for key, value in values.items():
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            raise UserError(f"{path}: unknown key '{key}'" + (f"; did you mean '{close[0]}'?" if close else ""))
        if isinstance(value, dict):
            raise UserError(f"{path}: '{key}' must be a value, not a mapping")
    return values


def resolved(*configs) -> dict:
    """All options in one flat dictionary, as they are saved."""
    return {name: value for config in configs for name, value in asdict(config).items()}


def to_yaml(values: dict) -> str:
    """The text of a configuration file with these values."""
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None)


def run_script(main) -> None:
    """Run `main(argv)`; a `UserError` becomes one line on stderr and an exit status, and with --debug a traceback."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        # A worker of a data loader wraps the message in its traceback; its last line is what was raised.
        lines = str(error).strip().splitlines()
        if lines:
            line = lines[-1].removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")
            print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted before there was anything to save", file=sys.stderr)
        sys.exit(130)
