"""Training a decoder that paints: by the script, judged by what it leaves."""

import itertools
import json
from functools import partialmethod
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import TINY
from diffusers import DDPMScheduler
from safetensors.torch import load_file
from test_adversarial import NETWORK, network_file  # noqa: F401  (a fixture)
from test_metrics import vgg_file  # noqa: F401  (a fixture)
from test_pipeline import seeds
from test_scripts import LDM_OPTIONS, VAE_OPTIONS, call  # noqa: F401  (a fixture)

import train_ldm
import train_vae
from fq_ldm import FQLDMPipeline, FQModel
from fq_ldm.diffusion import build_unet
from fq_ldm.options import LDMConfig, PaintingConfig, TrainingConfig, UserError
from fq_ldm.spectrum import spectral_resize
from fq_ldm.training.adversary import Adversary, open_discriminator
from fq_ldm.training.painting import make_objective

WEIGHTS = "diffusion_pytorch_model.safetensors"
OPTIONS = {**VAE_OPTIONS, "painter_block_out_channels": [4, 8], "report_to": "none", "random_flip": True}
ADVERSARIAL = dict(
    reconstruction_loss="l1", adversarial_weight=0.1, adversarial_start=0.4, spectral_weight=0.01, latent_noise=0.1,
    decoder_ema_decay=0.9, discriminator_block_out_channels=[4, 8],
)  # fmt: skip


@pytest.fixture
def train(image_folder, call):  # noqa: F811
    def train(output_dir, **options):
        options = {name: value for name, value in {**OPTIONS, **options}.items() if value is not None}
        status, out, err = call(train_vae.main, dataset=image_folder, output_dir=output_dir, **options)
        assert status == 0, err
        return out

    return train


def stops_at(request, stop, step):
    """In place of `StopRequest.agreed`: SIGTERM at that step."""
    return 15 if step == stop else 0


