"""evaluate.py, judged by the files it leaves and the lines it prints."""

import json
import math
import sys
from urllib.error import URLError

import pytest
import torch
from conftest import smooth_images, untrained_pipeline
from diffusers import DDPMScheduler

import evaluate
from fq_ldm import FQLDMPipeline, FQModel
from fq_ldm.diffusion import fast_scheduler
from fq_ldm.evaluation import save_report
from fq_ldm.options import run_script

EXTRACTOR = '''
import torch
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor


class Thumbnail(FeatureExtractorBase):
    """The image in 2 x 2 pixels."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return ("pixels",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "pixels"

    def forward(self, x):
        return (torch.nn.functional.adaptive_avg_pool2d(x.float(), 2).flatten(1),)


register_feature_extractor("thumbnail", Thumbnail)
'''


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    torch.manual_seed(0)
    model = FQModel(
        in_channels=1, sample_size=16, block_out_channels=(8,), norm_num_groups=4, latent_channels=1, num_tokens=8,
        num_vq_embeddings=16, vq_embed_dim=4, spectral_crop=8, diffusion_patch_size=2,
    )  # fmt: skip
    model.initialize_(smooth_images(64, 1, 16, 16))
    folder = tmp_path_factory.mktemp("models") / "vae"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(vae):
    model = FQModel.from_pretrained(vae)
    folder = vae.parent / "pipeline"
    untrained_pipeline(model, 4).save_pretrained(folder)
    return folder


@pytest.fixture
def call(image_folder, tmp_path, tmp_path_factory, monkeypatch, capsys):
    """`call(model, *flags)` runs the script on 8 held-out images: its exit status, output and errors."""
    modules = tmp_path_factory.mktemp("modules")
    (modules / "thumbnail.py").write_text(EXTRACTOR)
    monkeypatch.syspath_prepend(modules)

    def call(model, *flags, channels=1):
        common = f"--dataset {image_folder} --channels {channels} --resolution 16 --validation_size 8 --output_dir out"
        argv = ["evaluate.py", "--model", str(model), *common.split(), *map(str, flags)]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", argv)
        status = 0
        try:
            run_script(evaluate.main)
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def read(tmp_path):
    return json.loads((tmp_path / "out" / "evaluation.json").read_text())


def test_a_vae_without_downloads(vae, call, tmp_path):
    status, output, errors = call(vae)
    assert status == 0, errors
    report = read(tmp_path)
    metrics = report["metrics"]
    assert metrics["images"] == 8 and metrics["bits_per_image"] == 32 and metrics["num_vq_embeddings"] == 16
    assert metrics["psnr"] > 15 and 0 < metrics["ssim"] <= 1 and metrics["ssim"] != metrics["ssim_gaussian"]
    assert report["split"] == "images held out from train" and report["image_size"] == "1x16x16"
    assert "uniform 11x11 window" in report["protocol"]["ssim"] and "lpips" not in report["protocol"]
    assert report["command"].startswith(f"python evaluate.py --model {vae} --dataset")
    usage = report["codebook"]["sorted_usage"]
    assert usage == sorted(usage, reverse=True) and sum(usage) == pytest.approx(1) and len(usage) == 16
    assert sum(report["codebook"]["counts"]) == 8 * 8
    table = (tmp_path / "out" / "evaluation.md").read_text()
    assert f"| PSNR (dB) | {metrics['psnr']:.4g} |" in table and "| images | 8 |" in table
    assert table in output


def test_rfid_and_unit_information_on_training_images(vae, call, tmp_path):
    flags = (
        "--metrics rfid unit_information --feature_extractor_module thumbnail --feature_extractor thumbnail "
        "--reference train --max_images 20 --unit_images 12 --batch_size 7"
    )
    status, _, errors = call(vae, *flags.split())
    assert status == 0, errors
    report = read(tmp_path)
    assert report["split"] == "train" and report["feature_extractor"] == "thumbnail"
    metrics = report["metrics"]
    assert "psnr" not in metrics and "counts" not in report["codebook"]
    assert metrics["images"] == 20 and metrics["unit_information_images"] == 12 and metrics["rfid"] > 0
    information = report["codebook"]["unit_information"]
    assert len(information) == 16 and max(information) == metrics["unit_information_max"] > 0


