"""Leaving out images that cannot be used."""

from pathlib import Path

from tqdm.auto import tqdm

from ..options import DataError
from .images import ImageDataset

BAD_IMAGES_FILE = "bad_images.txt"


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
