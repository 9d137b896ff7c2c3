"""Half precision and offloading: what is cast, what is not, and where modules are when they are needed."""

import copy

import accelerate
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from test_pipeline import seeds

from fq_ldm import FQLDMPipeline
from fq_ldm.training.scaler import ScalerWatch


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.to(torch.float16), lambda m: m.to(torch.bfloat16)])
def test_a_cast_model_keeps_codes_statistics_and_colours(model, images, cast):
    before = copy.deepcopy(model)
    model = cast(model)
    kept = ("quantize.", "diffusion_view.", "color_transform")
    for name, value in model.state_dict().items():
        expected = before.state_dict()[name]
        if name.startswith(kept):
            assert value.dtype == expected.dtype and torch.equal(value, expected), name
        else:
            assert value.dtype == model.dtype != torch.float32, name
    same = model.tokenize(images.to(model.dtype)) == before.tokenize(images)
    assert same.float().mean() > 0.9
    model.float()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_model_follows_to_another_device(model):
    model.to("meta")
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}


def test_a_cast_pipeline_samples(pipeline):
    expected = pipeline(4, 4, seeds(*range(4)), output_type="pt").images
    pipeline.to(torch.float16)
    assert pipeline.unet.dtype == torch.float16
    images = pipeline(4, 4, seeds(*range(4)), output_type="pt").images
    assert (images - expected).abs().median() < 0.02


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_noise_that_float16_cannot_hold(pipeline, scheduler):
    """In sigmas the squared-cosine schedule starts at 20,000 times a noise that reaches 4: float16 ends at 65,504."""
    cosine = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False)
    pipeline = FQLDMPipeline(pipeline.vqvae, pipeline.unet, scheduler.from_config(cosine.config))
    expected = pipeline(4, 4, seeds(*range(4)), output_type="latent").images
    pipeline.to(torch.float16)
    latents = pipeline(4, 4, seeds(*range(4)), output_type="latent").images
    assert latents.dtype == torch.float32 and latents.isfinite().all()
    assert (latents - expected).abs().median() < 0.02 * expected.abs().median()
    image = torch.rand(1, 3, 8, 12)
    assert pipeline(2, 4, seeds(0, 1), image=image, strength=0.9, output_type="latent").images.isfinite().all()


@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_an_offloaded_pipeline_gives_the_same_images(pipeline, offload, monkeypatch):
    """With the hooks of a GPU, on the CPU: while they are away, weights lie on the meta device."""
    cpu_offload = accelerate.cpu_offload
    # diffusers says cpu:0, which accelerate takes for another device than cpu.
    monkeypatch.setattr(accelerate, "cpu_offload", lambda module, device, **o: cpu_offload(module, "cpu", **o))
    expected = pipeline(2, 2, seeds(0, 1), output_type="pt").images
    getattr(pipeline, offload)(device="cpu")
    assert hasattr(pipeline.unet.conv_in if "sequential" in offload else pipeline.unet, "_hf_hook")
    for _ in range(2):
        assert torch.equal(pipeline(2, 2, seeds(0, 1), output_type="pt").images, expected)
    # The FQ-VAE is used through its parts' methods, which hooks of `forward` would not notice.
    assert not any(hasattr(module, "_hf_hook") for module in pipeline.vqvae.modules())


def test_steps_of_a_discriminator_are_not_counted_as_skipped():
    """One scaler for two optimizers: of its falls, those at the model's own steps are counted."""
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    model, discriminator = (torch.optim.SGD([parameter], lr=0.1) for parameter in parameters)
    scaler = torch.amp.GradScaler("cpu")
    watch = ScalerWatch(scaler)

    def step(optimizer, gradient):
        scaler.scale((optimizer.param_groups[0]["params"][0] * gradient).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    for of_discriminator, of_model in ((1, 1), (torch.inf, 1), (1, torch.inf), (1, 1), (torch.inf, torch.inf)):
        step(discriminator, of_discriminator)
        watch.before_step()
        step(model, of_model)
        watch.after_step()
    assert watch.collect() == 2
