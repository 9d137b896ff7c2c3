"""Training a decoder against a discriminator."""

from .discriminator import PatchDiscriminator
from .losses import ADVERSARIAL_LOSSES, balance, discriminator_loss, feature_matching, generator_loss, gradient_penalty

__all__ = [
    "ADVERSARIAL_LOSSES",
    "PatchDiscriminator",
    "balance",
    "discriminator_loss",
    "feature_matching",
    "generator_loss",
    "gradient_penalty",
]
