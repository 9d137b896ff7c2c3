import pytest
import torch
from conftest import smooth_images

from fq_ldm import FQModel
from fq_ldm.models.painter import Painter
from fq_ldm.spectrum import spectral_resize

PAINTING = dict(
    sample_size=16, block_out_channels=(8,), norm_num_groups=4, num_tokens=12, num_vq_embeddings=32, vq_embed_dim=4,
    spectral_crop=4, painter_block_out_channels=(4, 8, 12),
)  # fmt: skip


def seeds(*values):
    return [torch.Generator().manual_seed(value) for value in values]


@pytest.fixture
def painting():
    """A model with a painter that does something, and images."""
    torch.manual_seed(0)
    model, images = FQModel(**PAINTING), smooth_images(64, 3, 16, 16)
    model.initialize_(images)
    return model.eval(), images


def awake(model):
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return model


@torch.no_grad()
def test_an_untrained_painter_leaves_the_linear_decoding(painting):
    model, images = painting
    latents = model.quantize_latents(model.encode(images).latents).latents
    torch.testing.assert_close(model(images).sample, model._linear_decode(latents), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_without_a_generator_images_are_the_same_at_every_call(painting):
    model, images = awake(painting[0]), painting[1]
    images = images[:6]
    reconstructions = model(images).sample
    assert torch.equal(model(images).sample, reconstructions)
    assert torch.equal(model.detokenize(model.tokenize(images)), reconstructions)
    torch.testing.assert_close(model(images[2:3]).sample, reconstructions[2:3], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_noise_comes_from_the_generators(painting):
    model, images = awake(painting[0]), painting[1]
    images = images[:4]
    batch = model(images, generator=seeds(0, 1, 2, 3)).sample
    alone = model(images[2:3], generator=seeds(2)).sample
    torch.testing.assert_close(alone, batch[2:3], rtol=1e-4, atol=1e-5)
    assert (model(images, generator=seeds(0, 1, 7, 3)).sample - batch)[2].abs().max() > 1e-2
    assert not torch.equal(model(images).sample, batch)


@torch.no_grad()
def test_a_painter_sees_the_crop_with_the_amplitudes_of_an_image():
    painter = Painter(2, 3, (4, 4), (8, 8), (4, 8), (1, 1), norm_num_groups=4)
    torch.testing.assert_close(painter._small(torch.full((1, 2, 8, 8), 0.7)), torch.full((1, 2, 4, 4), 0.7))
    latents = torch.randn(2, 2, 8, 8)
    low = spectral_resize(spectral_resize(latents, (4, 4)), (8, 8))
    torch.testing.assert_close(painter(latents), painter(low), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_latent_noise_is_that_of_the_standardised_latents(painting):
    """With tokens for every coefficient of the crop, noise on the tokens is noise on the diffusion latents."""
    model, images = painting
    level = torch.tensor([0.0, 0.5])
    latents = model.encode(images[:1]).latents
    tokens = model.quantize.split(latents)
    noise = model._token_noise(level, seeds(0, 1))
    view = model.to_diffusion_latents
    moved = view(model.quantize.join(tokens + noise)) - view(model.quantize.join(tokens))
    assert moved[0].abs().max() < 1e-4
    torch.testing.assert_close(moved[1], 0.5 * torch.randn(3, 4, 4, generator=seeds(1)[0]), rtol=1e-3, atol=1e-3)


def test_frozen_tokens_stay_and_the_decoder_learns(painting):
    model, images = painting
    model.freeze_tokens_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.train().parameters() if p.requires_grad], lr=0.1)
    (model(images).sample - images).square().mean().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("decoder."))


def test_it_is_saved_and_loaded(painting, tmp_path):
    model, images = awake(painting[0]), painting[1]
    model.save_pretrained(tmp_path)
    loaded = FQModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images[:2]).sample, model(images[:2]).sample)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(painter_block_out_channels=(8, 8)), r"\[8, 8\] grow the spectral crop \(4, 4\) 2 times.*\(16, 16\)"),
        (dict(painter_layers_per_block=(1, 2)), r"painter_layers_per_block \[1, 2\] must have one number for each"),
    ],
)
def test_a_painter_that_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        FQModel(**{**PAINTING, **changes})
