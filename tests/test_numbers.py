"""Numbers that are not finite, and half precision, stay where they belong."""

import pytest
import torch
from conftest import TINY, smooth_images

from fq_ldm import BaselineModel, FQModel
from fq_ldm.options import TrainingConfig
from fq_ldm.quantization import Codebook
from fq_ldm.training.loop import train
from fq_ldm.training.setup import make_accelerator, make_loader


def poisoned(images, value):
    images = images.clone()
    images[0, 0, 0, 0] = value
    return images


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("anchors", ["closest", "random", "probabilistic", "none"])
def test_the_codebook_ignores_a_batch_with_a_number_that_is_not_finite(value, anchors):
    codebook = Codebook(16, 4, anchors=anchors)
    tokens = torch.randn(8, 10, 4, generator=torch.Generator().manual_seed(0))
    codebook.initialize_(tokens.flatten(0, 1))
    codebook.usage[3] = 0  # starving: a step of equations 6-10 would move it
    before = {name: state.clone() for name, state in codebook.state_dict().items()}
    codebook.train().quantize(poisoned(tokens.unsqueeze(1), value).squeeze(1))
    for name, state in codebook.state_dict().items():
        assert torch.equal(state, before[name]), name
    codebook.quantize(tokens)
    assert not torch.equal(codebook.usage, before["usage"])


@pytest.mark.parametrize("quantizer", ["codebook", "ema", "sq", "residual", "simvq", "fsq"])
def test_no_codebook_becomes_nan_from_a_bad_image(quantizer):
    torch.manual_seed(0)
    if quantizer == "codebook":
        model = FQModel(**{**TINY, "sample_size": 8})
    else:
        options = {k: TINY[k] for k in ("in_channels", "block_out_channels", "norm_num_groups", "num_vq_embeddings")}
        model = BaselineModel(**options, sample_size=8, num_tokens=16, quantizer=quantizer)
    images = smooth_images(64, 3, 8, 8)
    model.initialize_(images)
    model.train()(poisoned(images, float("nan")))
    for name, state in model.state_dict().items():
        assert state.isfinite().all(), name


@pytest.mark.parametrize("tokens", ["interleaved", "paper"])
def test_autocast_never_reaches_the_fourier_transform(monkeypatch, tokens):
    options = TINY if tokens == "interleaved" else {**TINY, "vq_embed_dim": None, "latent_channels": 2}
    model = FQModel(**{**options, "tokens": tokens})
    images = smooth_images(64, 3, *model.sample_size)
    model.initialize_(images)
    seen = []
    for name in ("rfft2", "irfft2"):
        transform = getattr(torch.fft, name)

        def watched(x, *args, transform=transform, **kwargs):
            seen.append(x.dtype)
            assert not torch.is_autocast_enabled("cpu")
            return transform(x, *args, **kwargs)

        monkeypatch.setattr(torch.fft, name, watched)
    with torch.autocast("cpu", torch.bfloat16):
        output = model.train()(images)
        loss, _ = model.loss(images, output)
    loss.backward()
    assert seen and set(seen) <= {torch.float32, torch.complex64}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_overflows_of_fp16_are_the_scalers_business(tmp_path, monkeypatch):
    """A fake scale, large enough to overflow at first: the scaler skips steps and shrinks it; the run goes on."""
    config = TrainingConfig(
        output_dir=str(tmp_path), max_train_steps=40, train_batch_size=4, report_to="none", lr_warmup_steps=0,
        checkpointing_steps=1000, learning_rate=0.1,
    )  # fmt: skip
    accelerator = make_accelerator(config)
    scaler = accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    monkeypatch.setattr(
        accelerator, "unscale_gradients", lambda optimizer=None: scaler.unscale_(accelerator._optimizers[0].optimizer)
    )
    model = torch.nn.Linear(3, 1)
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def compute_loss(prepared, batch, generator):
        return (prepared(batch) - 100).square().mean(), {}

    before = compute_loss(model, data, None)[0].item()
    progress = train(accelerator, config, model, make_loader(data, config), compute_loss, lambda step: {})
    assert progress.step == 40 and progress.skipped == 0
    assert scaler.get_scale() < 2.0**127
    assert all(p.isfinite().all() for p in model.parameters())
    assert compute_loss(model, data, None)[0].item() < before
