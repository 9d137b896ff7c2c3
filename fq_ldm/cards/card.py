"""Model cards: what fills `model_card.md`."""

import html
import math
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..options import to_yaml

TEMPLATE = Path(__file__).with_name("model_card.md")
TAGS = ["fq-vae", "fq-ldm", "vector-quantization", "latent-diffusion"]
# Metrics that the Hub shows beside the card, and compares between models.
COMPARED = ("mse", "psnr", "ssim", "ssim_gaussian", "validation_loss")


def save_card(
    folder: Path,
    title: str,
    summary: str,
    picture: str,
    usage: str,
    metrics: dict,
    options: dict,
    script: str,
    limits: str,
    pipeline_tag: str | None = None,
) -> None:
    """Write `README.md`: front matter, picture, usage, metrics, data, limits, command and configuration.

    Args:
        folder: where the model lies.
        title: heading; shown as it is, since a dataset's name is part of it.
        summary: what the model is, Markdown.
        picture: file name of a picture in the folder.
        usage: Python lines that use the model.
        metrics: name -> number, or text.
        options: the resolved configuration of the run, with the dataset and `card_notes`.
        script: that trained it, by its name in the package.
        limits: what the model is not for, Markdown.
        pipeline_tag: the Hub's name of the task.
    """
    configuration = to_yaml(options).strip()
    card = ModelCard.from_template(
        _front_matter(folder.name, metrics, str(options["dataset"]), pipeline_tag),
        template_path=str(TEMPLATE),
        title=escape(title),
        summary=summary,
        picture=picture,
        usage=usage,
        metrics={k.replace("_", " "): f"{v:.4g}" if isinstance(v, float) else v for k, v in metrics.items()},
        dataset=escape(str(options["dataset"])),
        split=escape(str(options["train_split"])),
        size="x".join(map(str, options["resolution"])),
        notes=escape(options["card_notes"] or ""),
        limits=limits,
        script=script,
        configuration=configuration,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", configuration)), default=0)),
    )
    card.save(folder / "README.md")


def escape(text: str) -> str:
    """One line of text that Markdown and HTML show as it is, whatever is in it."""
    return re.sub(r"([\\`*_{}\[\]()#|!~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _front_matter(name: str, metrics: dict, dataset: str, pipeline_tag: str | None) -> ModelCardData:
    """What the Hub reads; of a dataset's name only letters and the like."""
    dataset = re.sub(r"[^\w.-]+", "-", Path(dataset).name)
    compared = {k: metrics[k] for k in COMPARED if k in metrics and math.isfinite(metrics[k])}
    results = [
        EvalResult(
            task_type=pipeline_tag or "image-reconstruction",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in compared.items()
    ]
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag=pipeline_tag,
        tags=TAGS,
        model_name=name if results else None,
        eval_results=results or None,
    )
