"""Images to start from, and parts of images that are kept."""

from functools import partial

import diffusers
import pytest
import torch
from conftest import smooth_images
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from test_pipeline import seeds

from fq_ldm.pipelines.known_images import KnownImages
from fq_ldm.pipelines.schedules import TRIED

SCHEDULERS = [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler]
EVEN_IN_NOISE = partial(DPMSolverMultistepScheduler.from_config, use_exponential_sigmas=True)  # not in timesteps


@pytest.fixture
def given():
    """Four images (4, 3, 8, 12) in [0, 1]."""
    return (smooth_images(4, 3, 8, 12, seed=5) + 1) / 2


def run(pipeline, image, count=4, **options):
    return pipeline(count, 10, seeds(*range(count)), output_type="pt", image=image, **options).images


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_first_latents_are_the_images_with_the_noise_of_their_timestep(pipeline, given, scheduler):
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    seen = []
    pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(args))
    noise = torch.randn(4, 3, 8, 12)
    pipeline(4, 10, seeds(*range(4)), image=given, strength=0.3, latents=noise, output_type="pt")
    model_input, t = seen[0]
    total = pipeline.scheduler.config.num_train_timesteps
    assert len(seen) in (3, 4) and abs(t - 0.3 * total) <= total / 20  # half of a step
    latents = pipeline.vqvae.quantize_latents(pipeline.vqvae.encode(given * 2 - 1).latents).latents
    kept = pipeline.scheduler.alphas_cumprod[int(t)]
    expected = kept.sqrt() * pipeline.vqvae.to_diffusion_latents(latents) + (1 - kept).sqrt() * noise
    torch.testing.assert_close(model_input, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.8])
def test_strength_is_a_share_of_the_noise_however_steps_are_spaced(pipeline, given, strength):
    pipeline.scheduler = EVEN_IN_NOISE(pipeline.scheduler.config)
    seen = []
    pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(float(args[1])))
    pipeline(4, 1000, seeds(*range(4)), image=given, strength=strength, output_type="pt")
    assert abs(seen[0] - strength * 1000) < 5


@pytest.mark.parametrize("name", TRIED)
def test_every_scheduler_starts_from_images_or_says_that_it_cannot(pipeline, given, name):
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    if name in ("LMSDiscreteScheduler", "PNDMScheduler"):
        with pytest.raises(ValueError, match=f"strength: {name} goes on from what it has predicted before"):
            run(pipeline, given, strength=0.3)
        return
    expected = (pipeline.vqvae(given * 2 - 1).sample / 2 + 0.5).clamp(0, 1)
    near = (run(pipeline, given, strength=0.1) - expected).abs().mean()
    assert near < (run(pipeline, given, strength=1.0) - expected).abs().mean()


def test_little_noise_leaves_the_images_nearly_as_they_were(pipeline, given):
    reconstructions = (pipeline.vqvae(given * 2 - 1).sample / 2 + 0.5).clamp(0, 1)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    near = (run(pipeline, given, strength=0.1) - reconstructions).square().mean()
    far = (run(pipeline, given, strength=1.0) - reconstructions).square().mean()
    assert near < far


@pytest.mark.parametrize("make", [*(scheduler.from_config for scheduler in SCHEDULERS), EVEN_IN_NOISE])
def test_known_pixels_are_kept_and_the_others_made(pipeline, given, make):
    pipeline.scheduler = make(pipeline.scheduler.config)
    mask = torch.zeros(1, 1, 8, 12)
    mask[..., 6:] = 1
    images = run(pipeline, given, mask_image=mask)
    torch.testing.assert_close(images[..., :6], given[..., :6])
    assert (images - given)[..., 6:].abs().mean() > 0.01
    other = pipeline(4, 10, seeds(4, 5, 6, 7), output_type="pt", image=given, mask_image=mask).images
    assert not torch.equal(other[..., 6:], images[..., 6:])


def test_known_pixels_leave_no_seam(pipeline, given):
    """What decoded latents miss by the same everywhere is made up for at the seam, and far from it is left alone."""
    mask = torch.zeros(1, 1, 8, 12)
    mask[..., 6:] = 1
    known = KnownImages(pipeline.vqvae, given, mask, 4, True, torch.device("cpu"))
    darker = given.clamp(0.2, 0.8) - 0.1
    known.pixels = given.clamp(0.2, 0.8)
    kept = known.keep_pixels(darker)
    assert torch.equal(kept[..., :6], known.pixels[..., :6])
    torch.testing.assert_close(kept[..., 6] - darker[..., 6], torch.full_like(kept[..., 6], 0.1), rtol=0, atol=0.04)
    torch.testing.assert_close(kept[..., 8:], darker[..., 8:])
    assert torch.equal(known.keep_pixels(known.pixels), known.pixels)


def test_nothing_to_make_gives_the_images_back(pipeline, given):
    images = run(pipeline, given, mask_image=torch.zeros(4, 1, 8, 12))
    torch.testing.assert_close(images, given)


def test_one_image_for_many_and_as_many_as_are_given(pipeline, given):
    assert run(pipeline, given[:1], count=3).shape == (3, 3, 8, 12)
    pil = pipeline.numpy_to_pil(given.permute(0, 2, 3, 1).numpy())
    assert len(pipeline(num_inference_steps=2, image=pil).images) == 4
    assert len(pipeline(num_inference_steps=2, image=pil[0]).images) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(image=torch.rand(1, 3, 8, 8)), "image must be of 8x12 pixels and 3 channels, not of 8x8 and 3"),
        (dict(image=torch.rand(1, 1, 8, 12)), "image must be of 8x12 pixels and 3 channels, not of 8x12 and 1"),
        (dict(image=torch.rand(3, 3, 8, 12)), "image: 3 of them for 4 images"),
        (dict(image=torch.rand(4, 3, 8, 12) * 2), r"image must lie in \[0, 1\]"),
        (dict(image=torch.rand(4, 3, 8, 12), strength=0.0), "strength must lie in 0 .. 1, above 0, not 0.0"),
        (dict(image=None, mask_image=torch.ones(1, 1, 8, 12)), "mask_image says .* give image too"),
        (dict(image=None, strength=0.5), "strength says .* give image too"),
    ],
)
def test_wrong_images(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        run(pipeline, **options)


def test_spectral_latents_have_no_places(pipeline, given):
    pipeline.vqvae.set_diffusion_view_("spectral", 1)
    with pytest.raises(ValueError, match="mask_image: diffusion latents that are Fourier coefficients"):
        run(pipeline, given, mask_image=torch.ones(1, 1, 8, 12))


def test_the_least_strength_is_one_step(pipeline, given):
    near = run(pipeline, given, strength=1e-3)
    assert torch.equal(near, run(pipeline, given, strength=0.1)) and near.isfinite().all()  # of ten steps
