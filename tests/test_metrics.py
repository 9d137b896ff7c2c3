import json
import math
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import smooth_images
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor
from torchvision.models.vgg import cfgs, make_layers

from fq_ldm.metrics import (
    CodebookUsage,
    evaluate_reconstruction,
    mse,
    pixel_variance,
    psnr,
    sorted_usage,
    ssim,
    to_uint8,
    unit_information,
)
from fq_ldm.metrics.fidelity import (
    LPIPS,
    FeatureExtractor,
    ReconstructionFID,
    frechet_distance,
    kernel_distance,
    precision_recall,
)


class RandomConvolution(FeatureExtractorBase):
    """The mean responses of eight random filters."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        self.filters = nn.Conv2d(3, 8, 4, stride=2)
        generator = torch.Generator().manual_seed(0)
        nn.init.normal_(self.filters.weight, std=0.1, generator=generator)

    @staticmethod
    def get_provided_features_list():
        return ("means",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "means"

    def forward(self, x):
        return (self.filters(x / 127.5 - 1).relu().mean((2, 3)),)


register_feature_extractor("random-convolution", RandomConvolution)


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """Random weights in the file format of torchvision's VGG16."""
    torch.manual_seed(0)
    layers = make_layers(cfgs["D"])
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save({f"features.{name}": value for name, value in layers.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def lpips(vgg_file):
    return LPIPS(vgg_file)


@pytest.fixture
def no_network(monkeypatch):
    def fail(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("fq_ldm.metrics.fidelity.load_state_dict_from_url", fail)
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", fail)


@pytest.fixture
def pair():
    images = (smooth_images(3, 3, 20, 28).double() + 1) / 2
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return images, (images + 0.1 * noise).clamp(0, 1)


@pytest.mark.parametrize(
    "window, arguments",
    [
        ("uniform", dict(win_size=11, gaussian_weights=False, use_sample_covariance=True)),
        ("gaussian", dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)),
    ],
)
def test_ssim_against_scikit_image(pair, window, arguments):
    for value, a, b in zip(ssim(*pair, window=window), *pair, strict=True):
        expected = structural_similarity(a.numpy(), b.numpy(), channel_axis=0, data_range=1, **arguments)
        assert value.item() == pytest.approx(expected, abs=1e-6)


def test_ssim_of_eight_bit_images_follows_cvq_vae(pair):
    """Images saved as 8 bits and read again, height x width x channels, as its evaluation script has them."""
    images, targets = ((x * 255).round().to(torch.uint8) for x in pair)
    for value, a, b in zip(ssim(images / 255, targets / 255), images, targets, strict=True):
        a, b = (x.permute(1, 2, 0).numpy() / 255.0 for x in (a, b))
        expected = structural_similarity(a, b, data_range=1, win_size=11, channel_axis=-1)
        assert value.item() == pytest.approx(expected, abs=1e-5)  # float32 here


def test_psnr_against_scikit_image(pair):
    for value, a, b in zip(psnr(*pair), *pair, strict=True):
        assert value.item() == pytest.approx(peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1))


def test_closed_forms():
    black, grey = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 0.1)
    assert mse(black, grey).item() == pytest.approx(0.01)
    assert psnr(black, grey).item() == pytest.approx(20)
    assert ssim(black, black).item() == pytest.approx(1)
    assert ssim(black, grey).item() == pytest.approx(1e-4 / (0.01 + 1e-4), rel=1e-4)


def test_ssim_names_the_size_it_needs():
    with pytest.raises(ValueError, match="at least 11x11 pixels, not 8x12"):
        ssim(torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 8, 12))


def test_ssim_names_the_windows_it_has():
    with pytest.raises(ValueError, match='window must be "uniform" or "gaussian", not \'round\''):
        ssim(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16), window="round")


