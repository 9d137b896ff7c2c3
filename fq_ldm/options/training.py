"""Options that both training scripts share."""

import re
from dataclasses import dataclass

from diffusers.optimization import SchedulerType

from .errors import check
from .fields import option

LATENTS_FOLDER = "latents"  # in the output folder: the encoded images, needed for training alone


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
    optimizer: str = option(
        "adamw", "AdamW, or Muon for matrices and convolutions, and AdamW for the rest", choices=["adamw", "muon"]
    )
    learning_rate: float = option(1e-3, "peak learning rate")
    lr_scheduler: str = option(
        "cosine", "learning rate schedule, by its name in diffusers", choices=[name.value for name in SchedulerType]
    )
    lr_warmup_steps: int = option(500, "optimizer steps of linear warm-up")
    adam_beta1: float = option(0.9, "AdamW beta 1")
    adam_beta2: float = option(0.99, "AdamW beta 2")
    weight_decay: float = option(0.0, "decoupled weight decay")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    mixed_precision: str = option("no", "no, fp16 (GPU only) or bf16", choices=["no", "fp16", "bf16"])
    compile: bool = option(False, "compile the model with torch.compile: minutes at the start, faster steps")
    report_to: str = option("tensorboard", "experiment tracker, by its name in accelerate, or 'none'")
    logging_steps: int = option(50, "optimizer steps between logged values")
    checkpointing_steps: int = option(1000, "optimizer steps between checkpoints")
    checkpoints_total_limit: int = option(2, "checkpoints kept")
    preview_steps: int = option(1000, "optimizer steps between pictures")
    card_notes: str | None = option(None, "paragraph for the model card, for example on the licence of the data")
    card_license: str | None = option(None, "licence of the weights, by its name on the Hub, for the model card")
    push_to_hub: bool = option(False, "upload the result to the Hub")
    hub_model_id: str | None = option(None, "Hub repository to upload to, user/name")
    hub_private: bool = option(False, "make the Hub repository private; by default as its owner has set it")
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
        name = self.hub_model_id
        check(name is None or re.fullmatch(r"[\w.-]+/[\w.-]+", name), "hub_model_id", name, "must be user/name")
        check(self.lr_warmup_steps >= 0, "lr_warmup_steps", self.lr_warmup_steps, "must not be negative")
