"""Training against own samples: the loss in closed form, and the script by the files it leaves."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file
from test_scripts import LDM_OPTIONS, call, run, vae  # noqa: F401 - fixtures

import train_ldm
from fq_ldm import FQLDMPipeline
from fq_ldm.diffusion import build_scheduler, discriminative_loss, distilled_scheduler, fast_scheduler
from fq_ldm.options import LDMConfig
from fq_ldm.training.own_samples import OwnWays

SCHEDULER = build_scheduler(LDMConfig(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2"))
OPTIONS = {
    **LDM_OPTIONS, "report_to": "none", "target": "unquantized", "quantize_samples": False, "own_samples": 12,
    "save_scheduler": "dpm_solver_ode", "prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2",
    "lr_scheduler": "constant_with_warmup",
}  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(image_folder, vae, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("ldm")
    options = {name: value for name, value in OPTIONS.items() if name != "own_samples"}
    options |= dict(dataset=image_folder, output_dir="pipeline", vae=vae[0], max_train_steps=2)
    result = run("train_ldm.py", folder, **options)
    return folder / "pipeline", result


class Constant(torch.nn.Module):
    """Predicts one number everywhere."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))

    def forward(self, noisy, timesteps):
        return type("Output", (), {"sample": self.value.expand(noisy.shape)})


def loss_of(model, latents, samples, beta):
    generator = torch.Generator().manual_seed(0)
    return discriminative_loss(model, Constant(), SCHEDULER, latents, samples, generator, beta)


def errors(value, latents, samples):
    """Of a constant prediction, summed over each of the latents and samples, at the noise that `loss_of` draws."""
    found = []

    def model(noisy, timesteps):
        found.append((noisy, timesteps))
        return Constant(value)(noisy, timesteps)

    loss_of(model, latents, samples, 1.0)
    noisy, timesteps = found[0]
    both = torch.cat([latents, samples])
    kept = SCHEDULER.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noise = (noisy - kept.sqrt() * both) / (1 - kept).sqrt()
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * both
    assert torch.equal(*timesteps.chunk(2))  # a pair is compared at the same noise level
    return ((value - velocity) ** 2).sum((1, 2, 3)).chunk(2)


