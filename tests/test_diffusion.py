"""What train_ldm.py learns: views of the latents, targets and the weighting of the loss."""

import pytest
import torch
from conftest import TINY, smooth_images
from diffusers import DDIMScheduler, DDPMScheduler

from fq_ldm import FQModel
from fq_ldm.data import load_images
from fq_ldm.diffusion import (
    build_scheduler,
    build_unet,
    choose_view,
    diffusion_loss,
    encode_images,
    fast_scheduler,
    measure_view_,
    sampling_scheduler,
    start_from_,
)
from fq_ldm.diffusion.deeper import deepen_
from fq_ldm.diffusion.loss import draw_timesteps
from fq_ldm.options import DataConfig, DataError, LDMConfig, UserError
from fq_ldm.spectrum import pack_spectrum


@torch.no_grad()
@pytest.mark.parametrize("layout, patch_size", [("spatial", 2), ("spectral", 1), ("spectral", 4)])
def test_a_new_view_standardises_and_inverts(model, images, layout, patch_size):
    model.set_diffusion_view_(layout, patch_size)
    latents = model.encode(images).latents
    model.measure_diffusion_latents_(latents)
    quantized = model.quantize_latents(latents).latents
    view = model.to_diffusion_latents(quantized)
    assert view.shape[1:] == model.diffusion_latent_shape == (3 * patch_size**2, 8 // patch_size, 12 // patch_size)
    dimensions = (0,) if layout == "spectral" else (0, 2, 3)
    torch.testing.assert_close(view.mean(dimensions), torch.zeros_like(view.mean(dimensions)), atol=1e-4, rtol=0)
    std = view.std(dimensions)
    varies = std > 1e-3  # coefficients that no token holds are always zero
    torch.testing.assert_close(std[varies], torch.ones_like(std[varies]), rtol=2e-2, atol=0)
    torch.testing.assert_close(model.from_diffusion_latents(view), quantized, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["spatial", "spectral"])
def test_unquantized_latents_are_standardised_by_their_own_statistics(model, images, layout):
    model.set_diffusion_view_(layout, 2)
    latents = model.encode(images).latents
    model.measure_diffusion_latents_(latents, quantized=False)
    view = model.to_diffusion_latents(model.project_latents(latents))
    std = view.std((0,) if layout == "spectral" else (0, 2, 3))
    varies = std > 1e-3
    assert varies.any()
    torch.testing.assert_close(std[varies], torch.ones_like(std[varies]), rtol=2e-2, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("layout, patch_size", [("spatial", 1), ("spatial", 2), ("spectral", 1), ("spectral", 4)])
def test_temperature_is_the_same_in_every_view(model, layout, patch_size):
    """White noise is white however it is folded: what is weakened are waves across the image."""
    view = model.diffusion_view
    noise = torch.randn(2, 3, *view.spectral_crop, generator=torch.Generator().manual_seed(0))
    expected = view.temper(noise, 0.5)
    torch.testing.assert_close(view.temper(noise, 1.0), noise)
    model.set_diffusion_view_(layout, patch_size)
    view = model.diffusion_view
    torch.testing.assert_close(view._unfold(view.temper(view._fold(noise), 0.5)), expected)


@torch.no_grad()
def test_spectral_latents_are_packed_coefficients(model, images):
    model.set_diffusion_view_("spectral", 1)
    latents = model.encode(images).latents
    torch.testing.assert_close(model.to_diffusion_latents(latents), pack_spectrum(latents.float()))


@torch.no_grad()
def test_a_chosen_view_is_saved(model, images, tmp_path):
    model.set_diffusion_view_("spectral", 2)
    model.measure_diffusion_latents_(model.encode(images).latents)
    model.save_pretrained(tmp_path)
    loaded = FQModel.from_pretrained(tmp_path)
    assert loaded.diffusion_latent_shape == (12, 4, 6)
    latents = model.quantize_latents(model.encode(images).latents).latents
    assert torch.equal(loaded.to_diffusion_latents(latents), model.to_diffusion_latents(latents))


def test_options_choose_the_view(image_folder):
    torch.manual_seed(0)
    options = {**TINY, "in_channels": 1, "latent_channels": 1, "sample_size": 16, "num_tokens": 8}
    vae = FQModel(**options).eval()
    vae.initialize_(smooth_images(64, 1, 16, 16))
    for options, folded in ((dict(), 1), (dict(latent_patch_size=1), 1), (dict(latent_patch_size=4), 4)):
        choose_view(vae, LDMConfig(vae="vae", **options))
        assert vae.config.diffusion_patch_size == vae.diffusion_view.patch_size == folded
    images = load_images(DataConfig(dataset=str(image_folder), channels=1, resolution=[16], validation_size=8))[0]
    measure_view_(vae, images, "quantized")
    latents = encode_images(vae, torch.stack(list(images)))
    assert latents.shape == (32, 16, 4, 4)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(16), rtol=1e-3, atol=0)
    with pytest.raises(UserError, match="latent_patch_size: diffusion_patch_size 3 must divide both sides"):
        choose_view(vae, LDMConfig(vae="vae", latent_patch_size=3))


@torch.no_grad()
def test_the_unquantized_target_becomes_the_same_tokens(model, images):
    tokens = model.tokenize(images)
    unquantized = model.from_diffusion_latents(encode_images(model, images, "unquantized"))
    assert (model.decode(unquantized).indices == tokens).float().mean() > 0.999  # rounding tips a few
    quantized = model.from_diffusion_latents(encode_images(model, images, "quantized"))
    assert (quantized - unquantized).abs().max() > 0.1
    # What no token holds is left out of both.
    torch.testing.assert_close(model.project_latents(unquantized), unquantized, rtol=1e-4, atol=1e-4)


class Zero(torch.nn.Module):
    """A model that predicts nothing, so that the error is the target itself."""

    def forward(self, sample, timesteps):
        class Output:
            pass

        Output.sample = torch.zeros_like(sample)
        return Output


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights_the_error_of_the_predicted_latents(prediction_type):
    """Against a loop over the images, with the weights min(SNR, 5) in units of the latents (Hang et al. 2023)."""
    scheduler = build_scheduler(LDMConfig(vae="vae", prediction_type=prediction_type))
    latents = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    loss = diffusion_loss(Zero(), scheduler, latents, torch.Generator().manual_seed(0), snr_gamma=5)

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = draw_timesteps(16, 1000, torch.device("cpu"), generator)
    expected = 0.0
    for x, n, t in zip(latents, noise, timesteps, strict=True):
        kept = scheduler.alphas_cumprod[t].item()
        snr = kept / (1 - kept)
        noisy = kept**0.5 * x + (1 - kept) ** 0.5 * n
        # The latents that the prediction 0 stands for: noise 0, or velocity 0.
        predicted = noisy / kept**0.5 if prediction_type == "epsilon" else noisy * kept**0.5
        expected += min(snr, 5) * (predicted - x).square().mean().item() / 16
    assert loss.item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "steps", "tolerance"), [(None, 50, 0.1), (None, 200, 0.01), ("dpmsolver++", 20, 0.05)]
)
@pytest.mark.parametrize(
    ("prediction_type", "beta_schedule"), [("v_prediction", "squaredcos_cap_v2"), ("epsilon", "linear")]
)
def test_few_steps_of_a_saved_schedule_keep_the_spread(
    tmp_path, prediction_type, beta_schedule, kind, steps, tolerance
):
    """Latents that are normal with deviation 10, as low frequencies nearly are, and their exact prediction.

    Cosine steps that start below the last timestep take the unit noise there for noisy latents, and end at 7.9 and 3.1.
    """
    ldm = LDMConfig(vae="vae", prediction_type=prediction_type, beta_schedule=beta_schedule)
    build_scheduler(ldm).save_pretrained(tmp_path)
    saved = DDPMScheduler.from_pretrained(tmp_path)
    scheduler = sampling_scheduler(saved if kind is None else fast_scheduler(saved, kind), steps)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    sample = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        kept = scheduler.alphas_cumprod[t].double()
        noise = (1 - kept).sqrt() * sample / (100 * kept + 1 - kept)
        velocity = (1 - 100) * kept.sqrt() * noise
        sample = scheduler.step(noise if prediction_type == "epsilon" else velocity, t, sample).prev_sample
    assert sample.std().item() == pytest.approx(10, rel=tolerance)


