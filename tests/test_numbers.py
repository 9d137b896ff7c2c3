"""Numbers that are not finite, and half precision, stay where they belong."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, smooth_images

from fq_ldm import BaselineModel, FQModel
from fq_ldm.options import DataError, TrainingConfig
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


@pytest.mark.parametrize("tokens", ["bank", "interleaved", "paper"])
def test_autocast_never_reaches_the_fourier_transform(monkeypatch, tokens):
    options = {**TINY, "vq_embed_dim": None, "latent_channels": 2} if tokens == "paper" else TINY
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


class Fp16:
    """A training in which the CPU plays the part of fp16's scaler, with a scale that overflows at first."""

    def __init__(self, tmp_path, monkeypatch, scale=2.0**16, **options):
        config = TrainingConfig(
            output_dir=str(tmp_path), train_batch_size=4, report_to="none", lr_warmup_steps=0, learning_rate=0.1,
            checkpointing_steps=1000, **options,
        )  # fmt: skip
        accelerator = make_accelerator(config)
        scaler = accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        unscale = lambda optimizer=None: scaler.unscale_(accelerator._optimizers[0].optimizer)  # noqa: E731
        monkeypatch.setattr(accelerator, "unscale_gradients", unscale)
        self.arguments = (accelerator, config)
        self.scaler, self.config = scaler, config
        self.model = torch.nn.Linear(3, 1)
        self.data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def train(self, compute_loss):
        loader = make_loader(self.data, self.config)
        return train(*self.arguments, self.model, loader, compute_loss, lambda step: {})


def far_away(prepared, batch):
    return (prepared(batch.data) - 100).square().mean(), {}


def test_steps_that_the_scaler_of_fp16_leaves_out_are_counted(tmp_path, monkeypatch):
    """A scale large enough to overflow at first: it shrinks by half with each of these steps, and the run goes on."""
    run = Fp16(tmp_path, monkeypatch, scale=2.0**127, max_train_steps=40)
    images = SimpleNamespace(data=run.data)
    before = far_away(run.model, images)[0].item()
    progress = run.train(far_away)
    assert progress.step == 40 and 0 < progress.skipped < 40
    assert run.scaler.get_scale() == 2.0 ** (127 - progress.skipped)
    assert all(p.isfinite().all() for p in run.model.parameters())
    assert far_away(run.model, images)[0].item() < before
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert json.loads((saved / "progress.json").read_text())["progress"]["skipped"] == progress.skipped


def test_fp16_that_trains_nothing_stops(tmp_path, monkeypatch):
    """A finite loss whose gradient is NaN at every step: no scale helps."""
    run = Fp16(tmp_path, monkeypatch, max_train_steps=200, logging_steps=10)
    weights = run.model.weight.clone()

    def compute_loss(prepared, batch):
        prediction = prepared(batch.data)
        return prediction.square().mean() + (prediction - prediction).sum().sqrt(), {}

    with pytest.raises(DataError, match=r"step 30: no scale of the loss .* fallen to 6.1e-05.* mixed_precision bf16"):
        run.train(compute_loss)
    assert torch.equal(run.model.weight, weights)