def train_until(train, name, stop, **options):
    """Stopped by SIGTERM at that step: a run of another length would have another schedule."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fq_ldm.training.interruption.StopRequest.agreed", partialmethod(stops_at, stop))
        with pytest.raises(AssertionError):
            train(name, **options)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(adversarial_loss="hinge", adaptive_weight=False, gradient_penalty_weight=0, discriminator_norm="spectral"),
    ],
    ids=["logistic", "hinge"],
)
def test_a_stopped_run_ends_in_the_same_bits(train, tmp_path, changes):
    """Stopped before the discriminator joins (its 2nd of 5 steps), and after that."""
    options = {**ADVERSARIAL, **changes}
    train("whole", max_train_steps=5, checkpointing_steps=5, **options)
    for stop in (1, 4):
        name = f"parts{stop}"
        train_until(train, name, stop, max_train_steps=5, checkpointing_steps=1, **options)
        train(name, max_train_steps=5, checkpointing_steps=1, **options)
        for path in (WEIGHTS, *(f"checkpoints/step_00000005/{x}.safetensors" for x in ("model", "model_1", "ema"))):
            whole, parts = load_file(tmp_path / "whole" / path), load_file(tmp_path / name / path)
            assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole), path


def test_the_discriminator_joins_after_its_share(train, tmp_path):
    options = {**ADVERSARIAL, "adversarial_start": 0.5}
    train("run", max_train_steps=4, checkpointing_steps=1, checkpoints_total_limit=4, **options)
    first, second, third = (load_file(tmp_path / f"run/checkpoints/step_{n:08d}/model.safetensors") for n in (1, 2, 3))
    weights = [name for name in first if name.startswith("layers.")]
    assert weights and all(torch.equal(first[name], second[name]) for name in weights)
    assert not any(torch.equal(second[name], third[name]) for name in weights)


def test_a_decoder_is_trained_on_the_tokens_of_another_model(train, tmp_path):
    train("plain", max_train_steps=2, painter_block_out_channels=None)
    out = train("painted", max_train_steps=3, start_from="plain", **ADVERSARIAL)
    plain, painted = (FQModel.from_pretrained(tmp_path / name) for name in ("plain", "painted"))
    assert painted.config.painter_block_out_channels == [4, 8]
    theirs, ours = plain.state_dict(), painted.state_dict()
    kept = [k for k in ours if not k.startswith("decoder.")]
    assert kept and all(torch.equal(theirs[k], ours[k]) for k in kept)
    images = torch.rand(8, 1, 16, 16) * 2 - 1
    assert torch.equal(plain.tokenize(images), painted.tokenize(images))
    assert "validation: " in out
    again = train("further", max_train_steps=1, start_from="painted", learning_rate=1e-12, **ADVERSARIAL)
    weights = len(painted.decoder.state_dict())
    assert f"start_from: the tokens, and {weights} of the decoder's {weights} weights" in again
    further = FQModel.from_pretrained(tmp_path / "further").state_dict()
    assert all(torch.allclose(further[name], value, atol=1e-6) for name, value in painted.state_dict().items())


def test_a_pipeline_paints_larger_images(train, tmp_path, pipeline):
    """Tokens and decoder of a small image's model, trained further at twice the size, for the UNet of the first."""
    frozen = dict(freeze_tokens=True, decode_unquantized=True, **ADVERSARIAL)
    train("small", max_train_steps=2, **frozen)
    larger = dict(
        resolution=32, convert_images=True, painter_block_out_channels=[4, 4, 8], painter_layers_per_block=[1, 1, 2]
    )
    out = train("large", max_train_steps=2, start_from="small", **larger, **frozen)
    assert "start_from: the tokens, and 32 of the decoder's 48 weights" in out
    small, large = (FQModel.from_pretrained(tmp_path / name) for name in ("small", "large"))
    ldm = LDMConfig(
        unet_block_out_channels=[8], unet_attention_levels=[], unet_attention_head_dim=4, unet_norm_num_groups=4
    )
    unet, scheduler = build_unet(ldm, small.diffusion_latent_shape), pipeline.scheduler
    FQLDMPipeline(small, unet, scheduler, quantize_samples=False).save_pretrained(tmp_path / "pipe")
    images = []
    for given in ({}, dict(vqvae=large)):
        pipe = FQLDMPipeline.from_pretrained(tmp_path / "pipe", **given)
        pipe.set_progress_bar_config(disable=True)
        images.append(pipe(2, 2, seeds(0, 1), output_type="pt").images * 2 - 1)
    assert images[1].shape[-2:] == (32, 32)
    # The same picture, since after so few steps both decoders are nearly linear still.
    low, lowered = spectral_resize(images[0], (4, 4)), spectral_resize(images[1], (4, 4)) / 2
    assert (lowered - low).norm() < 0.1 * low.norm()
    # Not with latents of another deviation, or of another crop.
    large.diffusion_view.std *= 1.1
    with pytest.raises(ValueError, match="vqvae: has other diffusion latents than those that the UNet of .*pipe was"):
        FQLDMPipeline.from_pretrained(tmp_path / "pipe", vqvae=large)
    train("other", max_train_steps=1, num_tokens=4, spectral_crop=4, painter_block_out_channels=[4, 4, 8])
    other = FQModel.from_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="train it with train_vae.py --start_from"):
        FQLDMPipeline.from_pretrained(tmp_path / "pipe", vqvae=other)