def test_steps_even_in_noise_are_for_sampling_without_noise():
    trained = build_scheduler(LDMConfig(vae="vae", prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2"))
    quiet = fast_scheduler(trained, "dpmsolver++")
    for scheduler in (quiet, fast_scheduler(quiet), sampling_scheduler(DDIMScheduler.from_config(quiet.config), 20)):
        scheduler.set_timesteps(20)
        assert scheduler.config.use_exponential_sigmas
        assert scheduler.sigmas[0].item() == pytest.approx(80) and scheduler.sigmas[-2].item() == pytest.approx(0.03)
        factors = scheduler.sigmas[:-2] / scheduler.sigmas[1:-1]
        torch.testing.assert_close(factors, factors[:1].expand(19))
    assert not fast_scheduler(quiet, "sde-dpmsolver++").config.use_exponential_sigmas
    short = build_scheduler(LDMConfig(vae="vae", beta_start=0.001, beta_end=0.006))  # to a noise of 5
    narrow = fast_scheduler(short, "dpmsolver++")
    assert narrow.config.sigma_max == pytest.approx(narrow.sigmas.max().item()) and 0.03 < narrow.config.sigma_min < 80
    # They begin at the last timestep, where this UNet's prediction of noise says nothing of the latents.
    unstable = build_scheduler(LDMConfig(vae="vae", prediction_type="epsilon", beta_schedule="squaredcos_cap_v2"))
    assert not fast_scheduler(unstable, "dpmsolver++").config.use_exponential_sigmas


@pytest.mark.parametrize("count", [1, 3, 64, 2000])
def test_timesteps_are_spread_and_uniform(count):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_timesteps(count, 1000, torch.device("cpu"), generator) for _ in range(6000 // count)])
    assert drawn.min() >= 0 and drawn.max() <= 999
    if count > 1:
        gaps = drawn.diff(dim=1)
        assert gaps.min() >= 1000 // count and gaps.max() <= -(-1000 // count)
    # One of any hundred timesteps is drawn as often as one of another.
    shares = torch.histc(drawn.float(), bins=10, min=0, max=1000) / drawn.numel()
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.015, rtol=0)


@pytest.mark.parametrize("mean", [0.0, -0.8])
def test_logit_normal_timesteps_lie_around_their_mean(mean):
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_timesteps(64, 1000, torch.device("cpu"), generator, "logit_normal", mean) for _ in range(200)]
    drawn = torch.cat(drawn).double() / 1000
    normal = torch.distributions.Normal(mean, 1.0)
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        expected = torch.sigmoid(normal.icdf(torch.tensor(quantile))).item()
        assert drawn.quantile(quantile).item() == pytest.approx(expected, abs=0.005)
    assert drawn.min() >= 0 and drawn.max() < 1
    with pytest.raises(UserError, match="timestep_logit_mean: is for timestep_sampling logit_normal, not 0.5"):
        LDMConfig(timestep_logit_mean=0.5)


def test_without_min_snr_the_loss_is_the_mean_squared_error():
    scheduler = build_scheduler(LDMConfig(vae="vae"))
    latents = torch.randn(16, 3, 4, 4)
    loss = diffusion_loss(Zero(), scheduler, latents, torch.Generator().manual_seed(0))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, noise.square().mean())


