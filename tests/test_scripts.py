"""Both scripts, judged by the files they leave and the lines they print."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file

import train_ldm
import train_vae
from fq_ldm import FQLDMPipeline, FQModel
from fq_ldm.options import run_script

ROOT = Path(__file__).parent.parent

VAE_OPTIONS = dict(
    channels=1, resolution=16, validation_size=8, latent_channels=1, block_out_channels=8, norm_num_groups=4,
    num_tokens=8, num_vq_embeddings=16, vq_embed_dim=4, spectral_crop=8, diffusion_patch_size=2, init_images=32,
    train_batch_size=8, lr_warmup_steps=1, logging_steps=1,
)  # fmt: skip
LDM_OPTIONS = dict(
    channels=1, resolution=16, validation_size=8, unet_block_out_channels=[8, 8], unet_layers_per_block=1,
    unet_attention_levels=1, unet_attention_head_dim=4, unet_norm_num_groups=4, train_batch_size=8, lr_warmup_steps=1,
    logging_steps=1, preview_images=4, preview_inference_steps=2,
)  # fmt: skip


def to_flags(options):
    flags = []
    for key, value in options.items():
        flags += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def run(script, tmp_path, **options):
    """Run a script in a process of its own, as people do."""
    command = [sys.executable, str(ROOT / script), *to_flags(options)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """`call(main, **options)` runs a script's main in this process: its exit status, output and errors."""

    def call(main, **options):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["script.py", *to_flags(options)])
        AcceleratorState._reset_state(reset_partial_state=True)
        status = 0
        try:
            run_script(main)
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def vae(image_folder, tmp_path_factory):
    """The folder of an FQ-VAE after two steps, and what the script printed."""
    folder = tmp_path_factory.mktemp("vae")
    result = run("train_vae.py", folder, dataset=image_folder, output_dir="vae", max_train_steps=2, **VAE_OPTIONS)
    return folder / "vae", result


@pytest.fixture(scope="module")
def pipeline(image_folder, vae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ldm")
    result = run(
        "train_ldm.py", folder, dataset=image_folder, output_dir="pipeline", vae=vae[0], max_train_steps=2,
        random_flip=True, **LDM_OPTIONS,
    )  # fmt: skip
    return folder / "pipeline", result


def test_train_vae_leaves_a_model_a_card_and_pictures(vae):
    folder, result = vae
    model = FQModel.from_pretrained(folder).eval()
    assert model.config.num_tokens == 8 and model.bits_per_image == 32
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["images"] == 8 and 0 < metrics["ssim"] <= 1 and 1 <= metrics["codes_used"] <= 16
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "diffusers"
    assert "![" in card and "load_vae(" in card and f"{metrics['ssim']:.4g}" in card
    assert "num_vq_embeddings: 16" in card and "bits per image | 32" in card
    assert Image.open(folder / "reconstructions.png").width > 8 * 16
    assert (folder / "previews" / "00000002.png").is_file()
    assert list((folder / "logs").rglob("events.out.tfevents*"))
    assert yaml.safe_load((folder / "training_config.yaml").read_text())["num_vq_embeddings"] == 16
    assert "num_vq_embeddings: 16" in result.stdout  # the resolved configuration
    for shown in ("loss=", "images/s=", "perplexity=", "codes_used="):
        assert shown in result.stderr
    assert not list(folder.glob("*.bin"))


def test_diffusion_latents_are_measured_on_the_trained_model(vae, image_folder):
    from fq_ldm.data import load_images
    from fq_ldm.diffusion import encode_images
    from fq_ldm.options import DataConfig

    data = DataConfig(dataset=str(image_folder), channels=1, resolution=[16], validation_size=8)
    latents = encode_images(FQModel.from_pretrained(vae[0]).eval(), torch.stack(list(load_images(data)[0])))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)