def test_reconstructions_of_latents_that_are_not_quantized(vae, call, tmp_path):
    flags = ["--metrics", "reconstruction", "spectrum"]
    found = {}
    for quantize in ("true", "false"):
        status, _, errors = call(vae, *flags, "--quantize", quantize)
        assert status == 0, errors
        found[quantize] = read(tmp_path)
        gain = torch.tensor(found[quantize]["spectrum"]["gain_db"])
        metrics = found[quantize]["metrics"]
        assert len(gain) == 8 and metrics["quantized"] is (quantize == "true")
        assert metrics["spectral_deviation_largest_db"] == pytest.approx(gain.abs().max().item(), rel=1e-5)
        assert metrics["spectral_distance_db"] == pytest.approx(gain.square().mean().sqrt().item(), rel=1e-5)
    assert found["false"]["metrics"]["psnr"] > found["true"]["metrics"]["psnr"]
    status, _, _ = call(vae, "--quantize", "false")
    assert status == 0 and "codes_used" not in read(tmp_path)["metrics"]
    status, _, errors = call(vae, "--quantize", "false", "--metrics", "codebook")
    assert status == 2 and "quantize: is needed by the metrics codebook, not false" in errors.splitlines()[-1]


def test_a_pipeline(pipeline, call, tmp_path):
    flags = "--feature_extractor_module thumbnail --feature_extractor thumbnail --num_samples 6".split()
    status, _, errors = call(pipeline, *flags, "--num_inference_steps", 2, "--batch_size", 4)
    assert status == 0, errors
    first = read(tmp_path)["metrics"]
    assert first["images"] == 8 and first["samples"] == 6 and first["kid_subset_size"] == 6 and first["fid"] > 0
    assert first["scheduler"] == "DPMSolverMultistepScheduler" and first["num_inference_steps"] == 2
    assert first["algorithm_type"] == "sde-dpmsolver++"
    assert 0 <= first["precision"] <= 1 and 0 <= first["recall"] <= 1
    assert "FID (thumbnail)" in (tmp_path / "out" / "evaluation.md").read_text()

    status, _, errors = call(pipeline, *flags, "--num_inference_steps", 2, "--batch_size", 6, "--metrics", "fid")
    assert status == 0, errors
    second = read(tmp_path)["metrics"]
    assert second["fid"] == pytest.approx(first["fid"], rel=1e-3) and "kid" not in second

    status, _, errors = call(pipeline, *flags, "--num_inference_steps", 4, "--metrics", "fid")
    assert status == 0, errors
    last = read(tmp_path)["metrics"]
    assert last["scheduler"] == "DDPMScheduler" and "algorithm_type" not in last


def test_samples_guided_by_attention(pipeline, call, tmp_path):
    found = {}
    for scale in ("0", "2"):
        flags = f"--num_samples 6 --num_inference_steps 2 --metrics spectrum --pag_scale {scale}".split()
        status, _, errors = call(pipeline, *flags)
        assert status == 0, errors
        found[scale] = read(tmp_path)["metrics"]
    assert found["2"]["pag_scale"] == 2 and found["2"]["pag_threshold"] == "all" and "pag_scale" not in found["0"]
    assert found["2"]["spectral_distance_db"] != found["0"]["spectral_distance_db"]
    status, _, errors = call(pipeline, *flags[:-1], "-1")
    assert status == 2 and "pag_scale: must not be negative" in errors
    status, _, errors = call(pipeline, *flags[:-2], "--pag_threshold", "0.5")
    assert status == 2 and "with pag_scale=0 it guides none" in errors
    own = FQLDMPipeline.from_pretrained(pipeline, pag_scale=2.0, pag_threshold=1e9)
    own.save_pretrained(tmp_path / "own")
    status, _, errors = call(tmp_path / "own", *flags[:-2])
    assert status == 0, errors
    saved = read(tmp_path)["metrics"]
    assert saved["pag_scale"] == 2 and saved["pag_threshold"] == 1e9
    assert saved["spectral_distance_db"] == pytest.approx(found["2"]["spectral_distance_db"], rel=1e-4)


def test_a_pipeline_at_a_lower_temperature(pipeline, call, tmp_path):
    flags = "--num_samples 6 --num_inference_steps 2 --metrics spectrum --temperature 0.5".split()
    status, _, errors = call(pipeline, *flags)
    assert status == 2 and "temperature: is for a pipeline that was saved with dpm_solver_ode" in errors
    found = {}
    loaded = FQLDMPipeline.from_pretrained(pipeline)
    trained = DDPMScheduler.from_config(loaded.scheduler.config, timestep_spacing="trailing")
    loaded.scheduler = fast_scheduler(trained, "dpmsolver++")
    loaded.save_pretrained(tmp_path / "quiet")
    for temperature in ("1", "0.5"):
        status, _, errors = call(tmp_path / "quiet", *flags[:-1], temperature)
        assert status == 0, errors
        found[temperature] = read(tmp_path)["metrics"]
    assert found["0.5"]["temperature"] == 0.5 and "temperature" not in found["1"]
    assert found["0.5"]["use_exponential_sigmas"] and found["0.5"]["algorithm_type"] == "dpmsolver++"
    assert found["0.5"]["sigma_max"] > found["0.5"]["sigma_min"] > 0
    assert found["0.5"]["spectral_distance_db"] != found["1"]["spectral_distance_db"]
    status, _, errors = call(tmp_path / "quiet", *"--num_samples 6 --num_inference_steps 4 --metrics spectrum".split())
    assert status == 0, errors
    thorough = read(tmp_path)["metrics"]
    assert thorough["scheduler"] == "DDPMScheduler" and not {"algorithm_type", "sigma_max"} & set(thorough)


