"""Each baseline: its quantizer against its paper's formula or the library, and its model from end to end."""

import pytest
import torch
from conftest import TINY, smooth_images

from fq_ldm import BaselineModel, FQModel, HQAModel, load_vae
from fq_ldm.models.baselines import QUANTIZERS
from fq_ldm.quantization.codebook import Codebook
from fq_ldm.quantization.library import EMACodebook, FSQCodebook, ResidualCodebook, SimVQCodebook
from fq_ldm.quantization.lookup import count_entries, probable_tokens, random_tokens
from fq_ldm.training.vae import draw_reconstructions

COMMON = {k: v for k, v in TINY.items() if k != "vq_embed_dim"} | {"sample_size": 16}
GRID = {**COMMON, "tokens": "grid", "dependency": False, "graph_module": False, "commitment_weight": 0.25}
MODELS = {
    "vq": lambda: FQModel(**GRID, anchors="none"),
    "cvq_closest": lambda: FQModel(**GRID, anchors="closest"),
    "cvq_random": lambda: FQModel(**GRID, anchors="random"),
    "cvq_probabilistic": lambda: FQModel(**GRID, anchors="probabilistic"),
    "paper": lambda: FQModel(**COMMON, tokens="paper", latent_channels=2),
    "paper_alike": lambda: FQModel(**COMMON, tokens="paper", latent_channels=2, filter_start="alike"),
    "transformer": lambda: FQModel(**COMMON, tokens="transformer"),
    "hqa": lambda: HQAModel(**COMMON),
    **{name: lambda name=name: BaselineModel(**COMMON, quantizer=name) for name in QUANTIZERS},
}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def images():
    return smooth_images(96, 3, 16, 16)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_starts_from_data_trains_and_comes_back(name, images, tmp_path):
    torch.manual_seed(0)
    model = MODELS[name]()
    model.initialize_(images)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(8):
        output = model.train()(images[12 * step : 12 * step + 12])
        loss, reconstruction_loss = model.loss(images[12 * step : 12 * step + 12], output)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.encoder.conv_out.weight.grad.abs().sum() > 0 and loss.isfinite()
    model.save_pretrained(tmp_path)
    restored = load_vae(str(tmp_path))
    assert type(restored) is type(model)
    model.eval()
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(restored(images).sample, expected.sample)
        indices = model.tokenize(images)
        assert indices.shape == (96, 16) and torch.equal(indices, expected.indices)
        torch.testing.assert_close(model.detokenize(indices), expected.sample)
        assert (expected.sample - images).square().mean() < images.var()
        for quantize in (True, False):  # the picture of training: images of 16 pixels over others, 2 around each
            picture = draw_reconstructions(model, images[:3], tmp_path / "shown.png", quantize)
            first = model(images[:1], force_not_quantize=not quantize).sample[0]
            shown = torch.from_numpy(picture[0, 20:36, 2:18]).permute(2, 0, 1) / 127.5 - 1
            torch.testing.assert_close(shown, first.clamp(-1, 1), rtol=0, atol=0.01)
        without = model.tokenize(images, exclude=int(indices[0, 0]))
        assert not (without == indices[0, 0]).any()
    assert model.bits_per_image == 16 * 5


@pytest.mark.parametrize("name", ["vq", "ema", "simvq"])
def test_lookup_is_the_nearest_entry(name, images):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    model.initialize_(images)
    with torch.no_grad():
        tokens = model.quantize.split(model.encode(images).latents)
        entries = model.quantize.codebook(torch.arange(32))
        expected = torch.cdist(tokens.double(), entries.double()).argmin(-1)
        assert torch.equal(model.tokenize(images), expected)


def test_vq_vae_has_beta_on_the_commitment():
    """Equation 1: the codebook follows the tokens with weight 1, the tokens the codebook with beta."""
    codebook = Codebook(6, 3, commitment_weight=0.25, anchors="none", dependency=False)
    tokens = randn(2, 5, 3).requires_grad_()
    out = codebook.quantize(tokens)
    out.loss.backward()
    error = (codebook(out.indices) - tokens).detach()
    torch.testing.assert_close(tokens.grad, -0.25 * 2 * error / error.numel())
    expected = torch.zeros(6, 3).index_add(0, out.indices.flatten(), 2 * error.flatten(0, 1) / error.numel())
    torch.testing.assert_close(codebook.entries.grad, expected)


def test_without_anchors_only_the_loss_moves_the_codebook():
    codebook = Codebook(6, 3, anchors="none")
    before = codebook.entries.clone()
    codebook.update_(randn(2, 5, 3), count_entries(torch.zeros(2, 5, dtype=torch.int64), len(codebook.entries)))
    assert torch.equal(codebook.entries, before) and codebook.usage[0] > codebook.usage[1]


