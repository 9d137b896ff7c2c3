"""Training a decoder to paint: its losses, its discriminator, and where it starts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from ..adversarial import (
    FeatureNetwork,
    PatchDiscriminator,
    balance,
    feature_distance,
    gradient_norm,
    spectral_loss,
)
from ..diffusion import open_vae
from ..models import FQDecoderOutput, FQModel, TokenAutoencoder, take_tokens_
from ..options import PaintingConfig, TrainingConfig, UserError, check
from .adversary import Adversary, FeatureAdversary
from .run import Batch


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
        network: what images are seen with, or None.
        heads: the adversary that judges what the network sees, or None.
    """

    def __init__(
        self,
        model: TokenAutoencoder,
        options: PaintingConfig,
        adversary: Adversary | None,
        lpips,
        network: FeatureNetwork | None,
        heads: FeatureAdversary | None,
    ):
        self.model, self.options = model, options
        self.adversary, self.lpips, self.network, self.heads = adversary, lpips, network, heads

    def __call__(self, prepared: Callable, images: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict]:
        """The loss of images (B, c, H, W), and what is shown; trains the discriminators too."""
        output = self._paint(prepared, images, batch.generator)
        painted, options = output.sample.float(), self.options
        error = (F.l1_loss if options.reconstruction_loss == "l1" else F.mse_loss)(painted, images)
        shown = {"reconstruction_loss": error.detach(), "commit_loss": output.commit_loss.detach()}
        near = options.reconstruction_weight * error + output.commit_loss  # how near the images are
        if self.lpips is not None:
            distance = self.lpips.distance(painted, images).mean()
            near = near + options.lpips_weight * distance
            shown["lpips"] = distance.detach()
        joined = batch.share >= options.adversarial_start
        seen = None
        if options.perceptual_weight or (self.heads is not None and joined):
            with torch.no_grad():
                real = self.network(images)
            seen = real, self.network(painted)
        if options.perceptual_weight:
            distance = feature_distance(*seen)
            near = near + options.perceptual_weight * distance
            shown["perceptual"] = distance.detach()
        loss = near
        if joined:
            judged, found = self._judge(near, images, painted, seen)
            loss, shown = loss + judged, shown | found
        if options.spectral_weight:  # after the balance
            difference = spectral_loss(images, painted)
            loss = loss + options.spectral_weight * difference
            shown["spectral_loss"] = difference.detach()
        return loss, shown

    def _judge(
        self, near: torch.Tensor, images: torch.Tensor, painted: torch.Tensor, seen: tuple[list, list] | None
    ) -> tuple[torch.Tensor | float, dict]:
        """What the adversaries add to the loss, and what is shown of them, which learn by the way."""
        terms, shown, options = [], {}, self.options
        if self.adversary is not None:
            shown |= self.adversary.train(images, painted)
            adversarial, distance = self.adversary.judge(images, painted)
            terms.append((options.adversarial_weight, adversarial))
            shown |= {"adversarial_loss": adversarial.detach(), "feature_matching": distance.detach()}
        if self.heads is not None:
            shown |= self.heads.train(*seen)
            terms.append((options.projected_weight, self.heads.judge(seen[1])))
            shown["projected_loss"] = terms[-1][1].detach()
        if options.adaptive_weight and terms:
            last = self.model.decoder.conv_out.weight
            ours = gradient_norm(near, last)
            terms = [(weight * balance(ours, gradient_norm(term, last)), term) for weight, term in terms]
        loss = sum(weight * term for weight, term in terms)
        if self.adversary is not None:
            loss = loss + options.feature_matching_weight * distance
        return loss, shown

    def _paint(self, prepared: Callable, images: torch.Tensor, generator: torch.Generator) -> FQDecoderOutput:
        noise, options, model = None, self.options, self.model
        if options.latent_noise or options.learnt_noise:
            most = images.new_full((model.config.latent_channels,), options.latent_noise)
            most[model.linear_channels :] = options.learnt_noise
            noise = torch.rand(len(images), 1, device=images.device, generator=generator) * most
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
        UserError: for a model that is not trained by equation 1, for options that do not go with one another or with
            the size of the images, and for networks that cannot be had.
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
    if discriminator is not None or painting.projected_weight:
        # The scaler changes its scale at a discriminator's steps, between batches whose gradients are added up.
        check(accelerator.mixed_precision != "fp16" or training.gradient_accumulation_steps == 1,
              "gradient_accumulation_steps", training.gradient_accumulation_steps,
              "does not go with a discriminator in fp16: take bf16, or larger batches")  # fmt: skip
    adversary = None
    if discriminator is not None:
        layers, most = len(painting.discriminator_block_out_channels), min(model.sample_size).bit_length() - 1
        check(layers <= most, "discriminator_block_out_channels", f"{layers} numbers",
              f"halve the image each: images of {model.sample_size} allow {most}")  # fmt: skip
        adversary = Adversary(accelerator, painting, training, discriminator)
    lpips = _load_lpips(model, painting, accelerator.device) if painting.lpips_weight else None
    network = heads = None
    if painting.perceptual_weight or painting.projected_weight:
        network = _load_network(model, painting, accelerator.device)
    if painting.projected_weight:
        heads = FeatureAdversary(accelerator, training, network.channels)
    return PaintingLoss(model, painting, adversary, lpips, network, heads)


