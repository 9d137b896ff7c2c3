import os

# No test may depend on a network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image

from fq_ldm import FQLDMPipeline, FQModel

TINY = dict(
    in_channels=3,
    sample_size=(8, 12),
    block_out_channels=(8,),
    norm_num_groups=4,
    num_tokens=16,
    num_vq_embeddings=32,
    vq_embed_dim=4,
)


def smooth_images(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Random images with most energy at low frequencies, in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, 4, 4, generator=generator)
    fine = torch.randn(count, channels, height, width, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear") + 0.1 * fine
    return (images / 2).clamp(-1, 1)


def untrained_pipeline(vae: FQModel, num_train_timesteps: int, class_names: list[str] | None = None) -> FQLDMPipeline:
    """The smallest UNet for the latents of a model, and for classes, with DDPM of so many steps."""
    channels, height, _ = vae.diffusion_latent_shape
    embeddings = len(class_names) + 1 if class_names else None
    unet = UNet2DModel(
        height, channels, channels, block_out_channels=(8,), layers_per_block=1, down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), norm_num_groups=4, num_class_embeds=embeddings,
    )  # fmt: skip
    scheduler = DDPMScheduler(num_train_timesteps=num_train_timesteps, clip_sample=False)
    shares = [1 / len(class_names)] * len(class_names) if class_names else None
    return FQLDMPipeline(vae, unet, scheduler, class_names=class_names, class_shares=shares)


@pytest.fixture(autouse=True)
def threads():
    """A script that is alone takes all cores: not for the tests after it, which share them with other processes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def images() -> torch.Tensor:
    return smooth_images(64, 3, 8, 12)


@pytest.fixture
def model(images) -> FQModel:
    """An initialised model whose convolutions and graph module do something, in evaluation mode."""
    torch.manual_seed(0)
    model = FQModel(**TINY)
    model.initialize_(images)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model.eval()


@pytest.fixture
def pipeline(model) -> FQLDMPipeline:
    """An untrained UNet on the latents of `model`, with the paper's sampling."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=(8, 12), in_channels=3, out_channels=3, block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=4,
        attention_head_dim=4,
    ).eval()  # fmt: skip
    pipeline = FQLDMPipeline(model, unet, DDPMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """A folder of 40 greyscale PNG images of 16 x 16 pixels."""
    folder = tmp_path_factory.mktemp("images")
    for i, image in enumerate(smooth_images(40, 1, 16, 16)):
        pixels = ((image[0] + 1) * 127.5).round().to(torch.uint8).numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{i:02d}.png")
    return folder
