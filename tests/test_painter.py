import pytest
import torch
from conftest import smooth_images

from fq_ldm import BaselineModel, FQModel
from fq_ldm.models import take_tokens_
from fq_ldm.models.painter import Painter, enlarge
from fq_ldm.spectrum import resample, spectral_resize

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
@pytest.mark.parametrize("upsampling, even", [("shuffle", False), ("bilinear", True)])
def test_what_is_even_is_painted_evenly(upsampling, even):
    """Without noise, and far from the borders: the four pixels of a shuffle have weights of their own."""
    torch.manual_seed(0)
    painter = Painter(2, 3, (16, 16), (64, 64), (4, 8, 12), (1, 1, 1), upsampling, norm_num_groups=4)
    for add_noise, *_ in painter.sizes:
        add_noise.weight.zero_()
    painted = painter(torch.full((1, 2, 64, 64), 0.7))[0, :, 28:36, 28:36]
    assert (painted.std((1, 2)) < 1e-5).all() == even


def test_a_painter_sees_the_crop_alone():
    painter = Painter(2, 3, (4, 4), (8, 8), (4, 8), (1, 1), norm_num_groups=4)
    latents = torch.randn(2, 2, 8, 8)
    low = spectral_resize(spectral_resize(latents, (4, 4)), (8, 8))
    torch.testing.assert_close(painter(latents), painter(low), rtol=1e-4, atol=1e-5)


def test_a_crop_that_is_no_half_of_the_image_is_held_by_the_next_larger_size():
    model = FQModel(**{**PAINTING, "spectral_crop": 6, "num_tokens": 18, "painter_block_out_channels": (4, 8)})
    assert model.decoder.first_size == (8, 8)
    latents = model.encode(smooth_images(2, 3, 16, 16)).latents
    low = spectral_resize(spectral_resize(latents, (6, 6)), (16, 16))
    torch.testing.assert_close(resample(resample(low, (8, 8)), (16, 16)), low, rtol=1e-4, atol=1e-5)


def test_painters_that_begin_at_other_sizes_share_no_weights():
    """Of the same crop 6: from 8x8 to 16x16, and from 6x6 to 24x24 by stages of the same widths."""
    common = {**PAINTING, "spectral_crop": 6, "num_tokens": 18}
    small = FQModel(**common | {"painter_block_out_channels": (4, 8), "painter_layers_per_block": (1, 2)})
    small.initialize_(smooth_images(64, 3, 16, 16))
    larger = {"painter_block_out_channels": (4, 4, 8), "painter_layers_per_block": (1, 1, 2), "sample_size": 24}
    assert take_tokens_(FQModel(**common | larger), small) == []


@torch.no_grad()
def test_latent_noise_is_that_of_the_standardised_latents(painting):
    """With tokens for every coefficient of the crop, noise on the tokens is noise on the diffusion latents."""
    model, images = painting
    level = torch.tensor([0.0, 0.5])
    latents = model.encode(images[:1]).latents
    tokens = model.quantize.split(latents)
    noise = model._token_noise(level.unsqueeze(1).expand(2, 3), seeds(0, 1))
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
        (dict(painter_block_out_channels=(8, 8)), r"\[8, 8\]: .* give 3 numbers, for 16x16, 8x8, 4x4"),
        (dict(painter_block_out_channels=(4, 4, 4, 4)), r"crop \(4, 4\) to the sample_size \(16, 16\); give 3"),
        (dict(painter_layers_per_block=(1, 2)), r"painter_layers_per_block \[1, 2\] must have one number for each"),
        (dict(painter_upsampling="nearest"), "must be shuffle or bilinear or bilinear_last, not nearest"),
        (dict(painter_outputs=4), "painter_outputs must lie in 1 .. 3, the sizes, not 4"),
        (dict(painter_block_out_channels=None, painter_outputs=2), "painter_outputs and .* are for a painter: give"),
    ],
)
def test_a_painter_that_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        FQModel(**{**PAINTING, **changes})


@torch.no_grad()
@pytest.mark.parametrize("tokens", ["bank", "interleaved"])
def test_larger_images_have_the_same_tokens(tokens):
    """A picture resampled by its spectrum has the tokens, and the latents of a diffusion model, that it had."""
    torch.manual_seed(0)
    small, images = FQModel(**PAINTING, tokens=tokens), smooth_images(64, 3, 16, 16)
    small.initialize_(images)
    painter = dict(painter_block_out_channels=(4, 4, 8, 12), painter_layers_per_block=(1, 1, 2, 4))
    larger = FQModel(**{**PAINTING, **painter, "sample_size": 32}, tokens=tokens)
    awake(small.eval())
    taken = take_tokens_(larger.eval(), small)
    resampled = 2 * spectral_resize(images, (32, 32))
    assert torch.equal(larger.tokenize(resampled), small.tokenize(images))
    latents, larger_latents = (
        m.to_diffusion_latents(m.quantize_latents(m.encode(x).latents).latents)
        for m, x in ((small, images), (larger, resampled))
    )
    assert 0.5 < latents.std() < 1.5
    torch.testing.assert_close(larger_latents, latents, rtol=1e-4, atol=1e-4)
    # The untrained end of the larger painter adds nothing yet.
    linear = small._linear_decode(small.from_diffusion_latents(latents))
    back = larger.decode(larger.from_diffusion_latents(latents), force_not_quantize=True).sample
    torch.testing.assert_close(back, 2 * spectral_resize(linear, (32, 32)), rtol=1e-3, atol=1e-3)
    stages = ("conv_in.", "sizes.0.", "sizes.1.", "sizes.2.", "growing.0.", "growing.1.")
    names = [name for name in small.state_dict() if name.removeprefix("decoder.").startswith(stages)]
    assert sorted(taken) == sorted(names)
    assert all(torch.equal(larger.state_dict()[name], small.state_dict()[name]) for name in names)


