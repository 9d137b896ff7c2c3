"""Images as tensors in [-1, 1], cut as the options say."""

import io
import struct
import warnings
from functools import cached_property

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps

from ..options import DataConfig, DataError, UserError
from .labels import Classes, class_numbers

SAMPLE_BATCH_SIZE = 256
PIL_MODES = {1: "L", 3: "RGB"}
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)  # fmt: skip  (what Pillow raises for files that are cut off, of another kind, or enormous)


class ImageDataset(torch.utils.data.Dataset):
    """Cropped and resized images, as float32 tensors (c, H, W) in [-1, 1].

    Args:
        table: a `datasets.Dataset` with the image column that the configuration names.
        config: how to cut the images.
        split: of the dataset, in which the images lie.
        rows: where in it each image lies, (n,) int64, counted from 0.
        classes: of the training images, or None.

    Raises:
        UserError: if the column holds no images.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        config: DataConfig,
        split: str,
        rows: np.ndarray,
        classes: Classes | None = None,
    ):
        self.table = table
        self.split = split
        self.rows = rows
        self.config = config
        self.classes = classes
        # Decoded here rather than by datasets, to be able to say which image is broken.
        try:
            self._cells = table.select_columns(config.image_column).cast_column(
                config.image_column, datasets.Image(decode=False)
            )
        except (RuntimeError, ValueError, TypeError) as error:  # pyarrow's and datasets' ways to say it
            raise UserError(f"image_column: '{config.image_column}' of {config.dataset} holds no images") from error

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def labels(self) -> torch.Tensor | None:
        """The class of each image, (n,) int64, or None where there are no classes; see `class_numbers`."""
        return None if self.classes is None else class_numbers(self.table, self.classes, self.name)

    def name(self, i: int) -> str:
        """What to call image number i where it has no path."""
        return f"image {self.rows[i]} of split {self.split} of {self.config.dataset}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; none where there are no classes."""
        return () if self.classes is None else self.classes.names

    def __getitem__(self, i: int) -> torch.Tensor:
        """Image number i.

        Raises:
            DataError: if it cannot be read or does not fit; the message names it.
        """
        cell = self._cells[i][self.config.image_column] or {"path": None, "bytes": None}
        name = cell["path"] or self.name(i)
        if cell["bytes"] is None and cell["path"] is None:
            raise DataError(f"{name}: is empty; remove it from the dataset")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]) as file:
                    frames = getattr(file, "n_frames", 1)
                    image = ImageOps.exif_transpose(file)
                    image.load()
        except UNREADABLE as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{name}: is not a readable image ({reason}); remove it from the dataset") from error
        return to_tensor(self._cut(self._convert(image, frames, name), name))

    def _convert(self, image: Image.Image, frames: int, name: str) -> Image.Image:
        mode = PIL_MODES[self.config.channels]
        if image.mode == mode and frames == 1:
            return image
        if not self.config.convert_images:
            kind = (
                f"an animation of {frames} frames" if frames > 1 else f"{image.mode} ({len(image.getbands())} channels)"
            )
            raise DataError(
                f"{name}: is {kind}, but channels is {self.config.channels} ({mode}): set channels, or convert_images "
                "to convert what differs"
            )
        if image.mode == "F":
            raise DataError(
                f"{name}: holds floating-point numbers, which have no range of their own: convert it to 8 bits"
            )
        if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
            image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:  # whose colours are whatever was left there
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert(mode)

    def _cut(self, image: Image.Image, name: str) -> Image.Image:
        height, width = self.config.size
        side = self.config.center_crop
        needed = (width, height) if side is None else (side, side)
        if (image.width < needed[0] or image.height < needed[1]) and not self.config.convert_images:
            raise DataError(
                f"{name}: is {image.width}x{image.height} pixels, smaller than the {needed[0]}x{needed[1]} that "
                f"{'resolution' if side is None else 'center_crop'} asks for: lower it, remove the image, or set "
                "convert_images to enlarge what is too small"
            )
        if side is not None:
            if min(image.size) < side:
                scale = side / min(image.size)
                image = image.resize(
                    (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
                )
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        if image.size == (width, height):
            return image
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """8-bit image -> (c, H, W) float32 in [-1, 1] (mean 0.5, standard deviation 0.5, as in the paper)."""
    array = np.asarray(image)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(array / np.float32(127.5) - np.float32(1))


def sample_images(dataset: ImageDataset, count: int, seed: int) -> torch.Tensor:
    """`count` images at random, or all if there are fewer, in an order that depends on the seed alone: (n, c, H, W)."""
    return torch.stack([dataset[i] for i in _sample(dataset, count, seed)])


def sample_batches(dataset: ImageDataset, count: int, seed: int, num_workers: int) -> torch.utils.data.DataLoader:
    """Those images in batches (b, c, H, W), read anew each time they are gone over."""
    return torch.utils.data.DataLoader(
        torch.utils.data.Subset(dataset, _sample(dataset, count, seed)),
        batch_size=SAMPLE_BATCH_SIZE,
        num_workers=num_workers,
        generator=torch.Generator(),  # or else it would draw from the one that weights are drawn from
    )


def _sample(dataset: ImageDataset, count: int, seed: int) -> list[int]:
    return torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:count].tolist()


def random_flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image (B, c, H, W) left to right with probability 1/2."""
    flip = torch.rand(len(images), device=images.device, generator=generator) < 0.5
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)
