"""Training a decoder to paint: its losses, its discriminator, and where it starts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..adversarial import (
    PatchDiscriminator,
    balance,
    discriminator_loss,
    feature_matching,
    generator_loss,
    gradient_penalty,
    spectral_loss,
)
from ..diffusion import open_vae
from ..models import FQDecoderOutput, FQModel, TokenAutoencoder, take_tokens_
from ..options import DataError, PaintingConfig, TrainingConfig, UserError, check
from .optimizer import looks_late
from .run import Batch

DISCRIMINATOR_FILE = "discriminator.safetensors"


class Adversary:
    """A discriminator with its optimizer: both lie in the run's checkpoints.

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
        self.accelerator = accelerator
        self.options = painting
        self.max_grad_norm = training.max_grad_norm
        optimizer = torch.optim.Adam(
            discriminator.parameters(),
            painting.discriminator_learning_rate,
            betas=(0.5, training.adam_beta2),
            fused=looks_late(accelerator.device) or None,  # or else the scaler of fp16 waits for the device
        )
        self.discriminator, self.optimizer = accelerator.prepare(discriminator, optimizer)

    def train(self, images: torch.Tensor, painted: torch.Tensor) -> dict[str, torch.Tensor]:
        """One step of the discriminator on images and painted images (B, c, H, W); what is shown of it."""
        # One forward pass for both, since several processes allow one before each backward pass.
        logits, _ = self.discriminator(torch.cat([images, painted.detach().to(images.dtype)]))
        real, fake = logits.float().chunk(2)
        loss = discriminator_loss(real, fake, self.options.adversarial_loss)
        if self.options.gradient_penalty_weight:
            penalty = gradient_penalty(self.accelerator.unwrap_model(self.discriminator), images)
            loss = loss + self.options.gradient_penalty_weight * penalty
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients and self._ready():
            self.optimizer.step()
        self.optimizer.zero_grad()
        right = (real > 0).float().mean() / 2 + (fake < 0).float().mean() / 2
        return {"discriminator_loss": loss.detach(), "discriminator_accuracy": right}

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

    def save(self, folder: Path) -> None:
        """Write the discriminator for the next run, `discriminator_from`."""
        state = self.accelerator.unwrap_model(self.discriminator, keep_fp32_wrapper=False).state_dict()
        if self.accelerator.is_main_process:
            save_file({name: value.contiguous() for name, value in state.items()}, folder / DISCRIMINATOR_FILE)

    def judge(self, images: torch.Tensor, painted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The adversarial loss of painted images, and the distance of their features to those of the images."""
        discriminator = self.accelerator.unwrap_model(self.discriminator).requires_grad_(False)
        with self.accelerator.autocast():
            logits, features = discriminator(painted)
            with torch.no_grad():
                _, real_features = discriminator(images)
        discriminator.requires_grad_(True)
        return generator_loss(logits.float(), self.options.adversarial_loss), feature_matching(real_features, features)


class PlainLoss:
    """Equation 1, or what the codebook of a baseline asks for."""

    adversary = None

    def __init__(self, model: TokenAutoencoder):
        self.model = model

    def __call__(self, prepared: Callable, images: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict]:
        """The loss of images (B, c, H, W), and what is shown."""
        output = prepared(images)
        loss, reconstruction_loss = self.model.loss(images, output)
        return loss, {"reconstruction_loss": reconstruction_loss.detach(), "commit_loss": output.commit_loss.detach()}


class PaintingLoss:
    """The training loss of a decoder that paints.

    Args:
        model: not prepared; its decoder's last weight balances the losses.
        options: of the painting.
        adversary: or None.
        lpips: an `LPIPS`, or None.
    """

    def __init__(self, model: TokenAutoencoder, options: PaintingConfig, adversary: Adversary | None, lpips):
        self.model = model
        self.lpips = lpips
        self.options = options
        self.adversary = adversary

    def __call__(self, prepared: Callable, images: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict]:
        """The loss of images (B, c, H, W), and what is shown; trains the discriminator too."""
        output = self._paint(prepared, images, batch.generator)
        painted, options = output.sample.float(), self.options
        error = (F.l1_loss if options.reconstruction_loss == "l1" else F.mse_loss)(painted, images)
        shown = {"reconstruction_loss": error.detach(), "commit_loss": output.commit_loss.detach()}
        loss = options.reconstruction_weight * error + output.commit_loss
        if self.lpips is not None:
            distance = self.lpips.distance(painted, images).mean()
            loss = loss + options.lpips_weight * distance
            shown["lpips"] = distance.detach()
        if self.adversary is not None and batch.share >= options.adversarial_start:
            shown |= self.adversary.train(images, painted)
            adversarial, distance = self.adversary.judge(images, painted)
            weight = options.adversarial_weight
            if options.adaptive_weight:
                weight = weight * balance(loss, adversarial, self.model.decoder.conv_out.weight)
            loss = loss + weight * adversarial + options.feature_matching_weight * distance
            shown |= {"adversarial_loss": adversarial.detach(), "feature_matching": distance.detach()}
        if options.spectral_weight:  # after the balance, whose measure is how near the images are
            difference = spectral_loss(images, painted)
            loss = loss + options.spectral_weight * difference
            shown["spectral_loss"] = difference.detach()
        return loss, shown

    def _paint(self, prepared: Callable, images: torch.Tensor, generator: torch.Generator) -> FQDecoderOutput:
        noise = None
        if self.options.latent_noise:
            noise = self.options.latent_noise * torch.rand(len(images), device=images.device, generator=generator)
        return prepared(
            images, force_not_quantize=self.options.decode_unquantized, generator=generator, latent_noise=noise
        )


def make_objective(
    accelerator: Accelerator,
    model: TokenAutoencoder,
    discriminator: PatchDiscriminator | None,
    painting: PaintingConfig,
    training: TrainingConfig,
) -> PlainLoss | PaintingLoss:
    """What is minimised: `objective(prepared_model, images, batch)` gives the loss and what is shown of it.

    To be made before the model is prepared, and always in that order: checkpoints number what they hold.

    Args:
        accelerator: of the run.
        model: not prepared.
        discriminator: of `open_discriminator`.
        painting: the options.
        training: the options of the run.

    Raises:
        UserError: for a model that is not trained by equation 1.
    """
    if not painting.active:
        return PlainLoss(model)
    if not isinstance(model, FQModel):
        raise UserError(
            f"reconstruction_loss, adversarial_weight and the like are for FQ-VAE, VQ-VAE and CVQ-VAE: "
            f"{type(model).__name__} has an objective of its own"
        )
    if training.compile:
        raise UserError("compile: does not go with a decoder that is trained to paint, whose noise has a generator")
    adversary = None
    if discriminator is not None:
        layers, most = len(painting.discriminator_block_out_channels), min(model.sample_size).bit_length() - 1
        check(layers <= most, "discriminator_block_out_channels", f"{layers} numbers",
              f"halve the image each: images of {model.sample_size} allow {most}")  # fmt: skip
        # The scaler changes its scale at the discriminator's steps, between batches whose gradients are added up.
        check(accelerator.mixed_precision != "fp16" or training.gradient_accumulation_steps == 1,
              "gradient_accumulation_steps", training.gradient_accumulation_steps,
              "does not go with a discriminator in fp16: take bf16, or larger batches")  # fmt: skip
        adversary = Adversary(accelerator, painting, training, discriminator)
    lpips = _load_lpips(model, painting, accelerator.device) if painting.lpips_weight else None
    return PaintingLoss(model, painting, adversary, lpips)


def _load_lpips(model: TokenAutoencoder, painting: PaintingConfig, device: torch.device):
    from ..metrics.fidelity import LPIPS, LPIPS_SMALLEST  # networks and packages that few runs need

    check(min(model.sample_size) >= LPIPS_SMALLEST, "lpips_weight", f"images of {model.sample_size}",
          f"is for images of at least {LPIPS_SMALLEST} pixels")  # fmt: skip
    try:
        return LPIPS(painting.lpips_weights, device)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error


@contextmanager
def averaged(model: TokenAutoencoder, ema: EMAModel | None) -> Iterator[None]:
    """The model with its averaged weights, where there are some."""
    if ema is None:
        yield
        return
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    yield
    ema.restore(model.parameters())


def open_start_(painting: PaintingConfig, model: TokenAutoencoder) -> list[str]:
    """Give a model the tokens of the trained one, in a folder or on the Hub, that `start_from` names.

    Returns:
        The names of the decoder's weights that were taken too; see `models.take_tokens_`.

    Raises:
        DataError: if there is no such model.
        UserError: if its tokens are others than this model's, or nothing would be left to train.
    """
    source = open_vae(painting.start_from, "start_from")
    try:
        taken = take_tokens_(model, source)
    except ValueError as error:
        raise UserError(f"start_from: the model in {painting.start_from} {error}") from error
    if painting.freeze_taken and not taken:
        raise UserError(f"freeze_taken: {painting.start_from} gives nothing that this decoder could keep")
    if painting.freeze_taken and "decoder.conv_out.weight" in taken:
        raise UserError(f"freeze_taken: {painting.start_from} gives the decoder to its end: nothing is left to train")
    return taken


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