def _load_network(model: TokenAutoencoder, painting: PaintingConfig, device: torch.device) -> FeatureNetwork:
    try:
        return FeatureNetwork(
            painting.perceptual_network, model.sample_size, painting.perceptual_network_weights, device
        )
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error


def _load_lpips(model: TokenAutoencoder, painting: PaintingConfig, device: torch.device):
    from ..metrics.fidelity import LPIPS, LPIPS_SMALLEST  # networks and packages that few runs need

    check(min(model.sample_size) >= LPIPS_SMALLEST, "lpips_weight", f"images of {model.sample_size}",
          f"is for images of at least {LPIPS_SMALLEST} pixels")  # fmt: skip
    try:
        return LPIPS(painting.lpips_weights, device)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error


def freeze_(model: TokenAutoencoder, painting: PaintingConfig, taken: list[str]) -> None:
    """Let what the options ask for learn, and nothing else.

    Args:
        model: not prepared.
        painting: the options.
        taken: the names of the weights that came from `start_from`.

    Raises:
        UserError: if they would leave the codebook, or learnt channels, as they start.
    """
    learnt = model.config.get("learnt_channels", 0)
    if painting.freeze_tokens:
        check(not learnt or model.tokens_frozen, "freeze_tokens", painting.freeze_tokens,
              "would leave learnt_channels as they start: give a start_from that has learnt them")  # fmt: skip
        model.freeze_tokens_()
    elif learnt:
        check(painting.decode_unquantized, "learnt_channels", learnt,
              "are learnt with a decoder of unquantized latents: give decode_unquantized, or freeze_tokens to keep "
              "those of start_from")  # fmt: skip
        model.learn_latents_()
    check(model.tokens_frozen or model.latents_learning or not painting.decode_unquantized,
          "decode_unquantized", painting.decode_unquantized,
          "would leave the codebook untrained: give freeze_tokens or start_from too")  # fmt: skip
    check(learnt or not painting.learnt_noise, "learnt_noise", painting.learnt_noise, "is for learnt_channels")
    if painting.freeze_taken:
        for name in taken:
            model.get_parameter(name).requires_grad_(False)


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

    Of a linear coder a model with learnt channels takes the linear ones, and has the others to learn. Of one that has
    learnt them it takes all; without `freeze_tokens` they learn on.

    Returns:
        The names of the decoder's weights that were taken too; see `models.take_tokens_`.

    Raises:
        DataError: if there is no such model.
        UserError: if its tokens are others than this model's, or nothing would be left to train.
    """
    source = open_vae(painting.start_from, "start_from")
    learning = source.diffusion_view.has_learnt_channels and not painting.freeze_tokens
    try:
        taken = take_tokens_(model, source, learning)
    except ValueError as error:
        raise UserError(f"start_from: the model in {painting.start_from} {error}") from error
    if learning:
        check(not painting.freeze_taken, "freeze_taken", True, "keeps the decoder alone: give freeze_tokens too")
        check(source.sample_size == model.sample_size, "start_from", painting.start_from,
              f"learnt its channels from images of {source.sample_size}, and keeps them at {model.sample_size}: give "
              "freeze_tokens")  # fmt: skip
    if painting.freeze_taken and not taken:
        raise UserError(f"freeze_taken: {painting.start_from} gives nothing that this decoder could keep")
    if painting.freeze_taken and "decoder.conv_out.weight" in taken:
        raise UserError(
            f"freeze_taken: {painting.start_from} gives the decoder's last layer, where losses are weighed: leave the "
            "option out"
        )
    return taken
