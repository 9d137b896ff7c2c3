"""Models compile as one graph, and compute the same."""

import pytest
import torch
from conftest import TINY, smooth_images
from diffusers import UNet2DModel
from test_scripts import LDM_OPTIONS, VAE_OPTIONS, call  # noqa: F401  (a fixture)

import train_ldm
import train_vae
from fq_ldm import FQModel

MODELS = {
    "bank": TINY,
    "interleaved": {**TINY, "tokens": "interleaved"},
    "two levels": {**TINY, "sample_size": (16, 24), "block_out_channels": (8, 8)},
    "paper": {**TINY, "tokens": "paper", "vq_embed_dim": None, "latent_channels": 2},
    "grid": {**TINY, "tokens": "grid", "vq_embed_dim": None, "sample_size": 8},
}


@pytest.fixture(autouse=True)
def forget():
    torch.compiler.reset()


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_model_is_one_graph(name):
    images = smooth_images(64, 3, *FQModel(**MODELS[name]).sample_size)
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = FQModel(**MODELS[name])
        model.initialize_(images)
        # Without code generation, which takes minutes: whether there is one graph shows before it.
        forward = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        output = forward(images[:8])
        loss, _ = model.loss(images[:8], output)
        loss.backward()
        with torch.no_grad():
            forward.eval()
            evaluated = forward(images[:8])
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((loss, evaluated.sample, evaluated.indices, model.quantize.codebook.usage, gradients))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_the_unet_is_one_graph():
    torch.manual_seed(0)
    unet = UNet2DModel(
        8, 3, 3, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    latents, timesteps = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(latents, timesteps).sample, unet(latents, timesteps).sample)


@pytest.mark.slow
def test_both_scripts_train_compiled_models(image_folder, tmp_path, call):  # noqa: F811
    common = dict(dataset=image_folder, max_train_steps=2, compile=True, report_to="none")
    status, _, errors = call(train_vae.main, output_dir="vae", **common, **VAE_OPTIONS)
    assert status == 0, errors
    status, _, errors = call(train_ldm.main, output_dir="ldm", vae="vae", **common, **LDM_OPTIONS)
    assert status == 0, errors
    assert (tmp_path / "ldm" / "model_index.json").is_file()
