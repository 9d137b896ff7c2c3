import copy
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DModel,
)

from fq_ldm import FQLDMPipeline
from fq_ldm.diffusion import fast_scheduler, sampling_scheduler
from fq_ldm.pipelines.schedules import TRIED


def seeds(*values):
    return [torch.Generator().manual_seed(value) for value in values]


def test_output_types(pipeline):
    pil = pipeline(2, 2, seeds(0, 1)).images
    assert len(pil) == 2 and pil[0].size == (12, 8) and pil[0].mode == "RGB"
    array = pipeline(2, 2, seeds(0, 1), output_type="np").images
    assert array.shape == (2, 8, 12, 3) and 0 <= array.min() and array.max() <= 1
    tensor = pipeline(2, 2, seeds(0, 1), output_type="pt", return_dict=False)[0]
    np.testing.assert_array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
    np.testing.assert_array_equal(np.asarray(pil[1]), (array[1] * 255).round().astype("uint8"))


SCHEDULERS = {
    "ddpm": lambda config: DDPMScheduler.from_config(config),
    "ddim": lambda config: DDIMScheduler.from_config(config),
    "dpm-solver++": lambda config: DPMSolverMultistepScheduler.from_config(config),
    "sde-dpm-solver++": lambda config: DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="sde-dpmsolver++"
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_an_image_depends_on_its_seed_alone(pipeline, name):
    """The same seed gives the same image at every call and, to rounding, in a batch of 1 and of 16."""
    pipeline.scheduler = SCHEDULERS[name](pipeline.scheduler.config)
    batch = pipeline(16, 4, seeds(*range(16)), output_type="pt").images
    assert torch.equal(pipeline(16, 4, seeds(*range(16)), output_type="pt").images, batch)
    alone = pipeline(1, 4, seeds(5), output_type="pt").images
    # Rounding can tip a token to its neighbour in the codebook, so a few pixels may differ by more.
    assert (alone[0] - batch[5]).abs().median() < 1e-4
    assert (batch[5] - batch[6]).abs().max() > 1e-2


def test_the_scheduler_decides_how_many_steps_by_default(pipeline):
    steps = []

    def count(pipeline, step, timestep, tensors):
        steps.append(step)
        return {}

    ddpm = DDPMScheduler(num_train_timesteps=60, clip_sample=False)
    for scheduler, expected in (
        (ddpm, 60),
        (DPMSolverMultistepScheduler.from_config(ddpm.config), 20),
        (DDIMScheduler.from_config(ddpm.config), 50),
        (DDIMScheduler(num_train_timesteps=20, clip_sample=False), 20),
    ):
        steps.clear()
        FQLDMPipeline(pipeline.vqvae, pipeline.unet, scheduler)(1, callback_on_step_end=count)
        assert len(steps) == expected


def test_schedulers_are_made_of_one_another(pipeline):
    """There and back: what the pipeline needs of a configuration is not lost on the way."""
    ddpm = DDPMScheduler(num_train_timesteps=60, clip_sample=False, prediction_type="v_prediction")
    few = sampling_scheduler(ddpm, 20)
    assert isinstance(few, DPMSolverMultistepScheduler) and few.config.prediction_type == "v_prediction"
    assert few.config.algorithm_type == "sde-dpmsolver++"
    own = sampling_scheduler(DPMSolverMultistepScheduler.from_config(ddpm.config, solver_order=3), 20)
    assert own.config.solver_order == 3 and own.config.algorithm_type == "dpmsolver++"
    back = sampling_scheduler(few, 60)
    assert isinstance(back, DDPMScheduler) and back.config.clip_sample is False
    assert torch.equal(back.alphas_cumprod, ddpm.alphas_cumprod)


def test_eta_adds_noise_to_ddim_only(pipeline):
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    quiet, noisy = (pipeline(1, 4, seeds(0), eta=eta, output_type="pt").images for eta in (0.0, 1.0))
    assert not torch.equal(quiet, noisy)
    with pytest.raises(ValueError, match="eta must lie in 0 .. 1, not 1.5"):
        pipeline(1, 4, eta=1.5)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match="DPMSolverMultistepScheduler has no eta"):
        pipeline(1, 4, eta=1.0)


def test_given_latents_replace_the_noise(pipeline):
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    latents = torch.randn(2, 3, 8, 12, generator=seeds(3)[0])
    drawn = pipeline(2, 2, seeds(3)[0], output_type="pt").images
    assert torch.equal(pipeline(2, 2, latents=latents, output_type="pt").images, drawn)


def test_callback_sees_and_replaces_latents(pipeline):
    steps = []

    def callback(pipe, step, timestep, tensors):
        steps.append((step, int(timestep), tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])}

    images = pipeline(2, 3, callback_on_step_end=callback, output_type="pt").images
    assert [s[0] for s in steps] == [0, 1, 2] and steps[0][1] > steps[2][1] and steps[0][2] == (2, 3, 8, 12)
    assert torch.equal(images[0], images[1])  # both were zeroed in the last step
    seen = []
    pipeline(1, 2, callback_on_step_end=lambda *given: seen.append(given[3]), callback_on_step_end_tensor_inputs=())
    assert seen == [{}, {}]


