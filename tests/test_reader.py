import pytest
import torch
from conftest import smooth_images
from test_painter import PAINTING, awake

from fq_ldm import FQModel
from fq_ldm.models import take_tokens_
from fq_ldm.spectrum import spectral_resize

LEARNT = PAINTING | dict(latent_channels=5, learnt_channels=2, reader_width=8, reader_layers=1, num_tokens=20)
LARGER = dict(
    sample_size=32, painter_block_out_channels=(4, 4, 8, 12), painter_layers_per_block=(1, 1, 2, 4)
)  # fmt: skip


@pytest.fixture
def learnt():
    """A model with learnt channels that have learnt something, tokens and all, and images."""
    torch.manual_seed(0)
    model, images = FQModel(**LEARNT), smooth_images(64, 3, 16, 16)
    model.initialize_(images)
    return awake(model.eval()), images


@torch.no_grad()
def test_linear_channels_are_those_of_a_model_without_learnt_ones(learnt):
    model, images = learnt
    linear = FQModel(**PAINTING)
    linear.initialize_(images)
    latents = model.encode(images).latents
    assert latents.shape == (64, 5, 16, 16)
    torch.testing.assert_close(latents[:, :3], linear.eval().encode(images).latents)
    assert latents[:, 3:].std() > 0.01


@torch.no_grad()
def test_tokens_hold_learnt_channels_too(learnt):
    """Split into tokens and joined, latents are what they were: what is painted from them does not change."""
    model, images = learnt
    low = model.from_diffusion_latents(model.to_diffusion_latents(model.encode(images).latents))
    torch.testing.assert_close(model.project_latents(low), low, rtol=1e-3, atol=1e-3)
    found = model(images, force_not_quantize=True).sample
    model.learn_latents_()
    torch.testing.assert_close(model(images, force_not_quantize=True).sample, found, rtol=1e-3, atol=1e-3)
    assert model.tokenize(images).shape == (64, 20)


@pytest.mark.parametrize("frozen", [False, True])
def test_reader_and_painter_learn_and_nothing_else(learnt, frozen):
    model, images = learnt
    if frozen:
        model.freeze_tokens_()
    model.learn_latents_()
    model.train()
    model(images, force_not_quantize=True).sample.square().mean().backward()
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learning == {"encoder", "decoder"}


