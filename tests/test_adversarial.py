import math

import pytest
import torch
from torch import nn

from fq_ldm.adversarial import (
    PatchDiscriminator,
    balance,
    discriminator_loss,
    feature_matching,
    generator_loss,
    gradient_penalty,
    spectral_loss,
)


def test_losses_of_known_logits():
    real, painted = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert discriminator_loss(real, painted, "hinge").item() == pytest.approx(0.25 + 0.5)
    assert generator_loss(painted, "hinge").item() == pytest.approx(1.5)
    log = lambda x: math.log(1 + math.exp(x))  # noqa: E731
    expected = (log(-2) + log(-0.5) + log(-3) + log(0)) / 2
    assert discriminator_loss(real, painted, "non_saturating").item() == pytest.approx(expected, rel=1e-5)
    assert generator_loss(painted, "non_saturating").item() == pytest.approx((log(3) + log(0)) / 2, rel=1e-5)


def test_features_are_compared_layer_by_layer():
    real = [torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 2, 2)]
    painted = [torch.full((1, 2, 4, 4), 3.0), torch.ones(1, 4, 2, 2)]
    assert feature_matching(real, painted).item() == pytest.approx(1.5)


def test_spectra_are_compared_in_units_of_their_own():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 12, 8)
    assert spectral_loss(images, images.flip(0).roll(3, -1)).item() == pytest.approx(0, abs=1e-10)  # wherever it is
    assert spectral_loss(images, images + 5).item() == pytest.approx(0, abs=1e-6)  # a mean is no texture
    assert spectral_loss(images, images / 2).item() == pytest.approx(math.log(4) ** 2, rel=1e-4)
    smooth = torch.zeros_like(images)
    assert spectral_loss(smooth, smooth).item() == 0
    painted = (images / 2).requires_grad_()
    spectral_loss(images, painted).backward()
    assert ((painted.grad * painted).sum((1, 2, 3)) < 0).all()  # more of what is there


class Weighing(nn.Module):
    """One logit for each image, linear in its pixels."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(12.0).view(3, 2, 2))

    def forward(self, images):
        return (images * self.weight).sum((1, 2, 3)).view(-1, 1, 1, 1), []


def test_the_gradient_penalty_of_a_linear_discriminator_is_half_its_squared_norm():
    discriminator = Weighing()
    penalty = gradient_penalty(discriminator, torch.randn(5, 3, 2, 2))
    assert penalty.item() == pytest.approx(discriminator.weight.square().sum().item() / 2)
    penalty.backward()
    torch.testing.assert_close(discriminator.weight.grad, discriminator.weight.detach())


def test_losses_are_balanced_by_their_gradients():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    assert balance(6 * weight.sum(), 2 * weight.sum(), weight).item() == pytest.approx(3, rel=1e-3)


def test_layers_are_free_where_nothing_norms_them():
    discriminator = PatchDiscriminator(3, (8, 16), norm="none")
    assert len(discriminator.state_dict()) == 6 and not any("original" in name for name in discriminator.state_dict())
    with torch.no_grad():
        for layer in (*discriminator.layers, discriminator.conv_out):
            layer.weight.mul_(10)
    images = torch.randn(2, 3, 16, 16)
    assert discriminator(images)[0].std() > 10 * PatchDiscriminator(3, (8, 16)).train()(images)[0].std()


def test_layers_have_spectral_norm_one():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(3, (8, 16)).train()
    for _ in range(60):  # power iterations
        logits, features = discriminator(torch.randn(2, 3, 16, 16))
    assert logits.shape == (2, 1, 4, 4)
    assert [tuple(f.shape) for f in features] == [(2, 8, 8, 8), (2, 16, 4, 4)]
    for layer in (*discriminator.layers, discriminator.conv_out):
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        assert largest == pytest.approx(1, abs=0.02)
