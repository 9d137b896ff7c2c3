import pytest
import torch
from conftest import smooth_images
from test_painter import PAINTING, awake

from fq_ldm import FQModel
from fq_ldm.metrics.samples import PowerSpectrum, spectral_gain
from fq_ldm.models import equalize_, equalize_samples_, take_tokens_
from fq_ldm.models.equalizer import LARGEST_GAIN, Equalizer

EQUALIZED = PAINTING | dict(painter_equalizer=True)


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (9, 14)])
def test_gains_of_one_change_nothing(size):
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(Equalizer(3, size)(images), images, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_it_finds_the_gains_that_are_missing(size):
    """Images whose frequencies were made weaker by known factors come back as they were."""
    torch.manual_seed(0)
    factors = torch.rand(size) / 2 + 0.5
    factors = (factors + factors.flip(0, 1).roll((1, 1), (0, 1))) / 2  # alike at k and -k, as those of real images are
    factors[0, 0] = 1
    images = torch.randn(64, 3, *size) / 5
    images -= images.mean(0)
    weaker = torch.fft.ifft2(torch.fft.fft2(images) * factors).real
    equalizer = Equalizer(3, size)
    equalizer.measure_([(images[:40], weaker[:40]), (images[40:], weaker[40:])])
    torch.testing.assert_close(equalizer.gain, 1 / factors[:, : size[1] // 2 + 1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(equalizer(weaker), images, rtol=1e-3, atol=1e-3)
    # Of images around a mean it is what sets them apart that was made weaker.
    mean = torch.randn(3, *size)
    equalizer.measure_([(images + mean, weaker + mean)])
    torch.testing.assert_close(equalizer(weaker + mean), images + mean, rtol=1e-3, atol=1e-3)


def test_the_mean_stays_and_nothing_moves():
    equalizer = Equalizer(3, (16, 16))
    equalizer.measure_([(torch.randn(8, 3, 16, 16), torch.randn(8, 3, 16, 16) / 3 + 0.1)])
    impulse = torch.zeros(1, 3, 16, 16)
    impulse[..., 8, 8] = 1
    assert equalizer(impulse * 0).mean().abs() < 1e-5
    answer = (equalizer(impulse) - equalizer(impulse * 0))[0, 0]
    torch.testing.assert_close(answer.sum(), torch.ones(()), rtol=1e-4, atol=1e-4)
    around = answer[1:, 1:]
    torch.testing.assert_close(around, around.flip(0, 1), rtol=1e-4, atol=1e-5)


def test_what_was_not_painted_is_not_made_of_noise():
    equalizer = Equalizer(3, (16, 16))
    equalizer.measure_([(torch.randn(8, 3, 16, 16).clamp(-1, 1), torch.zeros(8, 3, 16, 16))])
    gain = equalizer.gain.flatten()
    assert gain[0] == 1 and (gain[1:] == LARGEST_GAIN).all()


@torch.no_grad()
def test_a_painter_with_the_spectrum_of_its_images(tmp_path):
    torch.manual_seed(0)
    images = smooth_images(256, 3, 16, 16) + 0.1 * torch.randn(256, 3, 16, 16)
    model = FQModel(**EQUALIZED)
    model.initialize_(images)
    awake(model)
    before = largest_deviation(model.eval(), images)
    equalize_(model, images.split(100))
    assert largest_deviation(model, images) < 0.3 < 2 < before
    # What is trained, and its gradient, is the painter itself.
    assert torch.equal(model.train()(images, force_not_quantize=True).sample, _plain(model, images))
    model.eval().save_pretrained(tmp_path)
    assert torch.equal(FQModel.from_pretrained(tmp_path).eval()(images[:3]).sample, model(images[:3]).sample)
    half = FQModel.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert half.equalizer.gain.dtype == torch.float32 and torch.equal(half.equalizer.gain, model.equalizer.gain)


@torch.no_grad()
def test_samples_with_the_spectrum_of_images():
    """Latents that are weaker than those of images are painted as strong as these are."""
    torch.manual_seed(0)
    images = smooth_images(256, 3, 16, 16) + 0.1 * torch.randn(256, 3, 16, 16)
    model = FQModel(**EQUALIZED)
    model.initialize_(images)
    awake(model)
    model.eval()
    latents = 0.7 * model.to_diffusion_latents(model.encode(images.flip(0)).latents)

    def deviation():
        sampled, noise = model.from_diffusion_latents(latents), torch.Generator().manual_seed(1)
        painted = model.decode(sampled, force_not_quantize=True, generator=noise).sample
        return largest_deviation(model, images, painted)

    equalize_(model, images.split(100), quantize=False)
    before = deviation()
    equalize_samples_(model, images.split(64), latents.split(64), quantize=False)
    assert deviation() < 0.3 < 1.5 < before
    gain, offset = model.equalizer.gain.clone(), model.equalizer.offset.clone()
    assert offset.abs().max() > 1e-3
    equalize_samples_(model, images.split(64), latents.split(64), quantize=False)  # what was before is forgotten
    assert torch.equal(model.equalizer.gain, gain) and torch.equal(model.equalizer.offset, offset)
    with pytest.raises(ValueError, match="32 painted images beside 64 others: give as many of both"):
        equalize_samples_(model, images.split(64), latents.split(32), quantize=False)


def test_a_model_without_an_equalizer_is_refused():
    model = FQModel(**PAINTING)
    with pytest.raises(ValueError, match="this model has no equalizer: make it with painter_equalizer=True"):
        equalize_samples_(model, [], [])


def largest_deviation(model, images, painted=None):
    """Of the spectrum of reconstructions, or others, from that of the images, both around their means, in dB."""
    spectra = PowerSpectrum(), PowerSpectrum()
    if painted is None:
        painted = model(images, generator=torch.Generator().manual_seed(1)).sample
    for spectrum, batch in zip(spectra, (painted, images), strict=True):
        spectrum(batch - batch.mean(0))
    return spectral_gain(*(spectrum.radial() for spectrum in spectra)).abs().max()


def _plain(model, images):
    model.equalizer, kept = None, model.equalizer
    sample = model(images, force_not_quantize=True).sample
    model.equalizer = kept
    return sample


def test_gains_are_not_tokens():
    """A decoder that goes on from one with an equalizer, or without, is measured anew."""
    torch.manual_seed(0)
    sources = [FQModel(**PAINTING), FQModel(**EQUALIZED)]
    for source in sources:
        source.initialize_(smooth_images(64, 3, 16, 16))
    sources[1].equalizer.gain.fill_(2)
    for source, options in zip(sources, (EQUALIZED, PAINTING), strict=True):
        model = FQModel(**options)
        assert len(take_tokens_(model, source)) == len(model.decoder.state_dict())
    twin = FQModel(**EQUALIZED)
    take_tokens_(twin, sources[1])
    assert (twin.equalizer.gain == 1).all()


def test_nothing_to_measure():
    with pytest.raises(ValueError, match="this model has no equalizer: make it with painter_equalizer=True"):
        equalize_(FQModel(**PAINTING), [])
    with pytest.raises(ValueError, match="are measured by images: there are none"):
        equalize_(FQModel(**EQUALIZED), [])


def test_an_equalizer_without_a_painter():
    with pytest.raises(ValueError, match="painter_equalizer are for a painter: give painter_block_out_channels"):
        FQModel(**{**EQUALIZED, "painter_block_out_channels": None})