def test_only_what_is_new_is_trained(train, tmp_path):
    """A decoder for larger images that starts as the smaller one, enlarged, and learns its last octave; resumed too."""
    frozen = dict(freeze_tokens=True, decode_unquantized=True, **ADVERSARIAL)
    train("small", max_train_steps=2, **frozen)
    larger = dict(
        resolution=32, convert_images=True, painter_block_out_channels=[4, 4, 8], painter_layers_per_block=[1, 1, 2],
        painter_outputs=2, painter_upsampling="bilinear_last", painter_equalizer=True, start_from="small",
        freeze_taken=True, max_train_steps=4, **frozen,
    )  # fmt: skip
    train("whole", **larger)
    train_until(train, "parts", 2, **larger)
    train("parts", **larger)
    small, whole, parts = (load_file(tmp_path / name / WEIGHTS) for name in ("small", "whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    out = {"decoder.norm_out": "decoder.smaller_out.0.norm_out", "decoder.conv_out": "decoder.smaller_out.0.conv_out"}
    for name in (name for name in small if name.startswith("decoder.")):
        taken = name.replace(*next(((old, new) for old, new in out.items() if name.startswith(old)), ("", "")))
        assert torch.equal(whole[taken], small[name]), taken
    assert whole["decoder.conv_out.weight"].any()
    gain = whole["equalizer.gain"].flatten()
    assert gain[0] == 1 != gain[1:].max()


def test_a_unet_is_trained_beside_the_decoder(train, call, image_folder, tmp_path):  # noqa: F811
    """On the tokens as they start, which are the same in a model of one step."""
    frozen = dict(freeze_tokens=True, decode_unquantized=True, reconstruction_loss="l1")
    train("tokens", max_train_steps=1, **frozen)
    train("painted", max_train_steps=3, **frozen)
    status, _, err = call(
        train_ldm.main, dataset=image_folder, vae="tokens", output_dir="pipe", target="unquantized",
        quantize_samples=False, max_train_steps=1, report_to="none", **LDM_OPTIONS,
    )  # fmt: skip
    assert status == 0, err
    painted = FQModel.from_pretrained(tmp_path / "painted")
    pipe = FQLDMPipeline.from_pretrained(tmp_path / "pipe", vqvae=painted)
    assert pipe.vqvae is painted


LEARNT = dict(
    latent_channels=3, learnt_channels=2, reader_width=8, reader_layers=1, decode_unquantized=True, latent_noise=0.1,
    learnt_noise=0.3, reconstruction_loss="l1",
)  # fmt: skip


def held(channels: int) -> dict:
    """Tokens for all numbers of so many channels of the options' crop."""
    return dict(num_tokens=channels * OPTIONS["spectral_crop"] ** 2 // 4, vq_embed_dim=4)


def test_learnt_channels_from_images_to_a_pipeline(train, call, image_folder, tmp_path):  # noqa: F811
    """Channels are learnt beside a linear coder's, tokens are found in them, and a UNet of the linear ones goes on."""
    train("linear", max_train_steps=1, freeze_tokens=True, decode_unquantized=True, **held(1))
    common = dict(
        dataset=image_folder, target="unquantized", quantize_samples=False, max_train_steps=1, report_to="none"
    )
    status, _, err = call(train_ldm.main, vae="linear", output_dir="first", **common, **LDM_OPTIONS)
    assert status == 0, err
    options = {**LEARNT, **held(3)}
    train("learnt", max_train_steps=4, start_from="linear", checkpointing_steps=4, decoder_ema_decay=0.5, **options)
    linear, learnt = (FQModel.from_pretrained(tmp_path / name).eval() for name in ("linear", "learnt"))
    assert torch.equal(learnt.color_transform, linear.color_transform)
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        view = learnt.to_diffusion_latents(learnt.encode(images).latents)
        torch.testing.assert_close(
            view[:, :4], linear.to_diffusion_latents(linear.encode(images).latents), rtol=0.05, atol=0.05
        )
        assert learnt.tokenize(images).shape == (8, options["num_tokens"]) and view[:, 4:].std() > 0.3

    # The decoder goes on; codes and learnt channels stay bit for bit.
    def same(name):
        further = load_file(tmp_path / name / WEIGHTS)
        return {k for k, v in load_file(tmp_path / "learnt" / WEIGHTS).items() if torch.equal(v, further[k])}

    train("further", max_train_steps=2, start_from="learnt", freeze_tokens=True, **options)
    changed = set(learnt.state_dict()) - same("further")
    assert all(name.startswith("decoder.") for name in changed) and "decoder.conv_in.weight" in changed
    # Or they learn on, beside the same linear ones, and tokens are found in what they are now.
    train("on", max_train_steps=2, start_from="learnt", **options, learnt_scale=0.3)
    changed = set(learnt.state_dict()) - same("on")
    assert {"decoder.conv_in.weight", "encoder.conv_in.weight", "quantize.codebook.entries"} <= changed
    with torch.no_grad():
        on = FQModel.from_pretrained(tmp_path / "on").eval()
        latents = [vae.encode(images).latents for vae in (learnt, on)]
        view = on.to_diffusion_latents(latents[1])
    assert torch.equal(latents[0][:, :1], latents[1][:, :1]) and not torch.equal(latents[0], latents[1])
    assert view[:, :4].std() > 0.5 and view[:, 4:].std() < 0.5

    further = dict(vae="learnt", start_from="first", linear_teacher="first", output_dir="second", **common)
    further |= dict(save_scheduler="dpm_solver_ode", learnt_temperature=0.5)
    status, _, err = call(train_ldm.main, **further, **LDM_OPTIONS)
    assert status == 0, err
    pipe = FQLDMPipeline.from_pretrained(tmp_path / "second")
    assert pipe.unet.config.in_channels == 12
    assert pipe(2, 2, torch.Generator().manual_seed(0), output_type="pt").images.shape == (2, 1, 16, 16)
    noise = torch.randn(2, *pipe.vqvae.diffusion_latent_shape, generator=torch.Generator().manual_seed(0))
    weak = torch.cat([noise[:, :4], 0.5 * noise[:, 4:]], dim=1)
    cool, same, warm = (
        pipe(2, 2, latents=latents, output_type="pt", **options).images
        for latents, options in ((noise, {}), (weak, dict(learnt_temperature=1)), (noise, dict(learnt_temperature=1)))
    )
    assert torch.equal(cool, same) and not torch.equal(cool, warm)
    with pytest.raises(ValueError, match="learnt_temperature is for an FQ-VAE with learnt channels, and this one has"):
        FQLDMPipeline.from_pretrained(tmp_path / "first")(2, 2, learnt_temperature=0.5)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)  # whose noise makes that of the start forgotten
    plain, same = (
        pipe(2, 2, torch.Generator().manual_seed(0), latents=noise, output_type="pt", learnt_temperature=given).images
        for given in (None, 1)
    )
    assert torch.equal(plain, same)
    with pytest.raises(ValueError, match="learnt_temperature is for schedulers without noise in their steps"):
        pipe(2, 2, learnt_temperature=0.5)
    with pytest.raises(ValueError, match="learnt_temperature must be above 0"):
        pipe(2, 2, learnt_temperature=0)

    for changes, message in (
        (dict(vae="linear"), "linear_teacher: is for an FQ-VAE with learnt channels, which linear has not"),
        (dict(linear_teacher="learnt"), "linear_teacher: no UNet can be loaded from learnt"),
        (
            dict(linear_teacher="second"),
            "linear_teacher: the latents of second, 12 channels, are not the 4 linear",
        ),
        (dict(beta_schedule="squaredcos_cap_v2"), "linear_teacher: was trained with beta_schedule linear"),
        (dict(max_train_images=12), "linear_teacher: the latents of first, 4 channels, are not the 4"),
    ):
        status, _, err = call(train_ldm.main, **LDM_OPTIONS | further | dict(output_dir="third") | changes)
        assert status in (1, 2) and message in err.splitlines()[-1] and "Traceback" not in err, err


def test_a_stopped_run_of_learnt_channels_ends_in_the_same_bits(train, tmp_path):
    options = {**LEARNT, **held(3), "decoder_ema_decay": 0.5}
    train("whole", max_train_steps=3, checkpointing_steps=3, **options)
    train_until(train, "parts", 1, max_train_steps=3, checkpointing_steps=1, **options)
    train("parts", max_train_steps=3, checkpointing_steps=1, **options)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    options |= dict(start_from="whole", max_train_steps=3, seed=1)  # as does one in which they learn on
    train("further", checkpointing_steps=3, **options)
    train_until(train, "stopped", 1, checkpointing_steps=1, **options)
    train("stopped", checkpointing_steps=1, **options)
    assert same_weights(tmp_path / "further", tmp_path / "stopped")


def same_weights(*folders) -> bool:
    first, second = (load_file(folder / WEIGHTS) for folder in folders)
    return all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(learnt_noise=0.1), "learnt_noise: is for learnt_channels"),
        ({**LEARNT, **held(3), "freeze_tokens": True}, "freeze_tokens: would leave learnt_channels as they start"),
        ({**LEARNT, **held(3), "decode_unquantized": False}, "learnt_channels: are learnt with a decoder"),
        ({**LEARNT, **held(1)}, "with learnt_channels tokens must hold all"),
        (dict(adversarial_start=1.0), "adversarial_start: must be a share of the run, in 0 .. 1 and before its end"),
        (dict(decode_unquantized=True), "decode_unquantized: would leave the codebook untrained: give freeze_tokens"),
        (dict(adversarial_weight=-1), "adversarial_weight: must not be negative, not -1.0"),
        (dict(freeze_taken=True), "freeze_taken: keeps what start_from gives: give that too, not True"),
        (dict(start_from="nowhere"), "start_from: no FQ-VAE can be loaded from nowhere"),
        (dict(painter_block_out_channels=[4, 8, 8]), "smallest size that holds the spectral crop"),
        (dict(adversarial_weight=1, discriminator_block_out_channels=[4, 4, 4, 4, 4]),
         "discriminator_block_out_channels: halve the image each: images of (16, 16) allow 4, not 5 numbers"),
        (dict(latent_noise=0.1, compile=True), "compile: does not go with a decoder that is trained to paint"),
        (dict(adversarial_weight=1, quantizer="sq", num_tokens=16, spectral_crop=None, vq_embed_dim=None,
              painter_block_out_channels=None), "has an objective of its own"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_in_one_line(call, image_folder, options, message):  # noqa: F811
    options = {k: v for k, v in {**OPTIONS, **options}.items() if v is not None}
    status, _, err = call(train_vae.main, dataset=image_folder, output_dir="out", max_train_steps=1, **options)
    assert status in (1, 2) and message in err and len(err.strip().splitlines()) == 1


def test_a_spoilt_painting_teaches_the_discriminator_nothing():
    training = TrainingConfig(output_dir="out")
    painting = PaintingConfig(adversarial_weight=1.0, discriminator_block_out_channels=[4, 8])
    adversary = Adversary(Accelerator(cpu=True), painting, training, open_discriminator(painting, channels=3))
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def weights():
        return [parameter.detach().clone() for parameter in adversary.discriminator.parameters()]

    before = weights()
    adversary.train(images, torch.full_like(images, torch.nan))
    assert all(map(torch.equal, before, weights())) and not adversary.optimizer.state
    adversary.train(images, -images)
    assert not all(map(torch.equal, before, weights())) and all(weight.isfinite().all() for weight in weights())


@pytest.mark.parametrize("opponent", ["adversarial_weight", "projected_weight"])
def test_batches_are_not_added_up_in_fp16_beside_a_discriminator(opponent):
    training = TrainingConfig(output_dir="out", gradient_accumulation_steps=2)
    painting = PaintingConfig(**{opponent: 1.0}, discriminator_block_out_channels=[4])
    with pytest.raises(UserError, match="gradient_accumulation_steps: does not go with a discriminator in fp16"):
        discriminator = open_discriminator(painting, channels=3)
        make_objective(SimpleNamespace(mixed_precision="fp16"), FQModel(**TINY), discriminator, painting, training)


def test_lpips_joins_the_loss(train, vgg_file, tmp_path):  # noqa: F811
    out = train("run", max_train_steps=1, lpips_weight=1.0, lpips_weights=vgg_file, logging_steps=1)
    assert "lpips_weight: 1.0" in out and (tmp_path / "run" / WEIGHTS).is_file()


def test_lpips_without_its_weights_is_one_line(call, image_folder):  # noqa: F811
    options = {**OPTIONS, "lpips_weight": 1.0, "lpips_weights": "none.pth"}
    status, _, err = call(train_vae.main, dataset=image_folder, output_dir="out", max_train_steps=1, **options)
    assert status == 2 and "lpips_weights: there is no file none.pth" in err and len(err.strip().splitlines()) == 1


def test_what_a_network_sees_joins_the_loss(train, network_file, tmp_path):  # noqa: F811
    """Stopped and gone on with, in the same bits: of the decoder and of the heads."""
    options = dict(
        ADVERSARIAL, adversarial_start=0, perceptual_weight=1.0, projected_weight=0.5, perceptual_network=NETWORK,
        perceptual_network_weights=network_file, resolution=32, convert_images=True, max_train_steps=3,
        painter_block_out_channels=[4, 4, 8], painter_layers_per_block=[1, 1, 1], checkpointing_steps=1,
    )  # fmt: skip
    train("whole", **options)
    train_until(train, "parts", 1, **options)
    start = load_file(tmp_path / "parts" / "checkpoints" / "step_00000001" / "model_1.safetensors")
    train("parts", **options)
    last = "checkpoints/step_00000003"
    for path in (WEIGHTS, f"{last}/model.safetensors", f"{last}/model_2.safetensors", f"{last}/model_1.safetensors"):
        whole, parts = load_file(tmp_path / "whole" / path), load_file(tmp_path / "parts" / path)
        assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole), path
    assert torch.equal(start["heads.0.mixture"], whole["heads.0.mixture"])
    assert not torch.equal(start["heads.0.layers.4.bias"], whole["heads.0.layers.4.bias"])
    alone = dict(adversarial_weight=0)
    train("distance", **{**options, **alone, "projected_weight": 0})
    train("heads", **{**options, **alone, "perceptual_weight": 0})
    neither = dict(perceptual_weight=0, projected_weight=0, perceptual_network=None, perceptual_network_weights=None)
    train("neither", **{**options, **alone, **neither})
    names = ("distance", "heads", "neither")
    weights = [load_file(tmp_path / name / WEIGHTS)["decoder.conv_out.weight"] for name in names]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(weights, 2))


