"""Training a decoder against a discriminator."""

from .discriminator import PatchDiscriminator
from .losses import balance, discriminator_loss, feature_matching, generator_loss, gradient_penalty, spectral_loss

__all__ = [
    "PatchDiscriminator",
    "balance",
    "discriminator_loss",
    "feature_matching",
    "generator_loss",
    "gradient_penalty",
    "spectral_loss",
]
