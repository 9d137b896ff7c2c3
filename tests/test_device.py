"""On a GPU nothing mixes devices, and a training step does not make the host wait: both on a GPU that is pretended.

`PYTHONPATH=. python tests/test_device.py` lists what waits in each of the measured steps, and where.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from conftest import TINY, smooth_images
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from pretend_gpu import CUDA, DeviceMixError, pretend_gpu
from test_adversarial import NETWORK, network_file  # noqa: F401  (a fixture)
from test_baselines import MODELS
from test_scripts import LDM_OPTIONS, VAE_OPTIONS, to_flags

from fq_ldm import FQModel, train_ldm, train_vae
from fq_ldm.diffusion import build_scheduler, build_unet, diffusion_loss, latents_of_tokens
from fq_ldm.metrics import evaluate_reconstruction
from fq_ldm.options import LDMConfig
from fq_ldm.training.teacher import LinearTeacher

# How often the host waits for the device, and how many copies from it block, in one training step after the first. One
# more is a step that is slower on every GPU; one fewer is to be noted here.
SYNCHRONISATIONS = {
    "model bank": (0, 0),
    "model interleaved": (0, 0),
    "model vq": (0, 0),
    "model cvq_closest": (0, 0),
    "model cvq_random": (0, 0),
    "model cvq_probabilistic": (2, 0),  # multinomial looks at its weights
    "model paper": (0, 0),
    "model paper_alike": (0, 0),
    "model transformer": (0, 0),
    "model hqa": (2, 0),  # at both levels the positions of dead entries
    "model sq": (0, 0),
    "model fsq": (0, 0),
    "model simvq": (0, 0),
    "diffusion loss": (0, 0),
    "diffusion loss, taught": (1, 0),  # the teacher sees noisy latents alone, and how many these are has to be known
    "train_vae no": (0, 0),
    "train_vae no, logged": (1, 0),
    "train_vae bf16": (0, 0),
    "train_vae bf16, logged": (1, 0),
    "train_vae fp16": (0, 0),
    "train_vae fp16, logged": (1, 0),
    "train_vae, painting, bf16": (0, 0),
    "train_vae, painting, bf16, logged": (1, 0),
    "train_vae, painting, fp16": (0, 0),
    "train_vae, painting, fp16, logged": (1, 0),
    "train_ldm bf16": (0, 0),
    "train_ldm bf16, logged": (1, 0),
    "train_ldm bf16 from images": (0, 0),
    "train_ldm bf16 from images, logged": (1, 0),
    "train_ldm fp16": (0, 0),
    "train_ldm fp16, logged": (1, 0),
    "train_ldm bf16, muon": (2, 0),  # it cannot leave a step out by itself, so losses and gradients are looked at
    "train_ldm bf16, muon, logged": (3, 0),
}

FREQUENCY = {**TINY, "sample_size": 16}
MODELS = {
    "bank": lambda: FQModel(**FREQUENCY),
    "interleaved": lambda: FQModel(**FREQUENCY, tokens="interleaved"),
    **MODELS,
}
PACKAGED = ("ema", "residual")  # how often these wait is a matter of the package and of the entries that it revives
PAINTING = dict(
    painter_block_out_channels=[4, 8], latent_noise=0.1, adversarial_weight=0.1, adversarial_start=0.1,
    discriminator_block_out_channels=[4, 8], gradient_penalty_weight=0.1, decoder_ema_decay=0.9,
)  # fmt: skip
LEARNING = dict(
    latent_channels=3, learnt_channels=2, reader_width=8, reader_layers=1, num_tokens=48, learnt_noise=0.3,
    decode_unquantized="true",
)  # fmt: skip
SEEING = dict(
    resolution=32, convert_images="true", painter_block_out_channels=[4, 4, 8], perceptual_weight=1,
    projected_weight=0.5, perceptual_network=NETWORK,
)  # fmt: skip
STEPS = 5
LOGGED_STEP = 3


class PowerCut(Exception):
    pass


@pytest.fixture
def large_images():
    return smooth_images(64, 3, 16, 16)


@pytest.fixture
def expect(record_property):
    """`expect(name, record, start, stop)` compares what happened between two events with the table."""

    def expect(name, record, start=0, stop=None):
        counts, table = record.counts(start, stop), record.table(start, stop)
        record_property(f"{name}: {counts}", table)
        assert counts == SYNCHRONISATIONS.get(name), f"{name}: waits and copies are {counts}\n{table}"

    return expect


@contextmanager
def accelerate_on_gpu() -> Iterator[None]:
    """Accelerators made meanwhile find the GPU; what accelerate knew of this process before comes back after."""
    states = (PartialState, AcceleratorState, GradientState)
    before = [dict(state._shared_state) for state in states]
    try:
        for state in states:
            state._shared_state.clear()
        PartialState(cpu=True).device = CUDA
        yield
    finally:
        for state, old in zip(states, before, strict=True):
            state._shared_state.clear()
            state._shared_state.update(old)


def initialised(name, images):
    torch.manual_seed(0)
    model = MODELS[name]()
    model.initialize_(images)
    return model


def run_script(module, stop_at=STEPS, **options):
    """Run a training script on the pretended GPU; what waited, and how many events there were as each step began."""
    train, starts = module.train, []

    def watched_train(accelerator, config, model, loader, compute_loss, *rest):
        def watched_loss(*args):
            if len(starts) == stop_at:
                raise PowerCut
            starts.append(len(record.events))
            return compute_loss(*args)

        return train(accelerator, config, model, loader, watched_loss, *rest)

    common = {"max_train_steps": STEPS, "logging_steps": LOGGED_STEP, "report_to": "none"}
    with pretend_gpu() as record, accelerate_on_gpu(), patch.object(module, "train", watched_train):
        module.main(to_flags(options | common))
    return record, starts


def expect_steps(expect, name, record, starts):
    """Compare the second step, and the one that is logged."""
    assert len(starts) == STEPS
    expect(name, record, *starts[1:3])
    expect(f"{name}, logged", record, *starts[LOGGED_STEP - 1 : LOGGED_STEP + 1])


# The GPU that is not there


@pytest.mark.parametrize(
    "act, waits, copies",
    [
        (lambda x: x[0, 0].item(), 1, 0),
        (lambda x: float(x.sum()) + int(x.sum()), 2, 0),
        (lambda x: x.tolist(), 1, 0),
        (lambda x: 0 if x.isfinite().all() else 1, 1, 0),
        (lambda x: f"{x} {x}", 2, 0),
        (lambda x: x[x > 0], 1, 0),
        (lambda x: x.__setitem__(x > 0, x[x > 0]), 2, 0),
        (lambda x: x.__setitem__(x > 0, 0.0), 0, 0),
        (lambda x: (x > 0).nonzero(), 1, 0),
        (lambda x: x.long().unique(), 1, 0),
        (lambda x: torch.bincount(x.long().flatten().abs()), 2, 0),
        (lambda x: x[x.argmax() * 0], 1, 0),
        (lambda x: torch.zeros(3)[x.argmax() * 0], 1, 0),
        (lambda x: x.cpu(), 1, 0),
        (lambda x: x.to("cpu", torch.float64), 1, 0),
        (lambda x: torch.zeros(x.shape).copy_(x), 1, 0),
        (lambda x: torch.equal(x, x + 1), 1, 0),
        (lambda x: x.softmax(-1).multinomial(1), 2, 0),
        (lambda x: torch.zeros(4).to(x), 0, 1),
        (lambda x: torch.zeros(4).to("cuda", non_blocking=True), 0, 0),
        (lambda x: torch.tensor([1.0], device=x.device), 0, 1),
        (lambda x: x.new_tensor([1.0]), 0, 1),
        (lambda x: x[torch.arange(2)] + x[[0, 1]], 0, 2),
        (lambda x: x.copy_(torch.zeros(x.shape)), 0, 1),
        (lambda x: x * torch.tensor(2.0) + torch.ones_like(x).sum() + x.new_zeros(4)[None], 0, 0),
        (lambda x: [row.max(0).values for row in x][0].device == CUDA or 1 / 0, 0, 0),
    ],
)
def test_what_waits_is_counted(act, waits, copies):
    with pretend_gpu() as record:
        x = torch.randn(4, 4, device="cuda")
        act(x)
    assert record.counts() == (waits, copies), record.table()


def test_what_waits_in_the_backward_pass_is_counted():
    with pretend_gpu() as record:
        x = torch.randn(4, device="cuda").requires_grad_()
        x.register_hook(lambda gradient: gradient * gradient.max().item())
        x.square().sum().backward()
        assert x.grad.device == CUDA and record.counts() == (1, 0)


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x + torch.zeros(4),
        lambda x: torch.stack([x.sum(), torch.zeros(())]),
        lambda x: torch.zeros(()).add_(x.sum()),
        lambda x: torch.zeros(4)[x.argsort()],
        lambda x: x.__setitem__(x.argsort(), torch.zeros(4)),
        lambda x: torch.nn.Linear(4, 4)(x),
        lambda x: torch.randn(4, device=x.device, generator=torch.Generator()),
        lambda x: x.normal_(generator=torch.Generator()),
        lambda x: torch.randn(4, generator=torch.Generator("cuda")),
    ],
)
def test_devices_that_meet_are_an_error(act):
    with pretend_gpu(), pytest.raises(DeviceMixError, match="test_device.py"):
        act(torch.randn(4, device="cuda"))


def test_numpy_takes_nothing_from_the_gpu():
    with pretend_gpu(), pytest.raises(TypeError, match="CUDA"):
        torch.zeros(2, device="cuda").numpy()


def test_nothing_is_left_behind():
    def state():
        autocast = torch.autocast.__init__
        return torch.Generator, autocast, torch.nn.Module._apply

    before = state()
    with pytest.raises(PowerCut), pretend_gpu(), accelerate_on_gpu():
        assert state() != before
        raise PowerCut
    assert state() == before
    assert torch.zeros(2).sum().item() == 0 and type(torch.zeros(2) + 1) is torch.Tensor


# Models


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_and_codes_on_the_gpu(name, large_images, expect):
    model = initialised(name, large_images).eval()
    with torch.no_grad():
        expected = model.tokenize(large_images)
        pictures = model.detokenize(expected)
    with pretend_gpu() as record:
        model.to("cuda")
        batch = large_images.to("cuda")
        with torch.no_grad():
            tokens = model.tokenize(batch)
            assert tokens.device == model(batch).sample.device == CUDA
            assert torch.equal(tokens.cpu(), expected)
            torch.testing.assert_close(model.detokenize(tokens).cpu(), pictures)
        model.train()
        for _ in range(2):
            start = len(record.events)
            loss, _ = model.loss(batch[:32], model(batch[:32]))
            loss.backward()
            stop = len(record.events)
        assert model.encoder.conv_out.weight.grad.device == CUDA
        if name not in PACKAGED:
            expect(f"model {name}", record, start, stop)


def test_reconstructions_are_measured_on_the_gpu(large_images):
    model = initialised("bank", large_images)
    expected = evaluate_reconstruction(model, large_images.split(32), train_variance=1.0)
    with pretend_gpu() as record:
        assert evaluate_reconstruction(model.to("cuda"), large_images.split(32), train_variance=1.0) == expected
    assert record.counts()[0] <= 2 * 7  # two batches: four sums, the count of the tokens and its copy


# Diffusion


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_diffusion_loss_is_taken_on_the_gpu(pipeline, prediction, expect):
    scheduler = DDPMScheduler(prediction_type=prediction, clip_sample=False)
    with pretend_gpu() as record:
        vae, unet = pipeline.vqvae.to("cuda"), pipeline.unet.to("cuda").train()
        tokens = torch.zeros(4, vae.config.num_tokens, dtype=torch.int64, device="cuda")
        for _ in range(2):
            start = len(record.events)
            generator = torch.Generator("cuda").manual_seed(0)
            diffusion_loss(unet, scheduler, latents_of_tokens(vae, tokens), generator, snr_gamma=5.0).backward()
            stop = len(record.events)
        expect("diffusion loss", record, start, stop)


def test_a_teacher_teaches_on_the_gpu(expect):
    options = LDMConfig(
        prediction_type="v_prediction",
        unet_block_out_channels=[8],
        unet_attention_levels=[],
        unet_norm_num_groups=4,
        unet_attention_head_dim=4,
    )
    scheduler = build_scheduler(options)
    with pretend_gpu() as record:
        student, teacher = (build_unet(options, (channels, 8, 8)).to("cuda") for channels in (3, 2))
        teacher = LinearTeacher(teacher, scheduler)
        latents = torch.zeros(4, 3, 8, 8, device="cuda")
        for _ in range(2):
            start = len(record.events)
            generator = torch.Generator("cuda").manual_seed(0)
            diffusion_loss(student, scheduler, latents, generator, teacher=teacher).backward()
            stop = len(record.events)
        expect("diffusion loss, taught", record, start, stop)


@pytest.mark.parametrize("scheduler_class", [DDPMScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("where", ["one for each", "cpu", "cuda", "none"])
def test_the_pipeline_samples_on_the_gpu(pipeline, scheduler_class, where):
    kind = {"algorithm_type": "sde-dpmsolver++"} if scheduler_class is DPMSolverMultistepScheduler else {}
    pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **kind)
    with pretend_gpu():
        pipeline.to("cuda")
        seeded = [torch.Generator(device).manual_seed(i) for i, device in enumerate(("cpu", "cpu", "cuda"))]
        generator = {"one for each": seeded[:2], "cpu": seeded[0], "cuda": seeded[2], "none": None}[where]
        pictures = pipeline(2, num_inference_steps=3, generator=generator, output_type="pt").images
        assert pictures.device == CUDA and bool(pictures.isfinite().all())
        assert pipeline(2, num_inference_steps=3, generator=generator, output_type="np").images.shape == (2, 8, 12, 3)


# The scripts, from options to the saved model


@pytest.fixture(scope="module")
def vae_folder(image_folder, tmp_path_factory):
    """An FQ-VAE as it starts its training."""
    torch.manual_seed(0)
    model = FQModel(**TINY | {"in_channels": 1, "sample_size": 16, "latent_channels": 1})
    model.initialize_(smooth_images(40, 1, 16, 16))
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_train_vae(image_folder, tmp_path, precision, expect):
    options = {**VAE_OPTIONS, "dataset": image_folder, "output_dir": tmp_path / "vae", "mixed_precision": precision}
    expect_steps(expect, f"train_vae {precision}", *run_script(train_vae, **options, random_flip="true"))
    assert (tmp_path / "vae" / "metrics.json").is_file()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_train_vae_against_a_discriminator(image_folder, tmp_path, precision, expect):
    options = {**VAE_OPTIONS, "dataset": image_folder, "output_dir": tmp_path / "vae", "mixed_precision": precision}
    options |= PAINTING
    expect_steps(expect, f"train_vae, painting, {precision}", *run_script(train_vae, **options, random_flip="true"))
    assert (tmp_path / "vae" / "metrics.json").is_file()


def test_train_vae_with_learnt_channels(image_folder, tmp_path, expect):
    options = {**VAE_OPTIONS, "dataset": image_folder, "output_dir": tmp_path / "vae", "mixed_precision": "bf16"}
    options |= PAINTING | LEARNING
    expect_steps(expect, "train_vae, painting, bf16", *run_script(train_vae, **options, random_flip="true"))
    assert (tmp_path / "vae" / "metrics.json").is_file()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_train_vae_against_what_a_network_sees(image_folder, network_file, tmp_path, precision, expect):  # noqa: F811
    options = {**VAE_OPTIONS, "dataset": image_folder, "output_dir": tmp_path / "vae", "mixed_precision": precision}
    options |= {**PAINTING, **SEEING, "perceptual_network_weights": network_file}
    expect_steps(expect, f"train_vae, painting, {precision}", *run_script(train_vae, **options, random_flip="true"))
    assert (tmp_path / "vae" / "metrics.json").is_file()


@pytest.mark.parametrize("precision, cached", [("bf16", "true"), ("bf16", "false"), ("fp16", "true")])
def test_train_ldm(image_folder, vae_folder, tmp_path, precision, cached, expect):
    options = {**LDM_OPTIONS, "dataset": image_folder, "output_dir": tmp_path / "ldm", "vae": vae_folder}
    options |= {"mixed_precision": precision, "cache_latents": cached, "random_flip": "true"}
    name = f"train_ldm {precision}{'' if cached == 'true' else ' from images'}"
    expect_steps(expect, name, *run_script(train_ldm, **options))
    assert (tmp_path / "ldm" / "model_index.json").is_file()


def test_train_ldm_with_muon(image_folder, vae_folder, tmp_path, expect):
    options = {**LDM_OPTIONS, "dataset": image_folder, "output_dir": tmp_path / "ldm", "vae": vae_folder}
    options |= {"mixed_precision": "bf16", "optimizer": "muon"}
    expect_steps(expect, "train_ldm bf16, muon", *run_script(train_ldm, **options))
    assert (tmp_path / "ldm" / "model_index.json").is_file()


def test_a_run_goes_on_after_a_power_cut(image_folder, vae_folder, tmp_path):
    """Checkpoints hold what lay on the GPU, and put it back there."""
    options = {**LDM_OPTIONS, "dataset": image_folder, "output_dir": tmp_path / "ldm", "vae": vae_folder}
    options |= {"mixed_precision": "fp16", "checkpointing_steps": 2}
    with pytest.raises(PowerCut):
        run_script(train_ldm, stop_at=3, **options)
    _, starts = run_script(train_ldm, **options)
    assert len(starts) == STEPS - 2
    assert (tmp_path / "ldm" / "model_index.json").is_file()


class Listing:
    """Prints what `expect` has measured."""

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            for name, table in report.user_properties:
                print(f"\n{name} waits and copies\n{table}")


if __name__ == "__main__":
    sys.exit(pytest.main([str(Path(__file__)), "--durations=0", "-k", "train or loss"], plugins=[Listing()]))