def test_the_logit_is_how_much_smaller_the_error_has_become():
    latents, samples = torch.randn(2, 8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    samples = samples / 2 + 0.1
    before, now = errors(0.0, latents, samples), errors(0.3, latents, samples)
    real, own = (0.1 * (b - n) for b, n in zip(before, now, strict=True))
    expected = (torch.log1p(torch.exp(-real)) + torch.log1p(torch.exp(own))).mean()
    loss, told_apart = loss_of(Constant(0.3), latents, samples, 0.1)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert told_apart == (real > own).float().mean() and 0 < told_apart < 1


def test_a_model_as_it_was_knows_nothing_and_learns_the_difference():
    """The loss is 2 log 2, and its gradient half of beta times that of the errors: down on images, up on samples."""
    latents, samples = torch.randn(2, 8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    model, value = Constant(), torch.zeros((), requires_grad=True)
    loss, told_apart = loss_of(model, latents, samples, 0.1)
    assert math.isclose(loss.item(), 2 * math.log(2), rel_tol=1e-6) and told_apart == 0.5
    loss.backward()
    real, own = errors(value, latents, samples)
    (expected,) = torch.autograd.grad(0.05 * (real - own).mean(), value)
    torch.testing.assert_close(model.value.grad, expected, rtol=1e-4, atol=1e-5)


def test_samples_are_made_once(image_folder, vae, pipeline, tmp_path):  # noqa: F811
    """A run that goes on in another process finds them, without a cache of images too; more of them are made anew."""
    options = dict(
        dataset=image_folder, vae=vae[0], start_from=pipeline[0], output_dir="out", cache_latents=False, **OPTIONS
    )  # fmt: skip
    shard = tmp_path / "out" / "latents" / "own_00000.safetensors"
    made = []
    for steps, count in ((1, 12), (2, 12), (1, 13)):
        if count == 13:  # as if it had been stopped before its first checkpoint
            shutil.rmtree(tmp_path / "out" / "checkpoints")
            (tmp_path / "out" / "model_index.json").unlink()
        run("train_ldm.py", tmp_path, **{**options, "max_train_steps": steps, "own_samples": count})
        made.append((shard.stat().st_mtime_ns, len(load_file(shard)["items"])))
    assert made[0] == made[1] and made[2][1] == 13 and made[2][0] > made[1][0]


def test_images_of_classes_are_refused(image_folder, vae, pipeline, tmp_path, call):  # noqa: F811
    for number, path in enumerate(sorted(Path(image_folder).rglob("*.png"))):
        folder = tmp_path / "classes" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    options = dict(dataset=tmp_path / "classes", vae=vae[0], start_from=pipeline[0], label_column="label", **OPTIONS)
    status, _, err = call(train_ldm.main, max_train_steps=1, output_dir=tmp_path / "out", **options)
    assert status == 2 and "own_samples: are of no class, and these images have some: put configs/classes/none" in err


def test_what_is_told_apart_are_samples_of_the_pipeline(image_folder, vae, pipeline, tmp_path, call):  # noqa: F811
    """Sampled as the result will sample, but not from the noise of evaluation; resumed, the bits are the same."""
    options = dict(dataset=image_folder, vae=vae[0], start_from=pipeline[0], checkpointing_steps=2, **OPTIONS)
    for folder, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        status, _, err = call(train_ldm.main, output_dir=tmp_path / folder, max_train_steps=steps, **options)
        assert status == 0, err
    for name in ("unet/diffusion_pytorch_model.safetensors", "latents/own_00000.safetensors"):
        whole, parts = (load_file(tmp_path / folder / name) for folder in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)

    trained = FQLDMPipeline.from_pretrained(tmp_path / "whole")
    started = FQLDMPipeline(
        trained.vqvae, UNet2DModel.from_pretrained(pipeline[0], subfolder="unet"), trained.scheduler,
        quantize_samples=False,
    )  # fmt: skip
    seeds = torch.randint(2**62, (12,), generator=torch.Generator().manual_seed(2**31)).tolist()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    samples = load_file(tmp_path / "whole" / "latents" / "own_00000.safetensors")["items"]
    torch.testing.assert_close(samples, started(12, 20, generators, output_type="latent").images, rtol=1e-4, atol=1e-4)
    of_evaluation = torch.randint(2**62, (12,), generator=torch.Generator().manual_seed(0)).tolist()
    noises = [
        torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in each])
        for each in (seeds, of_evaluation)
    ]
    assert not torch.isclose(*noises).any()
    assert "own_samples: 12" in (tmp_path / "whole" / "training_config.yaml").read_text()


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_velocities_lead_where_the_way_went(steps):
    """By the saved scheduler's own step, from the beginning of each of its steps to any other latents."""
    scheduler = distilled_scheduler(SCHEDULER, steps)
    ways = torch.randn(3, steps + 1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    own = OwnWays(ways, scheduler)
    scheduler.set_begin_index(0)
    for step, t in enumerate(scheduler.timesteps):
        here, there = ways[:, step], ways[:, step + 1]
        velocity = own.velocities(here, there, torch.full((3,), step))
        found = scheduler.step(velocity, t, here).prev_sample
        torch.testing.assert_close(found, there, rtol=1e-3, atol=1e-3)
    whole = fast_scheduler(SCHEDULER, "dpmsolver++")
    whole.set_timesteps(20)
    torch.testing.assert_close(
        scheduler.sigmas, torch.cat([whole.sigmas[: 20 : 20 // steps], torch.zeros(1)]), rtol=1e-4, atol=0
    )
    assert scheduler.timesteps.tolist() == whole.timesteps[:: 20 // steps].tolist()


def test_the_loss_is_that_of_the_velocity():
    ways = torch.randn(3, 5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    own, same = OwnWays(ways, distilled_scheduler(SCHEDULER, 4)), torch.Generator().manual_seed(1)
    chosen, first = torch.randint(3, (8,), generator=same), torch.randint(4, (1,), generator=same)
    step = (first + torch.arange(8)) % 4
    expected = (own.velocities(ways[chosen, step], ways[chosen, step + 1], step) - 0.5).square().mean()
    loss, shown = own.loss(Constant(0.5), 8, torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss, expected)
    assert shown == {}


def test_small_batches_come_to_all_steps():
    own, seen = OwnWays(torch.zeros(3, 5, 2, 4, 4), distilled_scheduler(SCHEDULER, 4)), set()

    def model(here, timesteps):
        seen.update(timesteps.tolist())
        return Constant()(here, timesteps)

    for seed in range(40):
        own.loss(model, 1, torch.Generator().manual_seed(seed))
    assert seen == set(own.timesteps.tolist())


def test_a_pipeline_of_few_steps(image_folder, vae, pipeline, tmp_path, call):  # noqa: F811
    options = dict(OPTIONS, dataset=image_folder, vae=vae[0], start_from=pipeline[0], distill_steps=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fq_ldm.training.ldm.encode_images", None)  # no image is needed
        for folder, steps in (("out", 2), ("parts", 1), ("parts", 2)):
            status, _, err = call(train_ldm.main, output_dir=tmp_path / folder, max_train_steps=steps, **options)
            assert status == 0, err
    whole, parts = (
        load_file(tmp_path / folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in ("out", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    ways = load_file(tmp_path / "out" / "latents" / "own_00000.safetensors")["items"]
    assert ways.shape[:2] == (12, 5)
    trained = FQLDMPipeline.from_pretrained(tmp_path / "out")
    seen = []
    trained(2, callback_on_step_end=lambda pipe, i, t, tensors: seen.append(int(t)) or tensors)
    scheduler = distilled_scheduler(SCHEDULER, 4)
    scheduler.set_timesteps(4)
    assert seen == scheduler.timesteps.tolist()
    assert FQLDMPipeline.from_pipe(trained).config.num_inference_steps == 4
    started = FQLDMPipeline(
        trained.vqvae, UNet2DModel.from_pretrained(pipeline[0], subfolder="unet"),
        fast_scheduler(SCHEDULER, "dpmsolver++"), quantize_samples=False,
    )  # fmt: skip
    samples = started(12, 20, latents=ways[:, 0], output_type="latent").images
    torch.testing.assert_close(ways[:, -1], samples, rtol=1e-4, atol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "4 steps of DDIM" in card and "# 4 steps" in card and "DDPM" not in card.split("## Metrics")[0]
    options |= dict(start_from=tmp_path / "out", output_dir=tmp_path / "again", max_train_steps=1)
    status, _, err = call(train_ldm.main, **options)
    assert status == 2 and "samples in 4 steps alone: give what it was made of" in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(beta_schedule="linear"),
            "was trained with beta_schedule squaredcos_cap_v2, not linear: give",
        ),
        (dict(distill_steps=3), "distill_steps: must divide 20, not 3"),
        (dict(distill_steps=4, own_samples=0), "distill_steps: needs own_samples, not 4"),
        (dict(distill_steps=4, prediction_type="epsilon"), "own_samples: have ways for a UNet of v_prediction alone"),
        (dict(start_from=None), "own_samples: are of the UNet that start_from gives: give it, not 12"),
        (dict(linear_teacher="nowhere"), "own_samples: learn of no other UNet: leave linear_teacher out"),
        (dict(target="quantized"), "own_samples: need target unquantized"),
        (dict(unet_dropout=0.1), "own_samples: need unet_dropout 0"),
        (dict(snr_gamma=5), "own_samples: are told apart without weights: leave snr_gamma out"),
        (dict(num_train_timesteps=10), "own_samples: take 20 steps"),
        (dict(own_samples=-1), "own_samples: must not be negative, not -1"),
        (dict(own_samples_beta=0), "own_samples_beta: must be positive, not 0"),
    ],
)
def test_wrong_options_are_refused_in_one_line(image_folder, vae, pipeline, tmp_path, call, changes, message):  # noqa: F811
    options = dict(dataset=image_folder, vae=vae[0], start_from=pipeline[0], output_dir=tmp_path / "out", **OPTIONS)
    options = {name: value for name, value in (options | changes).items() if value is not None}
    status, _, err = call(train_ldm.main, max_train_steps=1, **options)
    assert status == 2 and message in err and len(err.strip().splitlines()) == 1
