"""Classes of samples: those asked for, and those that a classifier of real images reads."""

import json
from pathlib import Path

import torch
from accelerate.utils import broadcast
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, StackDataset, Subset

from ..atomic import replacing
from ..data import ImageDataset
from ..distributed import processes
from ..metrics.classifier import CONFIDENT, Classifier, train_classifier
from ..metrics.fidelity import frechet_distance
from ..options import DataError, EvaluationConfig, UserError
from ..pipelines import FQLDMPipeline
from .networks import one_line

CLASSIFIER_BATCH = 64  # training images at a time


def spread_classes(shares: list[float], count: int, seed: int) -> torch.Tensor:
    """Classes (count,) int64 that occur as often as their shares say, as nearly as whole numbers can, shuffled."""
    ends = torch.tensor(shares, dtype=torch.float64).cumsum(0)
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count * ends[-1]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return torch.searchsorted(ends, places)[order]


def check_classes(pipeline: FQLDMPipeline, images: ImageDataset, config: EvaluationConfig) -> None:
    """Raise a `UserError` if guidance, or the classes of the images, do not fit the pipeline."""
    if config.guidance_scale != 1 and not pipeline.num_classes:
        raise UserError(f"guidance_scale: {config.model} knows no classes, so there is nothing to guide it by")
    if "classes" in config.metrics and not images.class_names:
        raise UserError("metrics: classes needs images with classes: give --label_column")
    known = tuple(pipeline.config.class_names or ())
    if images.class_names and known and images.class_names != known:
        raise UserError(
            f"label_column: the images have the classes {', '.join(images.class_names)}, {config.model} has "
            f"{', '.join(known)}"
        )


def make_judge(images: ImageDataset, config: EvaluationConfig, mirrored: bool, device: torch.device) -> Classifier:
    """A classifier of the training images: that of `config.classifier` if there is one, else one that is kept there.

    Raises:
        DataError: if the file is none of a classifier of these classes, or cannot be written.
    """
    path = None if config.classifier is None else Path(config.classifier)
    if path is not None and path.is_file():
        return _load_judge(path, images).to(device)
    judge = _train_judge(images, config, mirrored, device)
    if path is not None and processes().is_main_process:
        try:
            with replacing(path) as file:
                save_file(judge.state_dict(), file, metadata={"classes": json.dumps(images.class_names)})
        except (OSError, SafetensorError) as error:
            raise DataError(f"classifier: {path} cannot be written ({error})") from error
    return judge


def _train_judge(images: ImageDataset, config: EvaluationConfig, mirrored: bool, device: torch.device) -> Classifier:
    """Every process trains one, and has that of the first."""
    shuffle = torch.Generator().manual_seed(0)
    data = StackDataset(images, images.labels)
    loader = DataLoader(data, CLASSIFIER_BATCH, shuffle=True, generator=shuffle, drop_last=len(data) > CLASSIFIER_BATCH)
    judge = train_classifier(
        loader, images.config.channels, len(images.class_names), config.classifier_epochs, mirrored, device
    )  # fmt: skip
    for value in judge.state_dict().values():
        broadcast(value)  # sums on a GPU come in another order each time
    return judge


def _load_judge(path: Path, images: ImageDataset) -> Classifier:
    try:
        with safe_open(path, framework="pt") as file:
            names = (file.metadata() or {}).get("classes")
        judge = Classifier(images.config.channels, len(images.class_names))
        judge.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DataError(f"classifier: {path} holds none of these images ({' '.join(str(error).split())})") from error
    if names != json.dumps(images.class_names):
        raise DataError(f"classifier: {path} knows the classes {names}, not {json.dumps(images.class_names)}")
    return judge.eval()


def labels_of(images: ImageDataset | Subset) -> torch.Tensor:
    """The class of each image, of a part of a dataset too."""
    if isinstance(images, Subset):
        return images.dataset.labels[torch.tensor(images.indices)]
    return images.labels


def judge_classes(judged: dict, labels: torch.Tensor, asked: torch.Tensor | None, names: tuple) -> tuple[dict, dict]:
    """What a classifier says of samples, and of the images that they are compared with.

    Args:
        judged: "images" and "samples" -> what `Classifier.judge` says of them.
        labels: of the images.
        asked: the classes that the samples were to be, or None.
        names: of the classes.

    Returns:
        metrics (name -> number), and arrays over classes (name -> list).
    """
    (image_classes, image_confidence, image_features), (classes, confidence, features) = (
        judged["images"],
        judged["samples"],
    )
    results = {
        "classifier_accuracy": (image_classes == labels).double().mean().item(),
        "images_read": (image_confidence >= CONFIDENT).double().mean().item(),
        "samples_read": (confidence >= CONFIDENT).double().mean().item(),
        "classifier_fid": one_line(frechet_distance, features, image_features),
    }
    arrays = {"class_names": list(names), "samples_read_as": torch.bincount(classes, minlength=len(names)).tolist()}
    if asked is not None:
        agree = (classes == asked).double()
        sure = agree * (confidence >= CONFIDENT)
        results |= {"agreement": agree.mean().item(), "agreement_read": sure.mean().item()}
        counts = torch.bincount(asked, minlength=len(names))
        arrays["samples_asked_for"] = counts.tolist()
        for name, values in (("agreement", agree), ("agreement_read", sure)):
            of_each = torch.zeros(len(names), dtype=torch.float64).index_add_(0, asked, values)
            arrays[name] = (of_each / counts.clamp(min=1)).tolist()
    return results, arrays