def test_train_ldm_leaves_a_pipeline(pipeline):
    folder, _ = pipeline
    loaded = FQLDMPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.scheduler.config.clip_sample is False and loaded.scheduler.config.num_train_timesteps == 1000
    assert np.asarray(loaded(1, 2).images[0]).shape == (16, 16)
    assert Image.open(folder / "samples.png").width > 32
    card = (folder / "README.md").read_text()
    assert "FQLDMPipeline.from_pretrained" in card and "validation loss" in card
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "unconditional-image-generation"
    tokens = load_file(folder / "latents" / "00000.safetensors")["items"]
    assert tokens.shape == (32, 2, 8) and tokens.dtype == torch.uint8
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_vae_resumes_exactly(image_folder, tmp_path, accumulation):
    """6 steps (past the first epoch of 4 batches), and 3 + 3 with a stop between, end in the same weights."""
    common = dict(
        dataset=image_folder, random_flip=True, gradient_accumulation_steps=accumulation, checkpointing_steps=3,
        num_train_epochs=3, lr_scheduler="constant_with_warmup", **VAE_OPTIONS,
    )  # fmt: skip
    run("train_vae.py", tmp_path, output_dir="whole", max_train_steps=6, **common)
    run("train_vae.py", tmp_path, output_dir="parts", max_train_steps=3, **common)
    result = run("train_vae.py", tmp_path, output_dir="parts", max_train_steps=6, **common)
    assert "resuming from" in result.stdout
    whole, parts = (load_file(tmp_path / d / "diffusion_pytorch_model.safetensors") for d in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert [p.name for p in sorted((tmp_path / "parts" / "checkpoints").iterdir())] == [
        "step_00000003",
        "step_00000006",
    ]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_ldm_resumes_exactly(image_folder, vae, tmp_path, optimizer):
    common = dict(
        dataset=image_folder, vae=vae[0], random_flip=True, lr_scheduler="constant_with_warmup", checkpointing_steps=2,
        checkpoints_total_limit=1, optimizer=optimizer, **LDM_OPTIONS,
    )  # fmt: skip
    run("train_ldm.py", tmp_path, output_dir="whole", max_train_steps=6, **common)
    run("train_ldm.py", tmp_path, output_dir="parts", max_train_steps=2, **common)
    run("train_ldm.py", tmp_path, output_dir="parts", max_train_steps=6, **common)
    whole, parts = (load_file(tmp_path / d / "unet/diffusion_pytorch_model.safetensors") for d in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert [p.name for p in (tmp_path / "parts" / "checkpoints").iterdir()] == ["step_00000006"]


def test_ldm_starts_from_a_trained_unet(image_folder, vae, pipeline, tmp_path, call):
    options = dict(dataset=image_folder, vae=vae[0], max_train_steps=1, report_to="none", seed=1, **LDM_OPTIONS)
    status, _, errors = call(
        train_ldm.main, start_from=pipeline[0], learning_rate=1e-12, output_dir=tmp_path / "out",
        save_scheduler="dpm_solver_ode", **options,
    )  # fmt: skip
    assert status == 0, errors
    start, end = (load_file(d / "unet/diffusion_pytorch_model.safetensors") for d in (pipeline[0], tmp_path / "out"))
    assert all(torch.allclose(start[name], end[name], rtol=0, atol=1e-9) for name in start)
    scheduler = FQLDMPipeline.from_pretrained(tmp_path / "out").scheduler
    assert isinstance(scheduler, DPMSolverMultistepScheduler) and scheduler.config.algorithm_type == "dpmsolver++"
    assert scheduler.config.use_exponential_sigmas and scheduler.config.sigma_max > 10 * scheduler.config.sigma_min
    assert "20 steps of DPM-Solver++" in (tmp_path / "out" / "README.md").read_text()
    status, _, errors = call(train_ldm.main, start_from=tmp_path, output_dir=tmp_path / "out2", **options)
    assert status == 1 and f"start_from: no UNet can be loaded from {tmp_path}" in errors
    options["unet_layers_per_block"] = 2  # each block is given one more, which adds nothing yet
    deeper = {**options, "learning_rate": 1e-12, "save_scheduler": "dpm_solver_ode", "output_dir": tmp_path / "deeper"}
    status, _, errors = call(train_ldm.main, start_from=pipeline[0], **deeper)
    assert status == 0, errors
    sampled = [
        FQLDMPipeline.from_pretrained(path)(2, 3, torch.manual_seed(0), output_type="latent").images
        for path in (tmp_path / "out", tmp_path / "deeper")
    ]
    torch.testing.assert_close(*sampled, rtol=1e-3, atol=1e-3)
    options["unet_layers_per_block"] = 1
    status, _, errors = call(train_ldm.main, start_from=tmp_path / "deeper", output_dir=tmp_path / "out3", **options)
    assert status == 1 and "has layers_per_block 2 instead of 1: give the options" in errors


def test_ldm_without_cache_ema_or_tracker(image_folder, vae, tmp_path, call):
    status, _, errors = call(
        train_ldm.main,
        dataset=image_folder,
        vae=vae[0],
        output_dir="out",
        max_train_steps=2,
        use_ema=False,
        cache_latents=False,
        report_to="none",
        prediction_type="v_prediction",
        mixed_precision="bf16",
        **LDM_OPTIONS,
    )
    assert status == 0, errors
    assert (tmp_path / "out" / "model_index.json").is_file()
    assert not (tmp_path / "out" / "latents").exists() and not (tmp_path / "out" / "logs").exists()


def test_ldm_with_another_view_target_and_precision(image_folder, vae, tmp_path, call):
    status, _, errors = call(
        train_ldm.main, dataset=image_folder, vae=vae[0], output_dir="out", max_train_steps=2, report_to="none",
        target="unquantized", latent_layout="spectral", latent_patch_size=1, snr_gamma=5, save_precision="fp16",
        prediction_type="v_prediction", **LDM_OPTIONS,
    )  # fmt: skip
    assert status == 0, errors
    saved = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float16}
    saved, given = (load_file(d / "diffusion_pytorch_model.safetensors") for d in (tmp_path / "out" / "vqvae", vae[0]))
    assert all(torch.equal(saved[name], given[name]) for name in given if "diffusion_view" not in name)
    pipeline = FQLDMPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.vqvae.config.diffusion_layout == "spectral"
    assert pipeline.vqvae.diffusion_latent_shape == (1, 8, 8)
    assert pipeline.unet.dtype == torch.float32
    assert np.asarray(pipeline(1, 2).images[0]).shape == (16, 16)


def test_dry_run_prints_and_saves_the_configuration_only(image_folder, tmp_path, call):
    status, output, _ = call(train_vae.main, dataset=image_folder, output_dir="out", dry_run=True, **VAE_OPTIONS)
    assert status == 0 and "num_vq_embeddings: 16" in output
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["training_config.yaml"]


@pytest.mark.parametrize(
    "changes, status, message",
    [
        (dict(mixed_precision="fp16"), 2, "mixed_precision: fp16 needs a GPU; on a CPU use no, or bf16"),
        (dict(num_tokens=100), 2, "100 tokens of 4 coefficients need 400"),
        (dict(resolution=8), 2, "resolution: must be 11 or more, SSIM's window, not [8]"),
        (dict(channels=3), 1, "is L (1 channels), but channels is 3 (RGB)"),
        (dict(dataset="nowhere"), 1, "nowhere: cannot be loaded"),
        (dict(train_batch_size=64), 1, "32 training images do not fill a batch of 64"),
        (dict(lr_scheduler="steep"), 2, "invalid choice: 'steep'"),
        (dict(report_to="paper"), 2, "report_to: "),
    ],
)
def test_mistakes_end_in_one_line(image_folder, call, changes, status, message):
    if changes.get("mixed_precision") == "fp16" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    options = {**VAE_OPTIONS, "dataset": image_folder, "output_dir": "out", "max_train_steps": 1, **changes}
    found, _, errors = call(train_vae.main, **options)
    lines = [line for line in errors.splitlines() if line.startswith("script.py: error: ")]
    assert found == status and len(lines) == 1 and message in lines[0]


def test_a_folder_of_another_run_is_left_alone(image_folder, tmp_path, call):
    common = {**VAE_OPTIONS, "dataset": image_folder, "output_dir": "out", "max_train_steps": 1}
    assert call(train_vae.main, **common)[0] == 0
    before = (tmp_path / "out" / "training_config.yaml").read_text()
    status, _, errors = call(train_vae.main, **{**common, "num_vq_embeddings": 8})
    assert status == 2
    assert "holds checkpoints of a run with other options (num_vq_embeddings 16 -> 8)" in errors
    assert (tmp_path / "out" / "training_config.yaml").read_text() == before


def test_ldm_refuses_a_wrong_vae(image_folder, vae, tmp_path, call):
    common = {**LDM_OPTIONS, "dataset": image_folder, "output_dir": "out", "max_train_steps": 1}
    status, _, errors = call(train_ldm.main, vae=tmp_path / "none", **common)
    assert status == 1 and "vae: no FQ-VAE can be loaded from" in errors
    status, _, errors = call(train_ldm.main, vae=vae[0], **{**common, "resolution": 32})
    assert status == 2 and "takes images of 1x16x16, but channels and resolution give 1x32x32" in errors
