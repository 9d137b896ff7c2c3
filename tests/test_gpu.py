"""On a GPU that is there: the same results as on the CPU, no waiting, both scripts in every precision.

Skipped where there is none; tests/test_device.py pretends one.
"""

import json
from contextlib import contextmanager, nullcontext

import pytest
import torch
from conftest import TINY, smooth_images
from diffusers import DDPMScheduler, UNet2DModel
from test_adversarial import network_file  # noqa: F401  (a fixture)
from test_device import LEARNING, PAINTING, SEEING, initialised
from test_optimizer import trained
from test_scripts import LDM_OPTIONS, VAE_OPTIONS, call  # noqa: F401  (a fixture)
from timm.optim import Muon

import train_ldm
import train_vae
from fq_ldm import FQLDMPipeline, FQModel
from fq_ldm.diffusion import diffusion_loss, fast_scheduler
from fq_ldm.training.muon import BatchedMuon

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

MODELS = ["bank", "interleaved", "paper", "vq", "cvq_closest", "transformer", "sq", "fsq", "simvq"]


@pytest.fixture
def exact(monkeypatch):
    """Convolutions in float32 rather than TF32, to compare with the CPU."""
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")


@contextmanager
def no_waiting():
    """What makes the host wait for the device is an error meanwhile."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_what_it_does_on_the_cpu(name, exact):
    images = smooth_images(64, 3, 16, 16)
    model = initialised(name, images).eval()
    with torch.no_grad():
        expected = model.tokenize(images)
        pictures = model.detokenize(expected)
    loss, _ = model.loss(images, model(images))
    model.to("cuda")
    with torch.no_grad():
        found = model.tokenize(images.cuda()).cpu()
        # Where two codes are as near as rounding, either is right.
        assert (found == expected).float().mean() > 0.99
        torch.testing.assert_close(model.detokenize(expected.cuda()).cpu(), pictures, rtol=1e-3, atol=1e-4)
    found_loss, _ = model.loss(images.cuda(), model(images.cuda()))
    torch.testing.assert_close(found_loss.cpu(), loss, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_transforms_stay_in_float32_under_autocast(precision, exact):
    # cuFFT has half precision for powers of two alone: 12 is none.
    images = smooth_images(64, 3, 8, 12)
    torch.manual_seed(0)
    model = FQModel(**TINY)
    model.initialize_(images)
    with torch.no_grad():
        expected = model.eval()(images).sample
        with torch.autocast("cuda", precision):
            found = model.cuda()(images.cuda()).sample
    assert (found.cpu().float() - expected).abs().mean() < 0.02


@pytest.mark.parametrize("name", ["bank", "interleaved", "paper"])
def test_a_step_of_a_model_does_not_wait(name):
    images = smooth_images(64, 3, 16, 16)
    model = initialised(name, images).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = images.cuda()
    for step in range(3):
        with no_waiting() if step else nullcontext():  # the first one may set something up
            loss, _ = model.loss(batch, model(batch))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.isfinite(loss)


def test_a_step_of_diffusion_does_not_wait():
    torch.manual_seed(0)
    unet = small_unet().cuda()
    optimizer = BatchedMuon(unet.parameters(), lr=1e-3, nesterov=True)
    scheduler = DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    latents = torch.randn(16, 3, 8, 8, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    for step in range(3):
        with no_waiting() if step else nullcontext():
            with torch.autocast("cuda", torch.bfloat16):
                loss = diffusion_loss(unet, scheduler, latents, generator, timestep_sampling="logit_normal")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.isfinite(loss)


def test_muon_moves_weights_as_on_the_cpu():
    (*_, expected), (*_, found) = trained(Muon), trained(BatchedMuon, device="cuda")
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


def small_unet():
    return UNet2DModel(
        8, 3, 3, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def test_the_same_seed_gives_the_same_pictures(exact):
    torch.manual_seed(0)
    vae = FQModel(**TINY | {"sample_size": 16, "spectral_crop": 8})
    vae.initialize_(smooth_images(64, 3, 16, 16))
    pipeline = FQLDMPipeline(vae, small_unet(), fast_scheduler(DDPMScheduler(clip_sample=False)))
    pipeline.set_progress_bar_config(disable=True)

    def draw():
        generator = torch.Generator().manual_seed(3)  # of the CPU: the same numbers on both
        return pipeline(4, num_inference_steps=5, generator=generator, output_type="pt").images.cpu()

    expected = draw()
    pipeline.to("cuda")
    assert (draw() - expected).abs().mean() < 1e-2
    pipeline.unet.half()
    assert (draw() - expected).abs().mean() < 3e-2


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_both_scripts(image_folder, network_file, tmp_path, call, precision):  # noqa: F811
    common = dict(dataset=image_folder, max_train_steps=4, mixed_precision=precision, report_to="none")
    common |= dict(checkpointing_steps=2, random_flip=True)
    seeing = {**PAINTING, **SEEING, "perceptual_network_weights": network_file}
    models = {"codec": {}, "painter": PAINTING, "seeing": seeing, "learnt": PAINTING | LEARNING}
    for name, options in models.items():
        status, _, errors = call(train_vae.main, output_dir=name, **{**common, **VAE_OPTIONS, **options})
        assert status == 0, errors
    for optimizer in ("adamw", "muon"):
        options = dict(LDM_OPTIONS, optimizer=optimizer, vae="codec", output_dir=optimizer)
        status, _, errors = call(train_ldm.main, **common, **options)
        assert status == 0, errors
        metrics = json.loads((tmp_path / optimizer / "metrics.json").read_text())
        assert metrics["steps"] == 4 and metrics["validation_loss"] < 10
        images = FQLDMPipeline.from_pretrained(tmp_path / optimizer).to("cuda")(2, num_inference_steps=2).images
        assert len(images) == 2


def test_a_run_goes_on_from_its_checkpoint(image_folder, tmp_path, call):  # noqa: F811
    common = dict(dataset=image_folder, mixed_precision="fp16", report_to="none", checkpointing_steps=2)
    for steps in (2, 4):
        status, output, errors = call(
            train_vae.main, output_dir="vae", max_train_steps=steps, **common, **VAE_OPTIONS, **PAINTING
        )
        assert status == 0, errors
    assert "resuming from" in output
    assert json.loads((tmp_path / "vae" / "metrics.json").read_text())["steps"] == 4


def test_a_compiled_unet_trains(image_folder, tmp_path, call):  # noqa: F811
    common = dict(dataset=image_folder, max_train_steps=3, mixed_precision="bf16", report_to="none")
    status, _, errors = call(train_vae.main, output_dir="vae", **common, **VAE_OPTIONS)
    assert status == 0, errors
    options = dict(LDM_OPTIONS, compile=True, optimizer="muon", vae="vae", output_dir="ldm")
    status, _, errors = call(train_ldm.main, **common, **options)
    assert status == 0, errors
    assert (tmp_path / "ldm" / "model_index.json").is_file()
