"""The diffusion latents of all training images, encoded once."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data import ImageDataset
from ..diffusion.latents import ENCODE_BATCH_SIZE, encode_images
from ..models import TokenAutoencoder
from ..options import LATENTS_FILE, DataError
from .atomic import replacing


def load_or_cache_latents(
    folder: Path, vae: TokenAutoencoder, images: ImageDataset, target: str, flip: bool
) -> torch.Tensor:
    """The diffusion latents of all images (n, V, C, H, W), in one or, with mirrored images, V = 2 views.

    They come from the folder if they were saved there for the same FQ-VAE and images.
    """
    path = folder / LATENTS_FILE
    key = _fingerprint(vae, images, f"{target} {flip}")
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") == key:
                    return file.get_tensor("latents")
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: is damaged ({error}); delete it, to encode the images again") from error
    batches = []
    for batch in tqdm(DataLoader(images, batch_size=ENCODE_BATCH_SIZE), desc="encoding images"):
        views = [batch, batch.flip(-1)] if flip else [batch]
        batches.append(torch.stack([encode_images(vae, view, target).cpu() for view in views], dim=1))
    latents = torch.cat(batches)
    try:
        with replacing(path) as file:
            save_file({"latents": latents}, file, metadata={"key": key})
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be written ({error}): make room, or set cache_latents to false") from error
    return latents


def _fingerprint(vae: TokenAutoencoder, images: ImageDataset, options: str) -> str:
    digest = hashlib.sha256(f"{images.config} {len(images)} {vae.config} {options}".encode())
    for name, value in vae.state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
