"""The FQ-VAE's latents as a diffusion model learns them: which ones, in which view."""

import torch

from ..data import ImageDataset, random_flip, sample_images
from ..models import TokenAutoencoder, load_vae
from ..models.start import STATISTICS_IMAGES
from ..options import DataConfig, DataError, LDMConfig, UserError

ENCODE_BATCH_SIZE = 128


def open_vae(
    path: str, option: str = "vae", subfolder: str | None = None, revision: str | None = None
) -> TokenAutoencoder:
    """The trained FQ-VAE, or baseline, that an option names: in a folder or on the Hub, in evaluation mode.

    Raises:
        DataError: if there is none.
    """
    try:
        return load_vae(path, subfolder, revision)
    except Exception as error:  # a foreign or damaged file fails in as many ways as there are files
        raise DataError(f"{option}: no FQ-VAE can be loaded from {path} ({' '.join(str(error).split())})") from error


def check_vae(vae: TokenAutoencoder, path: str, data: DataConfig) -> None:
    """Raise a `UserError` if the FQ-VAE was trained for images of another shape."""
    made_for, given = (vae.config.in_channels, *vae.sample_size), (data.channels, *data.size)
    if made_for != given:
        raise UserError(
            f"vae: {path} takes images of {'x'.join(map(str, made_for))}, but channels and resolution give "
            f"{'x'.join(map(str, given))}"
        )


def choose_view(vae: TokenAutoencoder, ldm: LDMConfig) -> None:
    """Give the FQ-VAE the view of its latents that the options ask for; `measure_view_` must follow.

    Raises:
        UserError: if the latents have no such view.
    """
    old = (vae.config.diffusion_layout, vae.config.diffusion_patch_size)
    new = (ldm.latent_layout or old[0], ldm.latent_patch_size or old[1])
    if new == old:
        return
    try:
        vae.set_diffusion_view_(*new)
    except ValueError as error:
        raise UserError(f"latent_layout, latent_patch_size: {error}") from error


def linear_channels(vae: TokenAutoencoder) -> int | None:
    """How many channels of the diffusion latents are linear, the first ones, where the others are learnt; else None."""
    view = vae.diffusion_view
    return view.linear_channels if view.has_learnt_channels else None


@torch.no_grad()
def measure_view_(vae: TokenAutoencoder, images: ImageDataset, target: str) -> None:
    """Standardise a view by the statistics of some training images, quantized or unquantized as the target is."""
    sample = sample_images(images, STATISTICS_IMAGES, seed=0).to(vae.device)
    latents = torch.cat([vae.encode(part).latents for part in sample.split(ENCODE_BATCH_SIZE)])
    vae.measure_diffusion_latents_(latents, quantized=target == "quantized")


@torch.no_grad()
def tokenize_images(vae: TokenAutoencoder, images: torch.Tensor) -> torch.Tensor:
    """Images (B, c, H, W) -> tokens (B, U) int64."""
    return vae.tokenize(_ready(vae, images))


@torch.no_grad()
def latents_of_tokens(vae: TokenAutoencoder, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (B, U) on the FQ-VAE's device -> the diffusion latents (B, C, H', W') of their images, quantized."""
    return vae.to_diffusion_latents(vae.quantize.join(vae.quantize.codebook(tokens)))


@torch.no_grad()
def encode_images(
    vae: TokenAutoencoder,
    images: torch.Tensor,
    target: str = "quantized",
    flip: bool = False,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Images (B, c, H, W) -> diffusion latents (B, C, H', W'), of mirrored images half the time if `flip`."""
    if flip:
        images = random_flip(images.to(vae.device), generator)
    latents = vae.encode(_ready(vae, images)).latents
    latents = vae.quantize_latents(latents).latents if target == "quantized" else vae.project_latents(latents)
    return vae.to_diffusion_latents(latents)


def _ready(vae: TokenAutoencoder, images: torch.Tensor) -> torch.Tensor:
    # float32 convolutions are twice as fast with the channels last
    return images.to(vae.device, vae.dtype, memory_format=torch.channels_last)