def test_a_unet_of_more_channels_starts_as_the_smaller_one():
    torch.manual_seed(0)
    options = LDMConfig(vae="vae", unet_block_out_channels=[8, 16], unet_attention_levels=[1], unet_layers_per_block=1,
                        unet_attention_head_dim=8, unet_norm_num_groups=4)  # fmt: skip
    trained, unet = build_unet(options, (3, 8, 8)), build_unet(options, (5, 8, 8))
    with torch.no_grad():
        trained.conv_out.bias.add_(1)
    deepen_(unet, trained)
    noisy, timesteps = torch.randn(4, 5, 8, 8), torch.tensor([0, 10, 500, 999])
    made = unet(noisy, timesteps).sample
    torch.testing.assert_close(made[:, :3], trained(noisy[:, :3], timesteps).sample, rtol=1e-4, atol=1e-5)
    assert not made[:, 3:].any()
    (made - noisy).square().mean().backward()  # what is zero, learns
    assert unet.conv_in.weight.grad[:, 3:].any() and unet.conv_out.weight.grad[3:].any()


def test_a_unet_of_other_channels_is_no_start(tmp_path):
    options = LDMConfig(vae="vae", unet_block_out_channels=[8, 16], unet_attention_levels=[1], unet_layers_per_block=1,
                        unet_attention_head_dim=8, unet_norm_num_groups=4)  # fmt: skip
    trained, unet = build_unet(options, (3, 8, 8)), build_unet(options, (5, 8, 8))
    trained.save_pretrained(tmp_path / "unet")
    start_from_(unet, str(tmp_path), 3)
    assert torch.equal(unet.conv_in.weight[:, :3], trained.conv_in.weight)
    for first in (None, 4):
        with pytest.raises(DataError, match="has in_channels 3 instead of 5, out_channels 3 instead of 5"):
            start_from_(unet, str(tmp_path), first)


@pytest.mark.parametrize("layers", [2, 3])
def test_a_deeper_unet_starts_as_the_shallower_one(layers):
    torch.manual_seed(0)
    common = dict(vae="vae", unet_block_out_channels=[8, 16, 24], unet_attention_head_dim=8, unet_norm_num_groups=4,
                  unet_attention_levels=[1])  # fmt: skip
    trained = build_unet(LDMConfig(unet_layers_per_block=1, **common), (3, 8, 8))
    with torch.no_grad():
        for parameter in trained.parameters():  # a trained one has biases
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    unet = build_unet(LDMConfig(unet_layers_per_block=layers, **common), (3, 8, 8))
    deepen_(unet, trained)
    with pytest.raises(ValueError, match="weights too many, class_embedding"):
        deepen_(unet, build_unet(LDMConfig(unet_layers_per_block=1, **common), (3, 8, 8), num_classes=3))
    noisy, timesteps = torch.randn(4, 3, 8, 8), torch.tensor([0, 10, 500, 999])
    before = trained(noisy, timesteps).sample
    torch.testing.assert_close(unet(noisy, timesteps).sample, before, rtol=1e-4, atol=1e-5)
    unet(noisy, timesteps).sample.square().sum().backward()
    last = [
        parameter for name, parameter in unet.named_parameters()
        if name.endswith((".conv2.weight", ".to_out.0.weight")) and not parameter.any()
    ]  # fmt: skip
    assert last and all(parameter.grad.any() for parameter in last)  # and are trained from the first step on
    with torch.no_grad():
        for parameter in last:
            parameter.add_(parameter.grad, alpha=-0.1)
    assert not torch.allclose(unet(noisy, timesteps).sample, before, atol=1e-3)