def test_a_network_that_cannot_see_is_one_line(call, image_folder, network_file):  # noqa: F811
    for options, message in (
        (dict(projected_weight=0.5, perceptual_network=NETWORK, perceptual_network_weights=network_file),
         "perceptual_network: test_efficientnet does not see images of (16, 16) at 4 sizes of 2 pixels and more"),
        (dict(perceptual_weight=1.0, perceptual_network="eyes"), "perceptual_network: timm has no network eyes"),
        (dict(perceptual_network="eyes"), "perceptual_network: is for a perceptual_weight or a projected_weight above"),
    ):  # fmt: skip
        options = {**OPTIONS, **options}
        status, _, err = call(train_vae.main, dataset=image_folder, output_dir="out", max_train_steps=1, **options)
        assert status == 2 and message in err and len(err.strip().splitlines()) == 1


def test_a_discriminator_goes_on(train, call, image_folder, tmp_path):  # noqa: F811
    options = {**ADVERSARIAL, "adversarial_start": 0}
    train("first", max_train_steps=2, **options)
    file = tmp_path / "first" / "discriminator.safetensors"
    still = dict(start_from="first", discriminator_learning_rate=1e-12, max_train_steps=1, **options)
    train("second", discriminator_from=file, **still)
    train("anew", **still)
    first, second, anew = (load_file(tmp_path / name / file.name) for name in ("first", "second", "anew"))
    assert all(torch.allclose(first[name], second[name], rtol=0, atol=1e-9) for name in first)
    assert not any(torch.equal(first[name], anew[name]) for name in first)
    for changes, message in (
        (dict(discriminator_from="none"), "discriminator_from: none holds no such discriminator (No such file"),
        (dict(discriminator_block_out_channels=[8, 8]), "first/discriminator.safetensors holds no such "),
        (dict(adversarial_weight=0), "discriminator_from: is for an adversarial_weight above 0, not first/"),
    ):
        wrong = {**OPTIONS, **options, "discriminator_from": "first/discriminator.safetensors", **changes}
        status, _, err = call(train_vae.main, dataset=image_folder, output_dir="out", max_train_steps=1, **wrong)
        assert status in (1, 2) and message in err and len(err.strip().splitlines()) == 1