def test_eight_bits():
    assert to_uint8(torch.tensor([-1.5, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(pixels / 127.5 - 1), pixels)


def test_usage_over_a_split():
    usage = CodebookUsage(4)
    usage.add(torch.tensor([[0, 1], [1, 0]]))
    usage.add(torch.tensor([[3, 3]]))
    assert usage.codes_used() == 3
    assert usage.perplexity() == pytest.approx(3)
    torch.testing.assert_close(sorted_usage(usage.counts), torch.tensor([1, 1, 1, 0]).double() / 3)
    torch.testing.assert_close(sorted_usage(torch.tensor([0, 1, 3])), torch.tensor([0.75, 0.25, 0]).double())


class ToyModel:
    """Every pixel is a token: the nearest entry of a scalar codebook."""

    device = torch.device("cpu")

    def __init__(self, entries):
        self.entries = torch.tensor(entries)
        self.config = SimpleNamespace(num_vq_embeddings=len(entries))
        self.coded = 0

    def tokenize(self, images, exclude=None):
        self.coded += len(images)
        distance = (images.flatten(1).unsqueeze(-1) - self.entries).abs()
        if exclude is not None:
            distance[..., exclude] = torch.inf
        return distance.argmin(-1)

    def detokenize(self, indices):
        return self.entries[indices].unsqueeze(1).unsqueeze(1)


def test_unit_information_by_hand():
    """Without -1, two of four pixels move by half the range: (2 x 0.25) / 4. Without 0, 0.2 becomes 1: from 0.1
    squared to 0.4 squared. Without 1, it becomes 0. Nobody uses -5."""
    model = ToyModel([-1.0, 0.0, 1.0, -5.0])
    images = torch.tensor([-1.0, -1.0, 0.2, 1.0]).view(4, 1, 1, 1)
    rise = unit_information(model, images, batch_size=3, progress=False)
    torch.testing.assert_close(rise, torch.tensor([0.5, 0.16 - 0.01, 0.25, 0]).double() / 4)


def test_unit_information_of_images_with_several_tokens():
    """The second image uses entry 0 in one of two pixels. Entry 2 shows as 1, being clamped, and so costs 0.25 when 0
    takes its place."""
    model = ToyModel([-1.0, 0.0, 1.4])
    images = torch.tensor([[0.0, 0.0], [-1.0, 1.0]]).view(2, 1, 1, 2)
    rise = unit_information(model, images, progress=False)
    torch.testing.assert_close(rise, torch.tensor([0.25 / 4, 2 * 0.25 / 4, 0.25 / 4]).double())
    assert model.coded == 2 + 1 + 1 + 1  # all, then the users of each entry alone


def test_variance_over_batches():
    images = smooth_images(10, 3, 8, 8) + 0.5
    assert pixel_variance(images.split(3)) == pytest.approx(np.var(images.numpy()), rel=1e-5)


def test_evaluation_does_not_depend_on_the_batches():
    from conftest import TINY

    from fq_ldm import FQModel

    model = FQModel(**{**TINY, "sample_size": 16})
    images = smooth_images(20, 3, 16, 16)
    model.initialize_(images)
    whole = evaluate_reconstruction(model, [images], train_variance=0.2)
    parts = evaluate_reconstruction(model, images.split(7), train_variance=0.2)
    # A value at the edge between two of 8 bits may fall to either side.
    assert whole == pytest.approx(parts, rel=1e-4)
    assert whole["images"] == 20
    assert whole["nmse"] == pytest.approx(4 * whole["mse"] / 0.2)
    assert whole["bits_per_image"] == 80
    assert "nmse" not in evaluate_reconstruction(model, [images])


def test_evaluation_counts_tokens_and_adds_pair_metrics(model, monkeypatch):
    images = smooth_images(12, 3, 16, 16)
    monkeypatch.setattr(
        type(model), "forward", lambda self, x: SimpleNamespace(sample=-x, indices=torch.tensor([1, 3]))
    )

    class LargestDifference:
        value = 0

        def add(self, images, reconstructions):
            assert images.dtype == reconstructions.dtype == torch.uint8
            self.value = max(self.value, int((images.int() - reconstructions.int()).abs().max()))

        def compute(self, merge):
            return self.value

    usage = CodebookUsage(32)
    result = evaluate_reconstruction(model, images.split(6), usage=usage, pair_metrics={"largest": LargestDifference()})
    assert result["largest"] == pytest.approx(255 * images.abs().max(), abs=1)
    assert usage.counts.nonzero().flatten().tolist() == [1, 3] and result["codes_used"] == 2
    assert json.dumps(result)


def gaussian(mean, scale, count=6):
    """Points with exactly this mean and the covariance diag(scale^2): a cross along the axes."""
    scale = torch.as_tensor(scale).double()
    cross = torch.cat([torch.eye(len(scale)), -torch.eye(len(scale))]).double().repeat(count, 1)
    cross = cross * math.sqrt((len(cross) - 1) / (2 * count))
    return torch.as_tensor(mean) + cross * scale


def test_frechet_distance_closed_forms():
    """|mean - mean'|^2 + sum (scale - scale')^2, for covariances with common axes."""
    a = gaussian([0.0, 0.0, 0.0], [1.0, 2.0, 3.0])
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a + torch.tensor([1.0, 2.0, 2.0]), a) == pytest.approx(9)
    assert frechet_distance(a, gaussian([0.0, 0.0, 4.0], [2.0, 2.0, 0.5])) == pytest.approx(16 + 1 + 2.5**2)


def test_kernel_distance_states_its_subsets():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 60, 4, generator=generator)
    near, far = kernel_distance(a, b), kernel_distance(a, b + 3)
    assert near["kid_subset_size"] == 60 and abs(near["kid"]) < 0.3 < far["kid"]
    assert kernel_distance(a, b[:40])["kid_subset_size"] == 40
    with pytest.raises(ValueError, match="KID: needs at least 2 images in each set, not 1"):
        kernel_distance(a, b[:1])


