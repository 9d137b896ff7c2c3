"""Options of a decoder that paints what the tokens do not hold."""

from dataclasses import dataclass

from .errors import check
from .fields import check_positive, option


@dataclass
class PaintingConfig:
    """How the decoder is trained beside equation 1; by default by equation 1 alone."""

    start_from: str | None = option(
        None,
        "trained FQ-VAE, folder or Hub repository, whose tokens are kept bit for bit: only the decoder is trained; but "
        "learnt_channels without freeze_tokens learn, or learn on, and the linear channels are kept",
    )
    freeze_taken: bool = option(
        False, "with start_from, keep the weights that the decoder takes from there too: only what is new is trained"
    )
    freeze_tokens: bool = option(
        False,
        "train the decoder alone, on tokens as they start from data, where the encoder stays linear, or as "
        "start_from has them",
    )
    decode_unquantized: bool = option(False, "train the decoder on latents that are not quantized")
    latent_noise: float = option(
        0.0, "noise on the decoder's latents in training, uniform between 0 and so much of their deviation"
    )
    learnt_noise: float = option(0.0, "the same on learnt channels: it holds them to what a UNet can make")
    reconstruction_loss: str = option("mse", "squared or absolute error", choices=["mse", "l1"])
    reconstruction_weight: float = option(1.0, "of the reconstruction loss")
    adversarial_weight: float = option(0.0, "of the adversarial loss; 0 for no discriminator")
    adversarial_loss: str = option(
        "non_saturating", "non-saturating logistic, or hinge", choices=["non_saturating", "hinge"]
    )
    adversarial_start: float = option(0.25, "share of the run after which the discriminator joins")
    adaptive_weight: bool = option(
        True, "scale the adversarial loss by the ratio of both losses' gradients at the last layer, as VQGAN does"
    )
    feature_matching_weight: float = option(0.5, "of the distance of the discriminator's features")
    gradient_penalty_weight: float = option(0.05, "of R1, the discriminator's squared gradient at real images")
    spectral_weight: float = option(0.0, "of the difference of images and painted ones in power over frequency")
    lpips_weight: float = option(0.0, "of LPIPS with VGG16")
    lpips_weights: str | None = option(None, "file with torchvision's VGG16 weights; by default they are downloaded")
    perceptual_weight: float = option(0.0, "of the distance in the features of perceptual_network")
    projected_weight: float = option(
        0.0, "of the adversarial loss against heads on the features of perceptual_network (Projected GANs)"
    )
    perceptual_network: str = option("tf_efficientnet_lite0", "a network of timm, trained on ImageNet")
    perceptual_network_weights: str | None = option(
        None, "file with its weights, by timm's names; by default they are downloaded"
    )
    discriminator_block_out_channels: list[int] = option([32, 64, 128, 128], "channels; each layer halves the image")
    discriminator_norm: str = option(
        "none", "what holds its weights: spectral norm, or none, with R1", choices=["none", "spectral"]
    )
    discriminator_learning_rate: float = option(4e-4, "learning rate of the discriminator, which stays as it is")
    discriminator_from: str | None = option(
        None,
        "file with the discriminator of an earlier run, discriminator.safetensors in its folder, to start from; with "
        "adversarial_start 0 it joins at once",
    )
    decoder_ema_decay: float | None = option(None, "save the running mean of the weights, of this decay")

    @property
    def active(self) -> bool:
        """Whether the decoder is trained by anything but equation 1."""
        return self != PaintingConfig(decoder_ema_decay=self.decoder_ema_decay)

    def __post_init__(self):
        zeros = [f for f in vars(self) if f.endswith("_weight") and f not in ("reconstruction_weight",)]
        check_positive(self, but=("latent_noise", "learnt_noise", "adversarial_start", "decoder_ema_decay", *zeros))
        for name in ("latent_noise", "learnt_noise", *zeros):
            check(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
        check(not self.freeze_taken or self.start_from is not None, "freeze_taken", self.freeze_taken,
              "keeps what start_from gives: give that too")  # fmt: skip
        check(self.discriminator_from is None or self.adversarial_weight > 0, "discriminator_from",
              self.discriminator_from, "is for an adversarial_weight above 0")  # fmt: skip
        for name in ("perceptual_network", "perceptual_network_weights"):
            value, unused = getattr(self, name), self.perceptual_weight == self.projected_weight == 0
            check(not unused or value == getattr(PaintingConfig, name), name, value,
                  "is for a perceptual_weight or a projected_weight above 0")  # fmt: skip
        check(0 <= self.adversarial_start < 1, "adversarial_start", self.adversarial_start,
              "must be a share of the run, in 0 .. 1 and before its end")  # fmt: skip
        decay = self.decoder_ema_decay
        check(decay is None or 0 <= decay < 1, "decoder_ema_decay", decay, "must lie in 0 .. 1")