def test_other_tokens_are_refused_in_one_line(train, call, image_folder):  # noqa: F811
    train("plain", max_train_steps=1)
    for change, said in ((dict(num_tokens=10), "num_tokens 8, not 10"), (dict(norm_num_groups=2), "groups 4, not 2")):
        options = {**OPTIONS, **change, "start_from": "plain"}
        status, _, err = call(train_vae.main, dataset=image_folder, output_dir="out", max_train_steps=1, **options)
        assert status == 2 and said in err and len(err.strip().splitlines()) == 1


def test_nothing_left_to_train_is_one_line(train, call, image_folder):  # noqa: F811
    train("small", max_train_steps=1)
    options = {**OPTIONS, "start_from": "small", "freeze_taken": True}
    status, _, err = call(train_vae.main, dataset=image_folder, output_dir="out", max_train_steps=1, **options)
    assert status == 2 and "freeze_taken: small gives the decoder's last layer, where losses are weighed" in err
    assert len(err.strip().splitlines()) == 1
    options["painter_block_out_channels"] = [4, 4]
    status, _, err = call(train_vae.main, dataset=image_folder, output_dir="out", max_train_steps=1, **options)
    assert status == 2 and "freeze_taken: small gives nothing that this decoder could keep" in err


def test_samples_that_are_not_snapped(pipeline, tmp_path):
    snapped = pipeline(2, 2, seeds(0, 1), output_type="pt").images
    kept = FQLDMPipeline(pipeline.vqvae, pipeline.unet, pipeline.scheduler, quantize_samples=False)
    kept.set_progress_bar_config(disable=True)
    images = kept(2, 2, seeds(0, 1), output_type="pt").images
    assert not torch.equal(images, snapped)
    kept.save_pretrained(tmp_path)
    loaded = FQLDMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded(2, 2, seeds(0, 1), output_type="pt").images, images)
    # An index from before there was a choice
    path = tmp_path / "model_index.json"
    index = json.loads(path.read_text())
    del index["quantize_samples"]
    path.write_text(json.dumps(index))
    loaded = FQLDMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded(2, 2, seeds(0, 1), output_type="pt").images, snapped)