def test_cvq_vae_step_has_no_dependency():
    """Equation 7 with delta = 1: exp(-N_k M 10 / (1 - gamma) - 0.001), here by hand for gamma = 0.5."""
    codebook = Codebook(2, 2, usage_decay=0.5, dependency=False)
    with torch.no_grad():
        codebook.entries.copy_(torch.tensor([[0.0, 0.0], [5.0, 4.0]]))
        codebook.usage.copy_(torch.tensor([1.0, 0.0]))
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    codebook.update_(tokens, count_entries(codebook.nearest(tokens), len(codebook.entries)))
    step = torch.tensor(-0.001).exp()  # of the starving entry; the other one's is exp(-40)
    expected = torch.stack([torch.zeros(2), torch.tensor([5.0, 4.0]) + step * torch.tensor([-4.0, -4.0])])
    torch.testing.assert_close(codebook.entries.data, expected)


def test_random_anchors_are_tokens_of_the_batch():
    tokens = randn(9, 4)
    drawn = random_tokens(tokens, 200)
    same = (drawn[:, None] == tokens).all(-1)  # (200, 9)
    assert torch.equal(same.sum(1), torch.ones(200, dtype=torch.int64)) and same.any(0).all()


def test_probabilistic_anchors_follow_the_softmax_of_minus_the_distance():
    torch.manual_seed(0)
    tokens, entry = randn(4, 2), randn(1, 2, seed=1)
    drawn = probable_tokens(tokens, entry.expand(6000, 2))
    shares = torch.bincount(torch.cdist(drawn, tokens).argmin(1), minlength=4) / 6000
    expected = (-(tokens - entry).square().sum(1)).softmax(0)
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)


def test_fsq_rounds_each_number_to_its_levels():
    codebook = FSQCodebook([4, 3], 5)
    codebook.initialize_(randn(500, 5) * torch.tensor([3.0, 2.0, 1.0, 0.1, 0.1]))
    entries = codebook(torch.arange(12))
    assert entries.unique(dim=0).shape == (12, 5)
    tokens = randn(7, 6, 5)
    torch.testing.assert_close(codebook.quantize(tokens).tokens, codebook(codebook.nearest(tokens)))


def test_fsq_levels_must_make_the_codes():
    with pytest.raises(ValueError, match=r"fsq_levels \[4, 4\] make 16 codes, but num_vq_embeddings is 32"):
        BaselineModel(**COMMON, quantizer="fsq", fsq_levels=[4, 4])
    with pytest.raises(ValueError, match="1000 is not a power of two: give fsq_levels"):
        BaselineModel(**{**COMMON, "num_vq_embeddings": 1000}, quantizer="fsq")


def test_residual_quantization_sums_its_stages():
    torch.manual_seed(0)
    codebook = ResidualCodebook(16, 4, stages=3)
    codebook.initialize_(randn(600, 4))
    codebook.eval()
    tokens = randn(2, 5, 4)
    indices = codebook.nearest(tokens).view(2, 5, 3)
    residual = tokens
    for stage in range(3):
        assert torch.equal(indices[..., stage], torch.cdist(residual, codebook.entries).argmin(-1))
        residual = residual - codebook.entries[indices[..., stage]]
    torch.testing.assert_close(codebook(indices.flatten(1)), tokens - residual)
    assert residual.norm() < tokens.norm()


@pytest.mark.parametrize("make", [lambda: EMACodebook(16, 4), lambda: SimVQCodebook(16, 4)])
def test_library_codebooks_agree_with_the_library(make):
    torch.manual_seed(0)
    codebook = make()
    codebook.initialize_(randn(600, 4))
    tokens = randn(2, 8, 4)
    codebook.eval()
    quantized, indices, _ = codebook.quantizer(tokens)
    assert torch.equal(codebook.nearest(tokens), indices)
    torch.testing.assert_close(codebook(indices), quantized)


def test_hqa_decodes_from_the_second_layer_alone(images):
    """In training the first layer's reconstruction, which knows four times as many tokens, else the second's."""
    torch.manual_seed(0)
    model = HQAModel(**COMMON)
    model.initialize_(images)
    first = (model.train()(images).sample - images).square().mean()
    with torch.no_grad():
        second = (model.eval()(images).sample - images).square().mean()
    assert first < second < images.var()


def test_unknown_quantizers_and_stages_that_do_not_fit():
    with pytest.raises(ValueError, match="quantizer must be one of ema, sq, fsq, residual, simvq, not magic"):
        BaselineModel(**COMMON, quantizer="magic")
    for changes, owner in ((dict(fsq_levels=[8, 4]), "fsq"), (dict(residual_stages=2), "residual")):
        with pytest.raises(ValueError, match=f"{[*changes][0]} is an option of the quantizer {owner}, not of ema"):
            BaselineModel(**COMMON, quantizer="ema", **changes)
    with pytest.raises(ValueError, match="num_tokens 16 must be a multiple of residual_stages 3"):
        BaselineModel(**COMMON, quantizer="residual", residual_stages=3)


def test_load_vae_refuses_other_models(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match="holds a model of class UNet2DModel"):
        load_vae(str(tmp_path))