@torch.no_grad()
def test_a_painter_is_told_nothing_but_the_latents(learnt):
    """Of a larger image the reader sees 16x16 pixels: finer waves change nothing, while learning or afterwards."""
    torch.manual_seed(0)
    model, images = awake(FQModel(**LEARNT | LARGER).eval()), smooth_images(8, 3, 32, 32)
    coarse = spectral_resize(spectral_resize(images, (16, 16)), (32, 32))
    assert (coarse - images).abs().max() > 0.05
    model.learn_latents_()
    painted = [model(x, force_not_quantize=True).sample for x in (images, coarse)]
    torch.testing.assert_close(*painted, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_noise_on_learnt_channels_is_of_their_deviation(learnt):
    model, images = learnt
    model.learn_latents_()
    low = model.from_diffusion_latents(model.to_diffusion_latents(model.encode(images).latents))
    wanted = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.5]).expand(64, -1)
    noise = model._latent_noise(wanted, torch.Generator().manual_seed(0), model.diffusion_view.deviation(low))
    assert not noise[:, :3].abs().max() > 1e-5
    share = noise.std((0, 2, 3)) / (low - low.mean((0, 2, 3), keepdim=True)).std((0, 2, 3))
    torch.testing.assert_close(share[3:], torch.full((2,), 0.5), rtol=0.1, atol=0)
    model.encoder.conv_out.weight.mul_(10)  # does not outgrow the noise
    model.encoder.conv_out.bias.mul_(10)
    low = model.from_diffusion_latents(model.to_diffusion_latents(model.encode(images).latents))
    again = model._latent_noise(wanted, torch.Generator().manual_seed(0), model.diffusion_view.deviation(low))
    torch.testing.assert_close(again[:, 3:], 10 * noise[:, 3:], rtol=1e-3, atol=1e-4)
    factor = torch.ones((), requires_grad=True)  # and learns nothing of that kind
    with torch.enable_grad():
        unit = model.diffusion_view.deviation(factor * low)
        model._latent_noise(wanted, torch.Generator().manual_seed(0), unit).square().sum().backward()
    torch.testing.assert_close(factor.grad, 2 * again.square().sum(), rtol=1e-3, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("layout, patch_size", [("spatial", 1), ("spatial", 2), ("spectral", 1)])
def test_learnt_channels_come_out_of_the_noise_later(learnt, layout, patch_size):
    """They are weaker for a UNet, and nothing else changes: latents, and noise in units of their deviation."""
    plain, images = learnt
    model = FQModel(**LEARNT, learnt_scale=0.3)
    model.load_state_dict(plain.state_dict())
    for each in (plain, model.eval()):
        each.set_diffusion_view_(layout, patch_size)
        each.measure_diffusion_latents_(each.encode(images).latents, quantized=False)
    latents = plain.project_latents(plain.encode(images).latents)
    linear, scale = 3 * patch_size**2, torch.tensor(0.3)
    view, plain_view = model.to_diffusion_latents(latents), plain.to_diffusion_latents(latents)
    torch.testing.assert_close(view[:, :linear], plain_view[:, :linear])
    torch.testing.assert_close(view[:, linear:], scale * plain_view[:, linear:])
    torch.testing.assert_close(model.from_diffusion_latents(view), plain.from_diffusion_latents(plain_view))
    wanted = torch.full((64, 5), 0.5)
    noise, plain_noise = (each._latent_noise(wanted, torch.Generator().manual_seed(0)) for each in (model, plain))
    torch.testing.assert_close(noise, plain_noise)
    assert model.diffusion_view.resembles(plain.diffusion_view, linear)
    assert not model.diffusion_view.resembles(plain.diffusion_view)


@torch.no_grad()
def test_an_error_of_learnt_channels_costs_what_one_of_linear_channels_does(learnt):
    """However large the encoder made them; and neither images nor diffusion latents change."""
    model, images = learnt
    model.learn_latents_()
    model.measure_diffusion_latents_(model.encode(images).latents, quantized=False)

    def seen():
        latents = model.encode(images).latents
        return model(images, force_not_quantize=True).sample, model.to_diffusion_latents(latents)

    before, sizes = seen(), []
    for factor in (0.03, 30):
        model.scale_learnt_channels_(torch.tensor(factor))
        torch.testing.assert_close(seen(), before, rtol=1e-3, atol=1e-3)
        model.weigh_learnt_channels_(images)
        torch.testing.assert_close(seen(), before, rtol=1e-3, atol=1e-3)
        sizes.append(model.encode(images).latents[:, 3:].std((0, 2, 3)))
    torch.testing.assert_close(*sizes, rtol=1e-2, atol=0)
    torch.testing.assert_close(model.diffusion_view.learnt_deviation, sizes[1], rtol=1e-2, atol=0)

    latents, costs = model.encode(images).latents, []
    for part in (slice(3), slice(3, None)):
        error = torch.zeros_like(latents)
        error[:, part] = 0.01 * torch.randn(latents[:, part].shape, generator=torch.Generator().manual_seed(1))
        error = spectral_resize(spectral_resize(error, (4, 4)), (16, 16))  # what latents hold
        change = model._decode_latents(latents + error) - model._decode_latents(latents)
        costs.append(change.square().sum() / error.square().sum())
    torch.testing.assert_close(*costs, rtol=0.2, atol=0)


@torch.no_grad()
def test_learnt_channels_that_do_nothing_stay_numbers(learnt):
    model, images = learnt
    model.decoder.conv_in.weight[:, 3:] = 0
    model.weigh_learnt_channels_(images)
    deviations = model.encode(images).latents.std((0, 2, 3))
    assert deviations[3:].mean() > 0.005 * deviations[:3].mean()
    with pytest.raises(ValueError, match="this model has no learnt channels to weigh"):
        FQModel(**PAINTING).weigh_learnt_channels_(images)


@torch.no_grad()
def test_learnt_channels_learn_on_with_a_deviation_of_1(learnt):
    source, images = learnt
    source.measure_diffusion_latents_(source.encode(images).latents, quantized=False)
    source.scale_learnt_channels_(torch.tensor([0.02, 0.05]))
    model = FQModel(**LEARNT, learnt_scale=0.3).eval()
    take_tokens_(model, source, learning=True)
    deviations = model.encode(images).latents.std((0, 2, 3))
    torch.testing.assert_close(deviations[3:], torch.ones(2), rtol=0.05, atol=0)
    painted = []
    for each in (model, source):
        each.learn_latents_()
        painted.append(each(images, force_not_quantize=True).sample)
    torch.testing.assert_close(*painted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_it_starts_as_the_linear_coder_that_it_is_given(learnt):
    """Without learnt channels, which the decoder does not read yet, images are painted as before."""
    images = learnt[1]
    torch.manual_seed(0)
    linear = FQModel(**PAINTING)
    linear.initialize_(images)
    awake(linear.eval())
    model = FQModel(**LEARNT).eval()
    names = take_tokens_(model, linear)
    assert len(names) == len(linear.decoder.state_dict())
    model.learn_latents_()
    painted = [m(images, force_not_quantize=True, generator=torch.Generator().manual_seed(0)).sample
               for m in (model, linear)]  # fmt: skip
    torch.testing.assert_close(*painted, rtol=1e-3, atol=1e-3)
    model.find_tokens_(images.split(16))
    model.measure_diffusion_latents_(model.encode(images).latents, quantized=False)
    linear.measure_diffusion_latents_(linear.encode(images).latents, quantized=False)
    torch.testing.assert_close(model.diffusion_view.std[:3], linear.diffusion_view.std, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_larger_images_have_the_same_learnt_latents(learnt):
    small, images = learnt
    larger = FQModel(**LEARNT | LARGER).eval()
    taken = take_tokens_(larger, small)
    assert "decoder.conv_in.weight" in taken
    resampled = 2 * spectral_resize(images, (32, 32))
    latents = [m.to_diffusion_latents(m.encode(x).latents) for m, x in ((small, images), (larger, resampled))]
    torch.testing.assert_close(*latents, rtol=1e-3, atol=1e-3)
    assert (larger.tokenize(resampled) == small.tokenize(images)).float().mean() > 0.99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_tokens=12), "num_tokens 12: with learnt_channels tokens must hold all 80 numbers"),
        (dict(learnt_channels=5), "learnt_channels 5: are for a painter, and fewer than the latent_channels 5"),
        (dict(learnt_channels=0), "reader_width and reader_layers are for learnt_channels"),
        (dict(learnt_channels=0, learnt_scale=0.3, reader_width=96, reader_layers=6), "learnt_scale, reader_width and"),
        (dict(learnt_scale=0), "learnt_scale 0: is a deviation, and must be above 0"),
        (dict(diffusion_layout="spectral"), "diffusion_layout spectral: learnt_channels are learnt in the spatial one"),
        (dict(painter_block_out_channels=None), "learnt_channels 2: are for a painter"),
    ],
)
def test_learnt_channels_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        FQModel(**LEARNT | changes)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            dict(spectral_crop=8, painter_block_out_channels=(4, 8)),
            r"has spectral_crop \(8, 8\), not \(4, 4\): give what it was made with",
        ),
        (dict(norm_num_groups=2), "has norm_num_groups 2, not 4"),
        (dict(diffusion_patch_size=2), "has diffusion_patch_size 1, not 2|has diffusion_patch_size 2, not 1"),
        (dict(painter_block_out_channels=(8, 8, 12)), "has another decoder: give the painter_ options"),
    ],
)
def test_linear_coders_that_cannot_be_taken(source, message):
    with pytest.raises(ValueError, match=message):
        take_tokens_(FQModel(**LEARNT), FQModel(**PAINTING | source))


