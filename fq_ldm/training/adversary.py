"""The opponents of a decoder, each with its optimizer: both lie in the run's checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..adversarial import (
    FeatureDiscriminator,
    PatchDiscriminator,
    discriminator_loss,
    feature_matching,
    generator_loss,
    gradient_penalty,
)
from ..options import DataError, PaintingConfig, TrainingConfig
from .optimizer import looks_late

DISCRIMINATOR_FILE = "discriminator.safetensors"
HEADS_LEARNING_RATE = 1e-3
HEADS_LOSS = "hinge"  # and Adam without momentum: both as in Projected GANs


class _Opponent:
    """A discriminator and its optimizer.

    Args:
        accelerator: of the run.
        training: the options of the run.
        discriminator: on the CPU.
        learning_rate: of Adam.
        beta1: of Adam.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        training: TrainingConfig,
        discriminator: torch.nn.Module,
        learning_rate: float,
        beta1: float,
    ):
        self.accelerator = accelerator
        self.max_grad_norm = training.max_grad_norm
        optimizer = torch.optim.Adam(
            discriminator.parameters(),
            learning_rate,
            betas=(beta1, training.adam_beta2),
            fused=looks_late(accelerator.device) or None,  # or else the scaler of fp16 waits for the device
        )
        self.discriminator, self.optimizer = accelerator.prepare(discriminator, optimizer)

    def _learn(self, loss: torch.Tensor) -> None:
        """One step down this loss."""
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients and self._ready():
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _ready(self) -> bool:
        """Clip the gradients; False if they are not finite: what a spoilt painting says must not be learnt.

        On a GPU to know is to wait. There the answer is True, and the optimizer is told on the device, by the scaler of
        fp16 or here.
        """
        # Not the accelerator's clip_grad_norm_, which would unscale the gradients of the model too.
        self.accelerator.unscale_gradients(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.max_grad_norm)
        if self.accelerator.scaler is not None:
            return True
        if looks_late(self.accelerator.device):
            self.optimizer.optimizer.found_inf = (~torch.isfinite(norm)).float()
            return True
        return bool(torch.isfinite(norm))

    @contextmanager
    def _frozen(self) -> Iterator[torch.nn.Module]:
        """The discriminator itself, in its precision, for a loss of the decoder alone."""
        discriminator = self.accelerator.unwrap_model(self.discriminator).requires_grad_(False)
        with self.accelerator.autocast():
            yield discriminator
        discriminator.requires_grad_(True)


class Adversary(_Opponent):
    """A discriminator of patches.

    Args:
        accelerator: of the run.
        painting: the options.
        training: the options of the run.
        discriminator: on the CPU, untrained or as an earlier run left it.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        painting: PaintingConfig,
        training: TrainingConfig,
        discriminator: PatchDiscriminator,
    ):
        super().__init__(accelerator, training, discriminator, painting.discriminator_learning_rate, 0.5)
        self.options = painting

    def train(self, images: torch.Tensor, painted: torch.Tensor) -> dict[str, torch.Tensor]:
        """One step of the discriminator on images and painted images (B, c, H, W); what is shown of it."""
        # One forward pass for both, since several processes allow one before each backward pass.
        logits, _ = self.discriminator(torch.cat([images, painted.detach().to(images.dtype)]))
        real, fake = logits.float().chunk(2)
        loss = discriminator_loss(real, fake, self.options.adversarial_loss)
        if self.options.gradient_penalty_weight:
            penalty = gradient_penalty(self.accelerator.unwrap_model(self.discriminator), images)
            loss = loss + self.options.gradient_penalty_weight * penalty
        self._learn(loss)
        right = (real > 0).float().mean() / 2 + (fake < 0).float().mean() / 2
        return {"discriminator_loss": loss.detach(), "discriminator_accuracy": right}

    def save(self, folder: Path) -> None:
        """Write the discriminator for the next run, `discriminator_from`."""
        state = self.accelerator.unwrap_model(self.discriminator, keep_fp32_wrapper=False).state_dict()
        if self.accelerator.is_main_process:
            save_file({name: value.contiguous() for name, value in state.items()}, folder / DISCRIMINATOR_FILE)

    def judge(self, images: torch.Tensor, painted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The adversarial loss of painted images, and the distance of their features to those of the images."""
        with self._frozen() as discriminator:
            logits, features = discriminator(painted)
            with torch.no_grad():
                _, real_features = discriminator(images)
        return generator_loss(logits.float(), self.options.adversarial_loss), feature_matching(real_features, features)


class FeatureAdversary(_Opponent):
    """A discriminator of what a trained network sees; it starts anew in each run.

    Args:
        accelerator: of the run.
        training: the options of the run.
        channels: of the network's levels.
    """

    def __init__(self, accelerator: Accelerator, training: TrainingConfig, channels: list[int]):
        super().__init__(accelerator, training, FeatureDiscriminator(channels), HEADS_LEARNING_RATE, 0.0)

    def train(self, real: list[torch.Tensor], painted: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """One step of the heads on features (B, C_i, H_i, W_i) of images and painted images; what is shown of it."""
        both = [torch.cat([a, b.detach()]) for a, b in zip(real, painted, strict=True)]
        pairs = [logits.float().chunk(2) for logits in self.discriminator(both)]
        loss = torch.stack([discriminator_loss(*pair, HEADS_LOSS) for pair in pairs]).mean()
        self._learn(loss)
        right = [(a > 0).float().mean() / 2 + (b < 0).float().mean() / 2 for a, b in pairs]
        return {"heads_loss": loss.detach(), "heads_accuracy": torch.stack(right).mean()}

    def judge(self, painted: list[torch.Tensor]) -> torch.Tensor:
        """The adversarial loss of painted images, of their features."""
        with self._frozen() as heads:
            logits = heads(painted)
        return torch.stack([generator_loss(level.float(), HEADS_LOSS) for level in logits]).mean()


def open_discriminator(painting: PaintingConfig, channels: int) -> PatchDiscriminator | None:
    """The discriminator of images of `channels` c: that of `discriminator_from` or an untrained one; None without any.

    Raises:
        DataError: if `discriminator_from` is no file with a discriminator of these options.
    """
    if not painting.adversarial_weight:
        return None
    discriminator = PatchDiscriminator(channels, painting.discriminator_block_out_channels, painting.discriminator_norm)
    if painting.discriminator_from is None:
        return discriminator
    try:
        discriminator.load_state_dict(load_file(painting.discriminator_from))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"discriminator_from: {painting.discriminator_from} holds no such discriminator ({reason})"
        ) from error
    return discriminator