def test_saved_pipeline_loads_in_a_new_process_elsewhere(pipeline, tmp_path):
    folder = tmp_path / "pipeline"
    pipeline.save_pretrained(folder)
    expected = pipeline(2, 3, seeds(0, 1), output_type="np").images
    code = (
        "import sys, numpy, torch; from fq_ldm import FQLDMPipeline\n"
        "pipeline = FQLDMPipeline.from_pretrained(sys.argv[1])\n"
        "assert pipeline.scheduler.config.clip_sample is False\n"
        "seeds = [torch.Generator().manual_seed(i) for i in (0, 1)]\n"
        "numpy.save('images.npy', pipeline(2, 3, seeds, output_type='np').images)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "ignored" not in result.stderr and "Warning" not in result.stderr
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), expected, atol=1e-5)
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pt"))


def test_half_precision(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    half = FQLDMPipeline.from_pretrained(tmp_path, torch_dtype=torch.float16)
    half.set_progress_bar_config(disable=True)
    assert half.unet.dtype == torch.float16
    assert half.vqvae.quantize.codebook.entries.dtype == torch.float32
    assert np.isfinite(half(1, 2, output_type="np").images).all()


def test_wrong_arguments_are_named(pipeline):
    with pytest.raises(ValueError, match="2 generators for 3 images"):
        pipeline(3, 2, seeds(0, 1))
    with pytest.raises(ValueError, match=r"latents must have the shape \(1, 3, 8, 12\), not \(1, 3, 8, 8\)"):
        pipeline(1, 2, latents=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match='output_type must be "pil", "np", "pt" or "latent", not \'jpg\''):
        pipeline(1, 2, output_type="jpg")
    with pytest.raises(ValueError, match="num_images must be at least 1"):
        pipeline(0)
    with pytest.raises(ValueError, match="unknown names"):
        pipeline(1, 2, callback_on_step_end_tensor_inputs=["noise"])
    pipeline.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match=r"clips the predicted latents to \[-1, 1\].*clip_sample=False"):
        pipeline(1, 2)


def test_a_unet_for_other_latents_is_refused(pipeline, model):
    unet = UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), attention_head_dim=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match="maps 4 to 4 channels, but the diffusion latents of this FQ-VAE have 3"):
        FQLDMPipeline(model, unet, pipeline.scheduler)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_that_the_schedule_has_not(pipeline, steps):
    with pytest.raises(ValueError, match=f"num_inference_steps must lie in 1 .. 1000.*, not {steps}"):
        pipeline(1, steps)


def test_a_scheduler_of_another_schedule_is_refused(pipeline):
    """Those that would make mud in silence, each in one line that says what to do."""
    trained = pipeline.scheduler.config
    for scheduler, message in (
        (EulerDiscreteScheduler.from_config(trained, prediction_type="v_prediction"), "prediction_type v_prediction"),
        (
            DPMSolverMultistepScheduler.from_config(trained, beta_schedule="scaled_linear"),
            "beta_schedule scaled_linear",
        ),
        (DDIMScheduler.from_config(trained, num_train_timesteps=500), "num_train_timesteps 500"),
    ):
        pipeline.scheduler = scheduler
        with pytest.raises(ValueError, match=message) as error:
            pipeline(1, 2)
        assert f"{type(scheduler).__name__}.from_config(pipeline.scheduler.config)" in str(error.value)
    pipeline.scheduler = DDIMScheduler.from_config(trained)
    pipeline(1, 2)


def test_a_scheduler_that_is_given_at_loading_is_judged_by_the_saved_one(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    config = pipeline.scheduler.config
    foreign = DDIMScheduler.from_config(config, prediction_type="v_prediction")
    with pytest.raises(ValueError, match="prediction_type v_prediction, but the UNet was trained with epsilon"):
        FQLDMPipeline.from_pretrained(tmp_path, scheduler=foreign)(1, 2)
    own = FQLDMPipeline.from_pretrained(tmp_path, scheduler=DDIMScheduler.from_config(config))
    assert len(own(1, 2).images) == 1


def test_every_scheduler_of_diffusers_works_or_is_refused_by_name(pipeline):
    """By their names and in both ways of making them; docs/measuring.md has what each samples."""
    classes = [getattr(diffusers.schedulers, name) for name in dir(diffusers.schedulers)]
    schedulers = {cls for cls in classes if isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)}
    schedulers.remove(diffusers.SchedulerMixin)
    assert {cls.__name__ for cls in schedulers} > set(TRIED) and len(schedulers) > 40
    trained = pipeline.scheduler
    limited = fast_scheduler(DDPMScheduler.from_config(trained.config, timestep_spacing="trailing"), "dpmsolver++")
    assert limited.config.sigma_max == 80
    for cls in schedulers:
        try:
            scheduler = cls.from_config(trained.config)
        except (ImportError, TypeError):  # a package that is not installed, an argument that ours lacks
            assert cls.__name__ not in TRIED
            continue
        pipeline.scheduler = scheduler
        if cls.__name__ in TRIED:
            for options in ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}):
                if set(options) <= set(scheduler.config):
                    for config in (trained.config, limited.config):
                        pipeline.scheduler = cls.from_config(config, **{"use_exponential_sigmas": False, **options})
                        images = pipeline(2, 8, seeds(0, 1), output_type="pt").images
                        assert images.isfinite().all() and images[0].sub(images[1]).abs().mean() > 0.01
        else:
            with pytest.raises(ValueError, match=f"{cls.__name__} does not sample these latents well: take one of"):
                pipeline(2, 3)