def test_precision_and_recall_of_samples_that_miss_half():
    """Samples at one of two places where real images lie: all are real, half of the real ones are found."""
    generator = torch.Generator().manual_seed(0)
    here, there = torch.randn(100, 2, generator=generator), torch.randn(100, 2, generator=generator) + 50
    result = precision_recall(here[:50], torch.cat([here[50:], there[:50]]))
    assert result["precision"] > 0.8 and 0.4 < result["recall"] <= 0.5
    assert result["f_score"] == pytest.approx(
        2 * result["precision"] * result["recall"] / (result["precision"] + result["recall"])
    )
    with pytest.raises(ValueError, match="at least 4 images in each set, not 3"):
        precision_recall(here, there[:3])


def test_features_of_a_registered_extractor():
    images = to_uint8(smooth_images(30, 1, 16, 16))
    extractor = FeatureExtractor(["fid", "kid"], "random-convolution")
    features = extractor.join([extractor(part) for part in images.split(7)])
    assert set(features) == {"fid", "kid"} and features["fid"].shape == (30, 8)
    torch.testing.assert_close(features["fid"], extractor(images.repeat(1, 3, 1, 1))["means"])
    with pytest.raises(ValueError, match="'random' is not registered with torch-fidelity, only inception-v3-compat"):
        FeatureExtractor(["fid"], "random")


def test_reconstruction_fid_is_the_distance_of_the_features():
    images, others = to_uint8(smooth_images(30, 3, 16, 16)), to_uint8(smooth_images(30, 3, 16, 16, seed=1))
    extractor = FeatureExtractor(["fid"], "random-convolution")
    metric = ReconstructionFID(extractor)
    for pair in zip(images.split(8), others.split(8), strict=True):
        metric.add(*pair)
    expected = frechet_distance(extractor(images)["means"], extractor(others)["means"])
    assert metric.compute() == pytest.approx(expected, rel=1e-4) and expected > 0


def test_lpips_of_equal_and_of_different_images(lpips):
    images = to_uint8(smooth_images(4, 1, 16, 20))
    noisy = to_uint8(smooth_images(4, 1, 16, 20) + 0.2)
    assert torch.equal(lpips(images, images), torch.zeros(4))
    distance = lpips(images, noisy)
    assert distance.shape == (4,) and (distance > 0).all()
    lpips.add(images, noisy)
    lpips.add(images[:2], images[:2])
    assert lpips.compute() == pytest.approx(distance.sum().item() / 6, rel=1e-5)
    with pytest.raises(ValueError, match="at least 16x16 pixels, not 8x12"):
        lpips(images[..., :8, :12], images[..., :8, :12])


def test_lpips_reads_the_backbone_from_the_file(lpips, vgg_file):
    state = torch.load(vgg_file, weights_only=True)
    network = lpips._network.net
    assert torch.equal(network.slice1[0].weight, state["features.0.weight"])
    assert torch.equal(network.slice5.state_dict()["28.bias"], state["features.28.bias"])


def test_lpips_has_a_gradient(lpips):
    images, targets = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    images.requires_grad_()
    distance = lpips.distance(images, targets)
    distance.sum().backward()
    assert images.grad.abs().sum((1, 2, 3)).gt(0).all()
    pixels = [((x.detach() + 1) * 127.5).round().to(torch.uint8) for x in (images, targets)]
    torch.testing.assert_close(lpips(*pixels), distance.detach(), rtol=0.05, atol=1e-3)


@pytest.mark.parametrize(
    "make, file, flag",
    [
        (lambda: FeatureExtractor(["fid"]), "weights-inception-2015-12-05-6726825d.pth", "--feature_extractor_weights"),
        (LPIPS, "vgg16-397923af.pth", "--lpips_weights"),
    ],
)
def test_weights_that_cannot_be_downloaded(no_network, make, file, flag):
    with pytest.raises(FileNotFoundError) as error:
        make()
    message = str(error.value)
    assert "no network" in message and f"get {file} from https://" in message and f"{flag} FILE" in message
    assert "\n" not in message


def test_weights_from_a_wrong_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="feature_extractor_weights: there is no file .*none.pth; get weights-"):
        FeatureExtractor(["fid"], weights=tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("text.pth", "other.pth"):
        with pytest.raises(ValueError, match=f"{name} does not hold these weights"):
            FeatureExtractor(["fid"], weights=tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} does not hold these weights"):
            LPIPS(tmp_path / name)


def test_ssim_takes_no_convolution_of_less_than_float64(monkeypatch):
    """TF32 convolutions keep 10 bits: variances, which are differences of large sums, would be off by 0.05."""
    convolution = torch.nn.functional.conv2d

    def like_tf32(images, weights, **options):
        if images.dtype == torch.float32:
            images = (images.view(torch.int32) & ~0x1FFF).view(torch.float32)
        return convolution(images, weights, **options)

    images = 0.9 + 0.02 * torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    noisy = images + 0.02 * torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = ssim(images.double(), noisy.double())
    monkeypatch.setattr("fq_ldm.metrics.image.F.conv2d", like_tf32)
    torch.testing.assert_close(ssim(images, noisy), expected.float(), atol=1e-5, rtol=0)
