"""Losses of a decoder and its discriminator, all scalars."""

import torch
import torch.nn.functional as F
from torch import nn

from ..spectrum import ROUNDING, sum_over_rings

LARGEST_BALANCE = 1e4  # VQGAN's bound


def discriminator_loss(real: torch.Tensor, painted: torch.Tensor, kind: str) -> torch.Tensor:
    """What the discriminator minimises, of its logits: hinge (Lim & Ye 2017) or logistic (Goodfellow et al. 2014)."""
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + painted).mean()
    return F.softplus(-real).mean() + F.softplus(painted).mean()


def generator_loss(painted: torch.Tensor, kind: str) -> torch.Tensor:
    """What the decoder minimises, of the logits of what it painted."""
    return -painted.mean() if kind == "hinge" else F.softplus(-painted).mean()


def feature_matching(real: list[torch.Tensor], painted: list[torch.Tensor]) -> torch.Tensor:
    """Mean absolute difference of the discriminator's features, over its layers (pix2pixHD, Wang et al. 2018)."""
    distances = [F.l1_loss(p.float(), r.detach().float()) for r, p in zip(real, painted, strict=True)]
    return torch.stack(distances).mean()


def spectral_loss(images: torch.Tensor, painted: torch.Tensor) -> torch.Tensor:
    """How the power of painted images (B, c, H, W) over spatial frequency differs from that of the images.

    The mean square, over all rings of frequencies but the mean of the image, of the logarithm of the ratio of their
    mean powers in the batch: 0 where as much is painted as there is, wherever it is (after Durall et al. 2020). To
    both is added what rounding to 8 bits leaves, since enlarged images have nothing in their highest rings.
    """
    with torch.autocast(images.device.type, enabled=False):
        spectra = [torch.fft.fft2(batch.float(), norm="ortho") for batch in (images, painted)]
        sums = [sum_over_rings(spectrum.abs().square().mean((0, 1)) + ROUNDING) for spectrum in spectra]
    return (sums[1][1:] / sums[0][1:]).log().square().mean()


def gradient_penalty(discriminator: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """R1 (Mescheder et al. 2018): half the mean squared norm of the logits' gradient at real images (B, c, H, W)."""
    images = images.detach().requires_grad_()
    logits = discriminator(images)[0].float()
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean() / 2


def gradient_norm(loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The norm of a loss's gradient at one weight; its graph stays."""
    return torch.autograd.grad(loss, weight, retain_graph=True)[0].norm()


def balance(reconstruction: torch.Tensor, adversarial: torch.Tensor) -> torch.Tensor:
    """The ratio of two losses' `gradient_norm` at the decoder's last weight (VQGAN, Esser et al. 2021, equation 7)."""
    return (reconstruction / (adversarial + 1e-4)).clamp(0, LARGEST_BALANCE).detach()
