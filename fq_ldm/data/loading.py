"""Training and validation images of a dataset."""

from pathlib import Path

import datasets
import numpy as np

from ..options import DataConfig, DataError, UserError
from .bad_images import without_bad_images
from .images import ImageDataset
from .labels import Classes, find_classes
from .sources import image_depths, is_image_folder, load_splits

SPLIT_SEED = 0  # the held-out images do not depend on the training seed


def load_images(config: DataConfig, bad_images_log: Path | None = None) -> tuple[ImageDataset, ImageDataset]:
    """The training and the validation images.

    Args:
        config: which, and how to cut them.
        bad_images_log: file for the names of images that `skip_bad_images` leaves out.

    Raises:
        UserError: if there is no such dataset, split or column, or the labels are none.
        DataError: if it is empty.
    """
    splits = load_splits(config)
    if config.train_split not in splits:
        raise UserError(f"train_split: {config.dataset} has no split '{config.train_split}', only {', '.join(splits)}")
    train = splits[config.train_split]
    if config.validation_split is None:
        if len(train) <= config.validation_size:
            raise DataError(
                f"{config.dataset}: has {len(train)} images, too few to hold out validation_size "
                f"{config.validation_size}"
            )
        rows, held_out = _hold_out(len(train), config.validation_size)
        train, validation = train.select(rows), train.select(held_out)
    elif config.validation_split in splits:
        validation = splits[config.validation_split]
        rows, held_out = np.arange(len(train)), np.arange(len(validation))
    else:
        raise UserError(
            f"validation_split: {config.dataset} has no split '{config.validation_split}', only {', '.join(splits)}"
        )
    if config.max_train_images is not None:  # any of them: files often lie in the order of their classes
        chosen = np.random.default_rng(SPLIT_SEED).permutation(len(train))[: config.max_train_images]
        train, rows = train.select(chosen), rows[chosen]
    for table in (train, validation):
        if config.image_column not in table.column_names:
            raise UserError(
                f"image_column: {config.dataset} has no column '{config.image_column}', only "
                f"{', '.join(table.column_names)}"
            )
        if len(table) == 0:
            raise DataError(f"{config.dataset}: holds no images")
    classes = _find_classes(config, train)
    found = (
        ImageDataset(train, config, config.train_split, rows, classes),
        ImageDataset(validation, config, config.validation_split or config.train_split, held_out, classes),
    )
    if config.skip_bad_images:
        found = without_bad_images(found, bad_images_log)
    return found


def _hold_out(count: int, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows to train on, and those to hold out, as `datasets` splits them."""
    numbered = datasets.Dataset.from_dict({"row": np.arange(count)}).with_format("numpy")
    parts = numbered.train_test_split(test_size=held_out, seed=SPLIT_SEED)
    return parts["train"]["row"][:], parts["test"]["row"][:]


def _find_classes(config: DataConfig, train: datasets.Dataset) -> Classes | None:
    if config.label_column is None:
        return None
    if config.label_column not in train.column_names and is_image_folder(Path(config.dataset)):
        depths = image_depths(Path(config.dataset))
        if len(depths) > 1:
            raise UserError(
                f"label_column: images of {config.dataset} lie {' and '.join(map(str, depths))} folders deep, so that "
                "the subfolders are no classes: move them to one depth, or leave label_column out"
            )
        print(f"{config.dataset}: has no subfolders of images, so there are no classes")
        return None
    return find_classes(train, config.label_column, config.dataset)
