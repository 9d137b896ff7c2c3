"""Class labels of images."""

from collections.abc import Callable
from dataclasses import dataclass

import datasets
import numpy as np
import torch

from ..options import DataError, UserError

LABEL_TYPES = (
    "string",
    "large_string",
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)


@dataclass(frozen=True)
class Classes:
    """The classes of a dataset.

    Attributes:
        column: that holds the labels.
        names: of the classes, in the order of their numbers.
        values: what the column holds for each of them.
    """

    column: str
    names: tuple[str, ...]
    values: tuple


def find_classes(table: datasets.Dataset, column: str, dataset: str) -> Classes:
    """The classes of the training images: those that a `ClassLabel` lists, else the values that occur, sorted.

    Raises:
        UserError: if there is no such column, or it holds no labels.
    """
    if column not in table.column_names:
        raise UserError(
            f"label_column: {dataset} has no column '{column}', only {', '.join(table.column_names)}; leave it out to "
            "train without classes"
        )
    feature = table.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return Classes(column, tuple(feature.names), tuple(range(feature.num_classes)))
    kind = getattr(feature, "dtype", type(feature).__name__)
    if kind not in LABEL_TYPES:
        raise UserError(f"label_column: '{column}' of {dataset} holds {kind}, not whole numbers or text")
    values = sorted(value for value in table.unique(column) if value is not None)
    return Classes(column, tuple(map(str, values)), tuple(values))


def class_numbers(table: datasets.Dataset, classes: Classes, name: Callable[[int], str]) -> torch.Tensor:
    """The class of each image, (n,) int64 in 0 .. len(names) - 1.

    Args:
        table: of the images.
        classes: that they can have.
        name: what to call an image, by its number.

    Raises:
        DataError: for an image without a label, or with one that no training image has; the message names it.
    """
    known = {value: number for number, value in enumerate(classes.values)}
    numbers = np.fromiter((known.get(value, -1) for value in table[classes.column]), np.int64, len(table))
    if len(wrong := np.flatnonzero(numbers < 0)):
        value = table[int(wrong[0])][classes.column]
        found = (
            "has no label" if value is None or value == -1 else f"has the label {value!r}, which no training image has"
        )
        raise DataError(f"{name(int(wrong[0]))}: {found} ({classes.column}); remove it from the dataset")
    return torch.from_numpy(numbers)
