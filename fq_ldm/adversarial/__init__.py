"""Training a decoder against a discriminator."""

from .discriminator import PatchDiscriminator
from .features import FeatureDiscriminator, FeatureNetwork, feature_distance
from .losses import (
    balance,
    discriminator_loss,
    feature_matching,
    generator_loss,
    gradient_norm,
    gradient_penalty,
    spectral_loss,
)

__all__ = [
    "FeatureDiscriminator",
    "FeatureNetwork",
    "PatchDiscriminator",
    "balance",
    "discriminator_loss",
    "feature_distance",
    "feature_matching",
    "generator_loss",
    "gradient_norm",
    "gradient_penalty",
    "spectral_loss",
]
