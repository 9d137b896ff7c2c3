"""Minutes rather than seconds: several processes, and a short training on real digits."""

import pytest
import torch

from fq_ldm import FQModel
from fq_ldm.data import load_images, sample_images
from fq_ldm.metrics import evaluate_reconstruction, pixel_variance
from fq_ldm.options import DataConfig

pytestmark = pytest.mark.slow


def test_a_minute_of_training_on_digits():
    """The untrained linear coder, then 60 steps: SSIM on held-out digits rises to 0.9, and no code is lost."""
    data = DataConfig(dataset="digits", channels=1, resolution=[28])
    train_images, held_out = load_images(data)
    sample, held_out = sample_images(train_images, 4096, seed=0), sample_images(held_out, 500, seed=0)
    variance = pixel_variance([sample])
    torch.manual_seed(0)
    model = FQModel(
        in_channels=1, sample_size=28, latent_channels=1, num_tokens=45, vq_embed_dim=5, spectral_crop=16,
    )  # fmt: skip
    model.initialize_(sample)
    start = evaluate_reconstruction(model, held_out.split(100), variance)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    for step in range(60):
        images = sample[torch.randint(len(sample), (64,))]
        output = model(images)
        optimizer.zero_grad()
        ((output.sample - images).square().mean() + output.commit_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        # without the warm-up, the convolutions' first steps throw the linear coder off
        optimizer.param_groups[0]["lr"] = 3e-3 * min((step + 1) / 20, 1 - step / 60)
        optimizer.step()
    end = evaluate_reconstruction(model, held_out.split(100), variance)
    assert start["ssim_gaussian"] < 0.85 and end["ssim_gaussian"] > 0.9
    assert end["codes_used"] == 512 and end["perplexity"] > 256
