"""All training images as their tokens, or latents, encoded once by all processes and read from disk.

Tokens take a small part of the space of latents (CelebA at 64x64: 512 bytes instead of 12,288 a view), and nothing but
what is read lies in memory: the shards are mapped, not loaded, and processes of one machine share the pages.
"""

import bisect
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..atomic import replacing
from ..data import ImageDataset
from ..distributed import my_share, processes
from ..models import TokenAutoencoder
from ..options import LATENTS_FOLDER, DataError
from .latents import ENCODE_BATCH_SIZE, encode_images, tokenize_images

SHARD_IMAGES = 16_384


class CachedLatents(torch.utils.data.Dataset):
    """Tokens (V, U) int32 or latents (V, C, H, W) float32 of each image, in V views: as it is, and mirrored.

    Args:
        shards: mapped tensors (n, V, ...), one after another.
    """

    def __init__(self, shards: list[torch.Tensor]):
        self._shards = shards
        self._ends = list(accumulate(map(len, shards)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> torch.Tensor:
        shard = bisect.bisect_right(self._ends, i)
        item = self._shards[shard][i - (self._ends[shard - 1] if shard else 0)]
        return item if item.is_floating_point() else item.int()  # torch can do little with uint16


def cache_latents(
    folder: Path, vae: TokenAutoencoder, images: ImageDataset, target: str, flip: bool, wait: Callable[[], None]
) -> CachedLatents:
    """Encode the images that are not encoded yet, each process its share of the shards, and map all of them.

    A shard that was written for the same FQ-VAE and images is kept: what was interrupted goes on.

    Args:
        folder: of the run.
        vae: on the device that is to encode.
        images: all training images.
        target: "quantized" keeps tokens, "unquantized" latents.
        flip: keep the mirrored images too.
        wait: comes back when all processes have called it.

    Raises:
        DataError: if a shard cannot be written or read.
    """
    folder = folder / LATENTS_FOLDER
    folder.mkdir(exist_ok=True)
    key = fingerprint(vae, images, target, flip)
    shards = shard_paths(folder, len(images))
    missing = [shard for shard in my_share(shards) if not is_current(shard[0], key)]
    for path, part in tqdm(missing, desc="encoding images", disable=not (missing and processes().is_main_process)):
        write_shard(path, _encode(vae, Subset(images, part), target, flip), key)
    wait()
    return CachedLatents([open_shard(path).get_tensor("items") for path, _ in shards])


def shard_paths(folder: Path, count: int) -> list[tuple[Path, range]]:
    """The files of so many images, and the images of each."""
    starts = range(0, count, SHARD_IMAGES)
    parts = [range(start, min(start + SHARD_IMAGES, count)) for start in starts]
    return [(folder / f"{number:05d}.safetensors", part) for number, part in enumerate(parts)]


def _encode(vae: TokenAutoencoder, images: Subset, target: str, flip: bool) -> torch.Tensor:
    """(n, V, U) of the smallest type that holds a token, or (n, V, C, H, W) float32."""
    encode = tokenize_images if target == "quantized" else partial(encode_images, target=target)
    batches = []
    for batch in tqdm(DataLoader(images, batch_size=ENCODE_BATCH_SIZE), desc="a shard", leave=False):
        views = [batch, batch.flip(-1)] if flip else [batch]
        batches.append(torch.stack([encode(vae, view).cpu() for view in views], dim=1))
    items = torch.cat(batches)
    return items if items.is_floating_point() else items.to(token_type(vae.config.num_vq_embeddings))


def token_type(num_vq_embeddings: int) -> torch.dtype:
    """The smallest integers that hold 0 .. M - 1."""
    return next(t for t in (torch.uint8, torch.uint16, torch.int32) if num_vq_embeddings - 1 <= torch.iinfo(t).max)


def write_shard(path: Path, items: torch.Tensor, key: str) -> None:
    """Keep encoded images (n, V, ...), or samples, under the fingerprint of what they were made with.

    Raises:
        DataError: if they cannot be written.
    """
    try:
        with replacing(path) as file:
            save_file({"items": items}, file, metadata={"key": key})
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be written ({error}): make room there") from error


def open_shard(path: Path):
    """A shard's file, mapped.

    Raises:
        DataError: if it is damaged.
    """
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: is damaged ({error}); delete it, and it is made again") from error


def is_current(path: Path, key: str) -> bool:
    """Whether a shard is there, and was written under this fingerprint."""
    return path.is_file() and (open_shard(path).metadata() or {}).get("key") == key


def fingerprint(vae: TokenAutoencoder, images: ImageDataset, target: str, flip: bool) -> str:
    """What a shard is for, in short: the FQ-VAE's weights, how many images by which options, and how they are encoded.

    Tokens do not depend on the view of the latents, and neither on the decoder.
    """
    options = replace(images.config, dataloader_num_workers=0)  # changes no image
    viewed = target != "quantized"
    unused = ("_", "painter_", "learnt_", "reader_", "decoder.", "equalizer.", *(() if viewed else ("diffusion_",)))
    used = {key: value for key, value in vae.config.items() if not key.startswith(unused)}
    made = json.dumps(used, sort_keys=True)  # lists and tuples alike, in any order
    weights = {name: value for name, value in vae.state_dict().items() if not name.startswith(unused)}
    return digest(f"{options} {len(images)} {made} {target} {flip}", weights)


def digest(made: str, weights: dict[str, torch.Tensor]) -> str:
    """A short text that changes with how something was made, and with the weights that made it."""
    found = hashlib.sha256(made.encode())
    for name, value in weights.items():
        found.update(name.encode() + value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
