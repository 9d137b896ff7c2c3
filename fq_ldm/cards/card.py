"""Model cards: what fills `model_card.md`."""

import html
import math
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..options import to_yaml
from .hub import public

TEMPLATE = Path(__file__).with_name("model_card.md")
TAGS = ["fq-vae", "fq-ldm", "vector-quantization", "latent-diffusion"]
# Metrics that the Hub shows beside the card, and compares between models, with what they are.
COMPARED = {
    "mse": "MSE of 8-bit images in [0, 1]",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM, uniform 11x11 window",
    "ssim_gaussian": "SSIM, Gaussian 11x11 window",
    "validation_loss": "diffusion loss on held-out images",
}


def save_card(
    folder: Path,
    title: str,
    summary: str,
    picture: str,
    usages: dict[str, str],
    metrics: dict,
    options: dict,
    script: str,
    limits: str,
    task: tuple[str, str],
    pipeline_tag: str | None = None,
    class_names: list[str] | None = None,
    base_model: str | None = None,
) -> None:
    """Write `README.md`: front matter, picture, usage, metrics, data, limits, command and configuration.

    Args:
        folder: where the model lies.
        title: heading; shown as it is, since a dataset's name is part of it.
        summary: what the model is, Markdown.
        picture: file name of a picture in the folder.
        usages: with what (Markdown) -> Python lines that use the model.
        metrics: name -> number, or text.
        options: the resolved configuration of the run, with the dataset, `card_notes` and `card_license`.
        script: that trained it, by its name in the package.
        limits: what the model is not for, Markdown.
        task: what the metrics are of: the Hub's name of the nearest task, and what it is in words.
        pipeline_tag: the Hub's name of the task that the model is listed under, if there is one.
        class_names: of the classes that it knows.
        base_model: what it was trained on top of; shown if it is the name of a repository.
    """
    options = public(options)
    configuration = to_yaml(options).strip()
    card = ModelCard.from_template(
        _front_matter(folder.name, metrics, options, task, pipeline_tag, base_model),
        template_path=str(TEMPLATE),
        title=escape(title),
        summary=summary,
        picture=picture,
        usages=usages,
        metrics={k.replace("_", " "): f"{v:.4g}" if isinstance(v, float) else v for k, v in metrics.items()},
        dataset=escape(str(options["dataset"])),
        split=escape(str(options["train_split"])),
        size="x".join(map(str, options["resolution"])),
        classes=escape(", ".join(class_names or [])),
        notes=escape(options["card_notes"] or ""),
        limits=limits,
        script=script,
        configuration=configuration,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", configuration)), default=0)),
    )
    card.save(folder / "README.md")


def model_name(folder: Path, options: dict) -> str:
    """What the lines of a card load: the repository that the model is uploaded to, or its folder."""
    return options["hub_model_id"] if options["push_to_hub"] else folder.name


def escape(text: str) -> str:
    """One line of text that Markdown and HTML show as it is, whatever is in it."""
    return re.sub(r"([\\`*_{}\[\]()#|!~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def is_repository(name: str | None) -> bool:
    """Whether a name is that of a repository on the Hub and of no folder here."""
    return name is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def _front_matter(
    name: str, metrics: dict, options: dict, task: tuple[str, str], pipeline_tag: str | None, base_model: str | None
) -> ModelCardData:
    """What the Hub reads; of a dataset that is not on the Hub only the letters of its name, and the like."""
    dataset = str(options["dataset"])
    on_hub = is_repository(dataset)
    dataset_name = re.sub(r"[^\w.-]+", "-", Path(dataset).name)
    results = [
        EvalResult(
            task_type=task[0],
            task_name=task[1],
            dataset_type=dataset if on_hub else dataset_name,
            dataset_name=dataset_name,
            dataset_split=options["validation_split"] or options["train_split"],
            metric_type=metric,
            metric_name=meaning,
            metric_value=metrics[metric],
        )
        for metric, meaning in COMPARED.items()
        if metric in metrics and math.isfinite(metrics[metric])
    ]
    return ModelCardData(
        library_name="diffusers",
        license=options["card_license"],
        pipeline_tag=pipeline_tag,
        tags=TAGS,
        datasets=[dataset] if on_hub else None,
        base_model=base_model if is_repository(base_model) else None,
        inference=False,
        model_name=name if results else None,
        eval_results=results or None,
    )
