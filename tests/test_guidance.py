"""Guidance by attention; that of classes alone is in test_classes."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention, PAGIdentitySelfAttnProcessor2_0
from test_pipeline import seeds

from fq_ldm import FQLDMPipeline
from fq_ldm.pipelines.guidance import Guidance, has_attention

ALPHAS = DDPMScheduler().alphas_cumprod


def attending_unet(classes: int = 0, levels: int = 1) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=(8, 12), in_channels=3, out_channels=3, block_out_channels=(8,) * levels, layers_per_block=1,
        down_block_types=("AttnDownBlock2D",) * levels, up_block_types=("AttnUpBlock2D",) * levels, norm_num_groups=4,
        attention_head_dim=4, num_class_embeds=classes + 1 if classes else None,
    ).eval()  # fmt: skip


@pytest.fixture
def attending(pipeline):
    pipeline.register_modules(unet=attending_unet())
    return pipeline


@torch.no_grad()
def test_it_leads_away_from_what_each_place_alone_would_predict():
    unet, latents, t = attending_unet(), torch.randn(2, 3, 8, 12), torch.tensor(500)
    plain = unet(latents, t).sample
    attention = {m: m.processor for m in unet.modules() if isinstance(m, Attention)}
    for module in attention:
        module.set_processor(PAGIdentitySelfAttnProcessor2_0())  # of diffusers, for the second half of a batch
    alone = unet(torch.cat([latents, latents]), t).sample[2:]
    for module, processor in attention.items():
        module.set_processor(processor)
    assert (plain - alone).abs().max() > 1e-3
    for scale in (0.0, 0.5, 3.0):
        guided = Guidance(unet, ALPHAS, pag_scale=scale)(latents, t)
        torch.testing.assert_close(guided, plain + scale * (plain - alone), rtol=1e-4, atol=1e-5)
    assert torch.equal(unet(latents, t).sample, plain)  # it attends as before


@torch.no_grad()
def test_of_one_place_attention_has_nothing_to_say():
    unet, latents, t = attending_unet(), torch.randn(2, 3, 1, 1), torch.tensor(500)
    torch.testing.assert_close(Guidance(unet, ALPHAS, pag_scale=5.0)(latents, t), unet(latents, t).sample)


@torch.no_grad()
def test_guidance_of_classes_and_of_attention_add_up():
    unet, latents, t = attending_unet(classes=3), torch.randn(2, 3, 8, 12), torch.tensor(500)
    labels = torch.tensor([0, 2])

    def guided(scale, pag_scale):
        return Guidance(unet, ALPHAS, guidance_scale=scale, pag_scale=pag_scale)(latents, t, labels)

    by_attention = guided(1.0, 2.0) - guided(1.0, 0.0)
    assert by_attention.abs().max() > 1e-3
    torch.testing.assert_close(guided(3.0, 2.0) - guided(3.0, 0.0), by_attention, rtol=1e-3, atol=1e-5)


def test_only_within_its_interval(attending):
    def sample(**options):
        return attending(2, 4, seeds(0, 1), output_type="pt", **options).images

    plain = sample()
    assert torch.equal(sample(pag_scale=3.0, pag_interval=(0.999, 1.0)), plain)
    batches = []
    attending.unet.register_forward_pre_hook(lambda module, args: batches.append((len(args[0]), int(args[1]))))
    assert not torch.equal(sample(pag_scale=3.0, pag_interval=(0.2, 0.6)), plain)
    assert len(batches) == 4 and all(size == (4 if 200 <= t <= 600 else 2) for size, t in batches)


@torch.no_grad()
def test_images_that_attention_changes_much_are_left_as_they_are():
    unet, latents = attending_unet(classes=3), torch.randn(4, 3, 8, 12)
    labels, (first, then) = torch.tensor([0, 1, 2, 0]), torch.tensor([700, 400])

    def guided(threshold, labels, latents, scale=2.0):
        options = dict(pag_scale=scale, pag_threshold=threshold, pag_channels=slice(1, None))
        guide = Guidance(unet, ALPHAS, 3.0, **options)
        return [guide(latents, t, labels) for t in (first, then)], guide.attention_change

    (all_first, all_then), change = guided(math.inf, labels, latents)
    (none_first, none_then), _ = guided(math.inf, labels, latents, scale=0.0)
    noise = ((1 - ALPHAS[700]) / ALPHAS[700]).sqrt()  # times the latents
    mean_square = ((all_first - none_first) / 2)[:, 1:].square().mean((1, 2, 3))
    torch.testing.assert_close(change, mean_square * noise**1.25, rtol=1e-3, atol=0)
    threshold = change.sort().values[1:3].mean().item()
    (some_first, some_then), _ = guided(threshold, labels, latents)
    chosen = (change < threshold).view(-1, 1, 1, 1)
    assert chosen.sum() == 2
    torch.testing.assert_close(some_first, torch.where(chosen, all_first, none_first), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(some_then, torch.where(chosen, all_then, none_then), rtol=1e-4, atol=1e-5)
    (alone_first, alone_then), _ = guided(threshold, labels[1:2], latents[1:2])
    torch.testing.assert_close(some_first[1:2], alone_first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(some_then[1:2], alone_then, rtol=1e-4, atol=1e-5)


def test_a_guided_step_calls_the_unet_once(attending):
    """With what is compared beside what is predicted: all at first, and then those below the threshold."""
    attending(4, 6, seeds(*range(4)), output_type="pt", pag_scale=2.0)
    threshold = attending.attention_change.sort().values[0].item() * 1.001  # one is below
    batches = []
    attending.unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    attending(4, 6, seeds(*range(4)), output_type="pt", pag_scale=2.0, pag_threshold=threshold)
    guided = [size for size in batches if size > 4]
    assert len(batches) == 6 and guided == [8] + [5] * (len(guided) - 1) and len(guided) > 2


def test_a_pipeline_is_saved_with_its_guidance(attending, tmp_path):
    def sample(pipeline, **options):
        return pipeline(4, 5, seeds(*range(4)), output_type="pt", **options).images

    plain = sample(attending)
    assert attending.attention_change is None
    every = sample(attending, pag_scale=3.0)
    assert attending.attention_change.shape == (4,)
    threshold = attending.attention_change.median().item() * 1.001  # two are below
    some = sample(attending, pag_scale=3.0, pag_threshold=threshold)
    assert sorted(torch.equal(a, b) for a, b in zip(some, plain, strict=True)) == [False, False, True, True]
    attending.save_pretrained(tmp_path)
    loaded = FQLDMPipeline.from_pretrained(tmp_path, pag_scale=3.0, pag_threshold=threshold)
    loaded.save_pretrained(tmp_path)
    loaded = FQLDMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(sample(loaded), some)
    torch.testing.assert_close(sample(loaded, pag_threshold=math.inf), every)
    torch.testing.assert_close(sample(loaded, pag_scale=0.0), plain)


def test_another_unet_is_not_guided_as_the_one_before(attending, tmp_path):
    attending = FQLDMPipeline.from_pipe(attending, pag_scale=2.0, pag_threshold=0.5)
    same = FQLDMPipeline.from_pipe(attending).config
    other = FQLDMPipeline.from_pipe(attending, unet=attending_unet()).config
    assert (same.pag_scale, same.pag_threshold) == (2.0, 0.5)
    assert (other.pag_scale, other.pag_threshold) == (0.0, None)
    attending.save_pretrained(tmp_path)
    given = FQLDMPipeline.from_pretrained(tmp_path, unet=attending_unet()).config
    assert (given.pag_scale, given.pag_threshold) == (0.0, None)
    assert FQLDMPipeline.from_pretrained(tmp_path, unet=attending_unet(), pag_scale=1.0).config.pag_scale == 1.0


def test_under_autocast(attending):
    attending(2, 5, seeds(0, 1), output_type="pt", pag_scale=2.0)
    threshold = attending.attention_change.mean().item()
    with torch.autocast("cpu", torch.bfloat16):
        images = attending(2, 5, seeds(0, 1), output_type="pt", pag_scale=2.0, pag_threshold=threshold).images
    assert images.isfinite().all()


def test_an_image_does_not_depend_on_its_batch(attending):
    attending(2, 5, seeds(5, 6), output_type="pt", pag_scale=2.0)
    change = attending.attention_change
    threshold = change.mean().item()
    both = attending(2, 5, seeds(5, 6), output_type="pt", pag_scale=2.0, pag_threshold=threshold).images
    alone = attending(1, 5, seeds(6), output_type="pt", pag_scale=2.0, pag_threshold=threshold).images
    torch.testing.assert_close(attending.attention_change, change[1:], rtol=1e-4, atol=0)
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


def test_attention_is_whole_again_where_a_step_fails():
    unet = attending_unet()
    before = [m.processor for m in unet.modules() if isinstance(m, Attention)]
    with pytest.raises(RuntimeError):
        Guidance(unet, ALPHAS, pag_scale=1.0)(torch.randn(2, 4, 8, 12), torch.tensor(500))
    assert [m.processor for m in unet.modules() if isinstance(m, Attention)] == before


def test_wrong_scales_and_intervals(attending, pipeline, model):
    for interval in ((0.5, 1.5), (0.2, 0.4, 0.6), (0.6, 0.2)):
        with pytest.raises(ValueError, match="pag_interval must be two shares of the noise in 0 .. 1, in order, not"):
            attending(1, 2, pag_scale=1.0, pag_interval=interval)
    for scale in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="pag_scale must be at least 0, which is for none, not"):
            attending(1, 2, pag_scale=scale)
    for threshold in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="pag_threshold must be above 0, and infinite to guide all images, not"):
            attending(1, 2, pag_scale=1.0, pag_threshold=threshold)
        with pytest.raises(ValueError, match="pag_threshold must be above 0"):
            FQLDMPipeline(model, attending.unet, attending.scheduler, pag_threshold=threshold)
    with pytest.raises(ValueError, match="pag_threshold says whom attention guides, and with"):
        attending(1, 2, pag_threshold=0.5)
    with pytest.raises(ValueError, match="to guide every image give None, not infinity"):
        FQLDMPipeline(model, attending.unet, attending.scheduler, pag_threshold=math.inf)
    unattending = UNet2DModel(
        sample_size=(8, 12), in_channels=3, out_channels=3, block_out_channels=(8,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4, add_attention=False,
    )  # fmt: skip
    assert has_attention(attending.unet) and not has_attention(unattending)
    with pytest.raises(ValueError, match="pag_scale is for a UNet with attention, and this one has none"):
        FQLDMPipeline(model, unattending, pipeline.scheduler)(1, 2, pag_scale=1.0)
    with pytest.raises(ValueError, match="pag_scale is for a UNet with attention, and this one has none"):
        FQLDMPipeline(model, unattending, pipeline.scheduler, pag_scale=1.0)