def test_only_what_has_learnt_channels_learns_them():
    with pytest.raises(ValueError, match="this model has no learnt channels"):
        FQModel(**PAINTING).learn_latents_()


@torch.no_grad()
def test_larger_images_whose_learnt_channels_are_others(learnt):
    small = learnt[0]
    with pytest.raises(ValueError, match="has learnt channels: give learnt_channels"):
        take_tokens_(FQModel(**PAINTING | LARGER), small)
    common = LEARNT | dict(spectral_crop=6, num_tokens=45)
    source = FQModel(**common | dict(sample_size=16, painter_block_out_channels=(4, 8)))
    larger = FQModel(**common | dict(sample_size=24, painter_block_out_channels=(4, 4, 8)))
    with pytest.raises(ValueError, match="its learnt channels are read at another size"):
        take_tokens_(larger, source)


@torch.no_grad()
def test_half_a_reader_reads_the_same(learnt, tmp_path):
    model, images = learnt
    model.save_pretrained(tmp_path)
    half = FQModel.from_pretrained(tmp_path, torch_dtype=torch.float16).eval()
    assert half.encoder.conv_in.weight.dtype == torch.float16 and half.color_transform.dtype == torch.float32
    assert (half.tokenize(images[:16]) == model.tokenize(images[:16])).float().mean() > 0.8


def test_an_encoder_that_has_learnt_is_no_linear_coder():
    source = FQModel(**PAINTING)
    torch.nn.init.constant_(source.encoder.conv_out.bias, 1)
    with pytest.raises(ValueError, match="has an encoder that has learnt"):
        take_tokens_(FQModel(**LEARNT), source)
