import math

import pytest
import torch
from conftest import TINY, smooth_images

from fq_ldm import FQModel


def test_step_zero_is_a_linear_coder(images):
    """Before training, encoder and decoder are orthogonal: the image error is the quantization error."""
    model = FQModel(**TINY).eval()
    model.initialize_(images)
    with torch.no_grad():
        latents = model.encode(images).latents
        torch.testing.assert_close(latents.square().sum(), images.square().sum())
        error = model(images).sample - images
        quantized = model.quantize_latents(latents).latents
    torch.testing.assert_close(error.square().sum(), (quantized - latents).square().sum())
    assert error.square().mean() < 0.5 * images.var()


def test_quantized_latents_are_codebook_entries_and_stay_put(model, images):
    with torch.no_grad():
        quantized = model.quantize_latents(model.encode(images).latents)
        again = model.quantize_latents(quantized.latents)
        tokens = model.quantize.split(quantized.latents)
    torch.testing.assert_close(tokens, model.quantize.codebook.entries[quantized.indices], rtol=1e-4, atol=1e-5)
    assert torch.equal(again.indices, quantized.indices)
    torch.testing.assert_close(again.latents, quantized.latents, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_all_ways_to_reconstruct_agree(model, images):
    expected = model(images).sample
    indices = model.tokenize(images)
    assert indices.shape == (len(images), 16) and indices.dtype == torch.int64
    assert torch.equal(model.detokenize(indices), expected)
    latents = model.encode(images).latents
    assert torch.equal(model.decode(latents).sample, expected)
    quantized = model.quantize_latents(latents).latents
    torch.testing.assert_close(model.decode(quantized, force_not_quantize=True).sample, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.decode(latents, return_dict=False)[0], expected)


def test_straight_through_gradient(model, images):
    """The decoder's gradient reaches the encoder as if the codebook were the identity on the kept spectrum."""
    latents = model.encode(images[:2]).latents.detach().requires_grad_()
    quantized = model.quantize_latents(latents).latents
    direction = torch.randn(quantized.shape, generator=torch.Generator().manual_seed(0))
    (quantized * direction).sum().backward()
    expected = model.project_latents(direction) - model.project_latents(torch.zeros_like(direction))
    torch.testing.assert_close(latents.grad, expected, rtol=1e-4, atol=1e-5)


def test_loss_is_equation_1_in_latent_units(model, images):
    """Codebook loss + beta times commitment loss, each the squared latent error; their gradients part ways."""
    model.quantize.codebook.commitment_weight = 0.25
    latents = model.encode(images).latents.detach().requires_grad_()
    out = model.quantize_latents(latents)
    error = (model.project_latents(latents) - out.latents).detach()
    torch.testing.assert_close(out.loss, 1.25 * error.square().mean(), rtol=1e-4, atol=0)
    out.loss.backward()
    torch.testing.assert_close(latents.grad, 0.25 * 2 * error / latents.numel(), rtol=1e-3, atol=1e-7)
    assert model.quantize.codebook.entries.grad.abs().sum() > 0


def test_codebook_moves_in_training_only(model, images):
    usage = model.quantize.codebook.usage.clone()
    with torch.no_grad():
        model.train()(images)
    model.eval()(images)
    assert torch.equal(model.quantize.codebook.usage, usage)
    model.train()(images)
    assert not torch.equal(model.quantize.codebook.usage, usage)


def test_training_lowers_the_loss(images):
    torch.manual_seed(0)
    model = FQModel(**TINY)
    model.initialize_(images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        out = model(images)
        losses.append((out.sample - images).square().mean())
        (losses[-1] + out.commit_loss).backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    "options",
    [
        dict(in_channels=1, sample_size=28, latent_channels=1, num_tokens=45, vq_embed_dim=5, spectral_crop=16),
        dict(in_channels=1, sample_size=(9, 7), latent_channels=2, graph_module=False),
        dict(in_channels=3, sample_size=(12, 8), block_out_channels=(8, 16), latent_channels=4),
        dict(in_channels=3, sample_size=(7, 10), latent_channels=2),
        dict(in_channels=3, sample_size=16, spectral_crop=8, diffusion_patch_size=2),
    ],
)
@torch.no_grad()
def test_sizes_and_channels(options):
    options = {**TINY, **options}
    model = FQModel(**options).eval()
    images = smooth_images(24, options["in_channels"], *model.sample_size)
    model.initialize_(images)
    out = model(images)
    assert out.sample.shape == images.shape and out.sample.isfinite().all()
    quantized = model.quantize_latents(model.encode(images).latents).latents
    view = model.to_diffusion_latents(quantized)
    assert view.shape[1:] == model.diffusion_latent_shape
    torch.testing.assert_close(model.from_diffusion_latents(view), quantized, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_diffusion_latents_are_standardised_and_isometric(model, images):
    latents = model.encode(images).latents
    model.measure_diffusion_latents_(latents)
    latents = model.quantize_latents(latents).latents
    view = model.to_diffusion_latents(latents)
    torch.testing.assert_close(view.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(view.std((0, 2, 3)), torch.ones(3), rtol=1e-2, atol=0)
    distance = ((view[0] - view[1]) * model.diffusion_view.std).norm()
    torch.testing.assert_close(distance, (latents[0] - latents[1]).norm())


@torch.no_grad()
def test_save_and_load_bit_for_bit(model, images, tmp_path):
    model.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    loaded = FQModel.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(loaded.eval()(images).sample, model(images).sample)
    assert loaded.config.num_tokens == 16 and loaded.sample_size == (8, 12)


@torch.no_grad()
def test_half_precision_keeps_the_codebook(model, images, tmp_path):
    model.save_pretrained(tmp_path)
    half = FQModel.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert half.encoder.conv_in.weight.dtype == torch.float16
    for name, value in model.quantize.state_dict().items():
        assert torch.equal(half.quantize.state_dict()[name], value), name
    reconstruction = half(images[:4].half()).sample
    assert reconstruction.dtype == torch.float16
    same = half.tokenize(images.half()) == model.tokenize(images)
    assert same.float().mean() > 0.9


def test_autocast_leaves_the_quantizer_alone(model, images):
    latents = model.encode(images).latents
    expected = model.quantize_latents(latents)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.quantize_latents(latents)
        assert model(images).commit_loss.dtype == torch.float32
    assert torch.equal(found.latents, expected.latents) and torch.equal(found.indices, expected.indices)


def test_bits_per_image(model):
    assert model.bits_per_image == 16 * math.log2(32)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(sample_size=9, block_out_channels=(8, 8)), "multiple of 2 in height and width"),
        (
            dict(num_tokens=100),
            "100 tokens of 4 coefficients need 400, but 3 latent channels with a 8x12 spectrum have 288",
        ),
        (dict(spectral_crop=10), r"spectral_crop \(10, 10\) is larger than the latent \(8, 12\)"),
        (dict(diffusion_patch_size=5), r"diffusion_patch_size 5 must divide both sides of the spectral crop \(8, 12\)"),
        (dict(vq_embed_dim=1), "vq_embed_dim must be at least 2"),
        (dict(vq_embed_dim=0), "vq_embed_dim must be at least 2"),
        (dict(filter_start="alike"), "filter_start is for tokens paper: leave it out for bank"),
    ],
)
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        FQModel(**{**TINY, **options})


def test_wrong_inputs_are_named(model):
    with pytest.raises(ValueError, match=r"takes images of shape \(batch, 3, 8, 12\), not \(2, 1, 8, 12\)"):
        model.encode(torch.zeros(2, 1, 8, 12))
    with pytest.raises(ValueError, match=r"tokens must have the shape \(batch, 16\), not \(2, 15\)"):
        model.detokenize(torch.zeros(2, 15, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"tokens must lie in 0 .. 31; found 0 .. 32"):
        model.detokenize(torch.tensor([[32] + [0] * 15]))