def test_samples_without_a_network(pipeline, call, tmp_path):
    flags = "--num_samples 6 --neighbour_samples 5 --num_inference_steps 2 --metrics spectrum neighbours".split()
    status, _, errors = call(pipeline, *flags)
    assert status == 0, errors
    report = read(tmp_path)
    metrics = report["metrics"]
    assert metrics["samples"] == 6 and "fid" not in metrics and metrics["near_copies"] in range(6)
    assert 0 < metrics["nearest_distance_smallest"] <= metrics["nearest_distance"] < 1
    assert len(report["spectrum"]["spectrum_of_samples"]) == len(report["spectrum"]["spectrum_of_images"]) == 8
    assert metrics["spectral_distance_db"] > 0
    for picture in ("samples.png", "neighbours.png"):
        assert (tmp_path / "out" / picture).is_file()
    status, _, errors = call(pipeline, *flags, "--reference", "train")
    assert status == 0, errors
    metrics = read(tmp_path)["metrics"]
    assert metrics["nearest_distance"] > 0 and not {"near_copies", "nearest_distance_of_images"} & set(metrics)


@pytest.mark.parametrize(
    "flags, channels, status, message",
    [
        ("", 3, 2, "takes images of 1x16x16, not 3x16x16: give --channels 1 --resolution 16 16"),
        ("--metrics fid", 1, 2, "metrics: fid does not fit"),
        ("--metrics beauty", 1, 2, "invalid choice: 'beauty'"),
        ("--metrics rfid --feature_extractor none", 1, 2, "feature_extractor: 'none' is not registered"),
        (
            "--metrics rfid --feature_extractor_module none",
            1,
            2,
            "feature_extractor_module: cannot be imported (No mod",
        ),
        ("--metrics rfid", 1, 2, "get weights-inception-2015-12-05-6726825d.pth from https://"),
        ("--metrics lpips", 1, 2, "and give it with --lpips_weights FILE"),
        ("--metrics lpips --lpips_weights none", 1, 2, "lpips_weights: there is no file none; get vgg16-397923af.pth"),
        ("--batch_size 0", 1, 2, "batch_size: must be positive, not 0"),
        ("--device abacus", 1, 2, "device: abacus cannot be used"),
    ],
)
def test_mistakes_end_in_one_line(vae, call, monkeypatch, tmp_path, flags, channels, status, message):
    def fail(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("fq_ldm.metrics.fidelity.load_state_dict_from_url", fail)
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", fail)
    found, _, errors = call(vae, *flags.split(), channels=channels)
    lines = [line for line in errors.splitlines() if line.startswith("evaluate.py: error: ")]
    assert found == status and len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_told_first(vae, call, tmp_path):
    (tmp_path / "out").write_text("a file")
    status, _, errors = call(vae)
    assert status == 1 and "output_dir: out cannot be written (" in errors.splitlines()[-1]


def test_numbers_without_end_are_null(tmp_path):
    report = {"model": "m", "split": "s", "dataset": "d", "image_size": "1", "feature_extractor": "f", "command": "c"}
    save_report(tmp_path, {**report, "metrics": {"psnr": math.inf}}, {"codebook": {"usage": [1.0, math.nan]}})
    written = (tmp_path / "evaluation.json").read_text()
    assert json.loads(written, parse_constant=pytest.fail)["codebook"]["usage"] == [1.0, None]


def test_mistakes_about_pipelines_and_folders(pipeline, call, tmp_path):
    status, _, errors = call(pipeline, "--num_inference_steps", 5)
    assert status == 2 and "num_inference_steps: is at most 4, not 5" in errors
    status, _, errors = call(pipeline, "--metrics", "reconstruction")
    assert status == 2 and "a pipeline: give any of fid, kid, prc" in errors
    status, _, errors = call(tmp_path / "none")
    assert (
        status == 1 and "none cannot be loaded (" in errors and "there is no such folder, and no repository" in errors
    )
    (tmp_path / "empty").mkdir()
    status, _, errors = call(tmp_path / "empty")
    assert status == 1 and "holds neither an FQ-VAE (config.json) nor a pipeline (model_index.json)" in errors
    status, _, errors = call(pipeline / "unet")
    assert status == 1 and "unet cannot be loaded (" in errors and "UNet2DModel" in errors
