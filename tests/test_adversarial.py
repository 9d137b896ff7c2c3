import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from fq_ldm.adversarial import (
    FeatureDiscriminator,
    FeatureNetwork,
    PatchDiscriminator,
    balance,
    discriminator_loss,
    feature_distance,
    feature_matching,
    generator_loss,
    gradient_norm,
    gradient_penalty,
    spectral_loss,
)

NETWORK = "test_efficientnet"


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
    norms = [gradient_norm(factor * weight.sum(), weight) for factor in (6, 2)]
    assert norms[0].item() == pytest.approx(6 * math.sqrt(2))
    assert balance(*norms).item() == pytest.approx(3, rel=1e-3)


def test_layers_are_free_where_nothing_norms_them():
    discriminator = PatchDiscriminator(3, (8, 16), norm="none")
    assert len(discriminator.state_dict()) == 6 and not any("original" in name for name in discriminator.state_dict())
    with torch.no_grad():
        for layer in (*discriminator.layers, discriminator.conv_out):
            layer.weight.mul_(10)
    images = torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match="norm must be one of spectral, none, not batch"):
        PatchDiscriminator(norm="batch")
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


@pytest.fixture(scope="session")
def network_file(tmp_path_factory):
    """Random weights of the smallest network that timm has."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "network.safetensors"
    save_file(timm.create_model(NETWORK).state_dict(), path)
    return path


def test_features_are_those_of_the_network(network_file):
    network = FeatureNetwork(NETWORK, (32, 32), str(network_file))
    whole = timm.create_model(NETWORK, pretrained=True, pretrained_cfg_overlay=dict(file=str(network_file))).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    mean, std = (torch.tensor(whole.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    expected = whole.forward_intermediates((images / 2 + 0.5 - mean) / std, intermediates_only=True)[:4]
    with torch.autocast("cpu", torch.bfloat16):
        features = network(images)
    assert network.channels == [level.shape[1] for level in features] and len(features) == 4
    for ours, theirs in zip(features, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    grey = network(images[:, :1])
    assert all(map(torch.equal, grey, network(images[:, :1].repeat(1, 3, 1, 1))))


def test_features_are_compared_by_their_directions():
    right, up = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    near = pytest.approx
    assert feature_distance([right], [3 * right]).item() == near(0, abs=1e-6)
    assert feature_distance([right], [5 * up]).item() == near(2, rel=1e-5)
    assert feature_distance([right, up], [-right, right]).item() == near(4 + 2, rel=1e-5)
    halves = torch.cat([right, up], -1)
    assert feature_distance([halves], [right.expand(1, 2, 1, 2)]).item() == near(1, rel=1e-5)


def test_heads_judge_each_level_and_keep_their_mixtures():
    torch.manual_seed(0)
    heads = FeatureDiscriminator([6, 10])
    features = [torch.randn(2, 6, 8, 8), torch.randn(2, 10, 4, 4)]
    assert [tuple(logits.shape) for logits in heads(features)] == [(2, 1, 4, 4), (2, 1, 2, 2)]
    learnt = {name for name, _ in heads.named_parameters()}
    kept = heads.state_dict().keys() - learnt
    assert {"heads.0.mixture", "heads.1.mixture"} <= kept and not any("mixture" in name for name in learnt)


@pytest.mark.parametrize(
    ("name", "weights", "error", "message"),
    [
        ("eyes", None, ValueError, "perceptual_network: timm has no network eyes"),
        (NETWORK, "none.safetensors", FileNotFoundError, "perceptual_network_weights: there is no file none.safe"),
        (NETWORK, "other.safetensors", ValueError, "perceptual_network_weights: other.safetensors does not hold"),
        (NETWORK, "broken.safetensors", ValueError, "perceptual_network_weights: broken.safetensors does not hold"),
        (NETWORK, None, FileNotFoundError, r"those of test_efficientnet cannot be had \(no network\); give a file"),
        ("mnasnet_050", None, ValueError, "perceptual_network: timm has no weights of mnasnet_050"),
        (
            "test_convnext",
            "large.safetensors",
            ValueError,
            r"test_convnext does not see images of \(32, 32\) at 4 sizes",
        ),
    ],
)
def test_a_network_that_cannot_be_had(tmp_path, monkeypatch, name, weights, error, message):
    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    monkeypatch.chdir(tmp_path)
    save_file({"some": torch.zeros(2)}, "other.safetensors")
    Path("broken.safetensors").write_bytes(b"no weights")
    save_file(timm.create_model("test_convnext").state_dict(), "large.safetensors")
    with pytest.raises(error, match=message):
        FeatureNetwork(name, (32, 32), weights)