def test_the_words_of_diffusers(pipeline):
    images = pipeline(2, 2, seeds(0, 1), output_type="pt").images
    assert torch.equal(
        pipeline(batch_size=2, num_inference_steps=2, generator=seeds(0, 1), output_type="pt").images, images
    )
    with pytest.raises(ValueError, match="batch_size is another word for num_images"):
        pipeline(2, 2, batch_size=2)
    with pytest.raises(ValueError, match="generator must be a torch.Generator"):
        pipeline(1, 2, generator=0)
    latents = pipeline(2, 2, seeds(0, 1), output_type="latent").images
    assert latents.shape == (2, *pipeline.vqvae.diffusion_latent_shape)
    decoded = pipeline.vqvae.decode(pipeline.vqvae.from_diffusion_latents(latents)).sample
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), images)
    steps = []

    def stop(pipeline, step, timestep, tensors):
        steps.append(step)
        pipeline._interrupt = step == 2
        return {}

    for _ in range(2):  # the next call starts anew
        pipeline(1, 10, callback_on_step_end=stop)
    assert steps == [0, 1, 2, 0, 1, 2]


def test_temperature_weakens_the_coarsest_waves_of_the_starting_noise(pipeline):
    pipeline.scheduler = sampling_scheduler(DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config), 3)
    noise = torch.randn(2, *pipeline.vqvae.diffusion_latent_shape, generator=seeds(0)[0])
    seen = []
    pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    plain = pipeline(2, 3, latents=noise, output_type="pt").images
    cold = pipeline(2, 3, latents=noise, output_type="pt", temperature=0.5).images
    assert not torch.equal(cold, plain) and torch.equal(seen[0], noise)
    before, after = (torch.fft.fft2(each) for each in (noise, seen[3]))
    periods = [torch.fft.fftfreq(side).abs() * side for side in noise.shape[-2:]]
    coarse = (periods[0][:, None] <= 3) & (periods[1] <= 3)
    torch.testing.assert_close(after[..., coarse], 0.5 * before[..., coarse])
    torch.testing.assert_close(after[..., ~coarse], before[..., ~coarse])
    with pytest.raises(ValueError, match="temperature must be above 0, and 1 for noise as it was in training, not 0"):
        pipeline(2, 3, temperature=0)
    with pytest.raises(ValueError, match="temperature is of noise to start from: leave it at 1"):
        pipeline(2, 3, temperature=0.9, image=plain)
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match="without noise in their steps, and DDPMScheduler adds some"):
        pipeline(2, 3, temperature=0.9)


def test_latents_are_decoded_as_samples_are(pipeline):
    latents = pipeline(3, 2, seeds(0, 1, 2), output_type="latent").images
    images = pipeline(3, 2, seeds(0, 1, 2), output_type="pt").images
    torch.testing.assert_close(pipeline.decode(latents), images)
    with pytest.raises(ValueError, match="2 generators for 3 images"):
        pipeline.decode(latents, seeds(0, 1))
    with pytest.raises(ValueError, match="latents must have the shape"):
        pipeline.decode(latents[:, :1])


def test_a_pipe_of_a_pipe(pipeline):
    other = FQLDMPipeline.from_pipe(pipeline, quantize_samples=False)
    assert other.vqvae is pipeline.vqvae and other.unet is pipeline.unet and not other.config.quantize_samples
    foreign = DDIMScheduler.from_config(pipeline.scheduler.config, num_train_timesteps=20)
    with pytest.raises(ValueError, match="num_train_timesteps 20, but the UNet was trained with 1000"):
        FQLDMPipeline.from_pipe(pipeline, scheduler=foreign)(1, 2)
    other = copy.deepcopy(pipeline.vqvae)
    assert FQLDMPipeline.from_pipe(pipeline, vqvae=other).vqvae is other
    other.diffusion_view.mean += 1
    with pytest.raises(ValueError, match="vqvae: has other diffusion latents than those that the UNet was trained on"):
        FQLDMPipeline.from_pipe(pipeline, vqvae=other)