@torch.no_grad()
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_larger_painter_starts_as_the_smaller_one_enlarged(outputs):
    torch.manual_seed(0)
    small, images = FQModel(**PAINTING, painter_outputs=outputs), smooth_images(64, 3, 16, 16)
    small.initialize_(images)
    awake(small.eval())
    painter = dict(painter_block_out_channels=(4, 4, 8, 12), painter_layers_per_block=(1, 1, 2, 4))
    growth = dict(painter_upsampling="bilinear_last", painter_outputs=outputs + 1)
    larger = FQModel(**{**PAINTING, **painter, **growth, "sample_size": 32}).eval()
    assert len(take_tokens_(larger, small)) == len(small.decoder.state_dict())
    latents = small.to_diffusion_latents(small.quantize_latents(small.encode(images).latents).latents)
    painted = small.decode(small.from_diffusion_latents(latents), force_not_quantize=True).sample
    enlarged = larger.decode(larger.from_diffusion_latents(latents), force_not_quantize=True).sample
    torch.testing.assert_close(enlarged[..., ::2, ::2], painted, rtol=1e-3, atol=1e-3)


def test_what_is_enlarged_has_its_pixels_and_does_not_ring():
    torch.manual_seed(0)
    image = torch.randn(2, 3, 8, 6)
    enlarged = enlarge(image)
    assert enlarged.shape == (2, 3, 16, 12)
    torch.testing.assert_close(enlarged[..., ::2, ::2], image)
    ramp = torch.arange(8.0).expand(1, 1, 6, 8)  # jumps where a spectrum goes round its border
    torch.testing.assert_close(enlarge(ramp)[0, 0, :, 2:-4], (torch.arange(2, 12) / 2).expand(12, 10))


@torch.no_grad()
def test_a_deeper_painter_starts_as_the_one_before():
    torch.manual_seed(0)
    shallow, images = FQModel(**PAINTING), smooth_images(64, 3, 16, 16)
    shallow.initialize_(images)
    awake(shallow.eval())
    deeper = FQModel(**PAINTING, painter_layers_per_block=(2, 2, 5)).eval()
    assert len(take_tokens_(deeper, shallow)) == len(shallow.decoder.state_dict())
    seen = [model(images, generator=torch.Generator().manual_seed(0)).sample for model in (shallow, deeper)]
    assert torch.equal(*seen)
    fewer = FQModel(**PAINTING, painter_layers_per_block=(1, 1, 4))
    assert {name.split(".")[1] for name in take_tokens_(fewer, shallow)} == {"conv_in", "sizes"}


@pytest.mark.parametrize(
    ("changes", "encoder", "message"),
    [
        (dict(num_tokens=10), 0, "has num_tokens 12, not 10: give the options it was made with"),
        (dict(diffusion_patch_size=2), 0, "has diffusion_patch_size 1, not 2"),
        (dict(), 1, "its encoder has learnt that size"),
        (dict(spectral_crop=8), 0, r"has tokens inside the spectral_crop \(4, 4\), not \(8, 8\)"),
    ],
)
def test_tokens_that_cannot_be_taken(changes, encoder, message):
    source = FQModel(**PAINTING)
    torch.nn.init.constant_(source.encoder.conv_out.bias, encoder)
    options = {**PAINTING, "sample_size": 32, "painter_block_out_channels": None, **changes}
    with pytest.raises(ValueError, match=message):
        take_tokens_(FQModel(**options), source)


def test_tokens_of_the_whole_spectrum_are_those_of_a_crop(painting):
    """A model that was made without a crop gives its tokens to larger images with a crop of its size."""
    options = {key: value for key, value in PAINTING.items() if not key.startswith("painter_")}
    whole = FQModel(**{**options, "spectral_crop": None, "num_tokens": 24})
    larger = {**options, "sample_size": 32, "num_tokens": 24}
    with pytest.raises(ValueError, match=r"spectral_crop \(16, 16\), not \(32, 32\)"):
        take_tokens_(FQModel(**{**larger, "spectral_crop": None}), whole)
    images = painting[1]
    whole.initialize_(images)
    model = FQModel(**{**larger, "spectral_crop": 16}).eval()
    take_tokens_(model, whole.eval())
    with torch.no_grad():
        same = model.tokenize(2 * spectral_resize(images, (32, 32))) == whole.tokenize(images)
    assert same.float().mean() > 0.99


def test_models_of_another_kind_have_other_tokens():
    options = {**PAINTING, "tokens": "grid", "vq_embed_dim": None, "spectral_crop": None, "num_tokens": 16}
    del options["painter_block_out_channels"]
    baseline = {key: value for key, value in options.items() if key not in ("tokens", "vq_embed_dim", "spectral_crop")}
    with pytest.raises(ValueError, match="is a BaselineModel, not a FQModel: give the quantizer it was made with"):
        take_tokens_(FQModel(**options), BaselineModel(**baseline, quantizer="ema"))
    with pytest.raises(ValueError, match="only frequency tokens are the same at both"):
        take_tokens_(FQModel(**{**options, "sample_size": 32}), FQModel(**options))
