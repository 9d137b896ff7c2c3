"""Leaving out images that cannot be used."""

from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..options import DataError
from .images import ImageDataset

BAD_IMAGES_FILE = "bad_images.txt"


class _Faults(torch.utils.data.Dataset):
    """What is wrong with each image of a dataset, or None."""

    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> str | None:
        try:
            self.dataset[i]
        except DataError as error:
            return str(error)
        return None


def without_bad_images(parts: tuple[ImageDataset, ...], log: Path | None) -> tuple[ImageDataset, ...]:
    """Datasets without the images that cannot be used; each of them is named in the log, with what is wrong.

    Raises:
        DataError: if none is left of one of them.
    """
    lines, kept = [], []
    for dataset in parts:
        loader = torch.utils.data.DataLoader(
            _Faults(dataset),
            batch_size=64,
            collate_fn=list,
            num_workers=dataset.config.dataloader_num_workers,
            generator=torch.Generator(),  # or else it would draw from the one that weights are drawn from
        )
        good = np.zeros(len(dataset), bool)  # one byte for an image, and not forty as in a list of numbers
        for i, fault in enumerate(tqdm(chain.from_iterable(loader), "looking for bad images", len(dataset))):
            good[i] = fault is None
            if fault is not None:
                lines.append(f"{fault}\n")
        if not good.any():
            raise DataError(f"{dataset.config.dataset}: none of {len(dataset)} images can be used; e.g. {lines[-1]}")
        chosen = np.flatnonzero(good)
        table, rows = dataset.table.select(chosen), dataset.rows[chosen]
        kept.append(ImageDataset(table, dataset.config, dataset.split, rows, dataset.classes))
    if lines:
        where = ""
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("".join(lines))
            where = f"; {log} names them"
        print(f"{parts[0].config.dataset}: left out {len(lines)} bad images of {sum(map(len, parts))}{where}")
    return tuple(kept)
