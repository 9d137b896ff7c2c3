"""Model cards."""

import html
import re
from pathlib import Path

from huggingface_hub import ModelCardData

from ..options import to_yaml

PAPER = (
    "Feng and Liu, *Frequency-Quantized Variational Autoencoder Based on 2D-FFT for Enhanced Image Reconstruction and "
    "Generation*, Computers, Materials & Continua 83(2), 2025, https://doi.org/10.32604/cmc.2025.060252"
)


def escape(text: str) -> str:
    """One line of text that Markdown and HTML show as it is, whatever is in it."""
    return re.sub(r"([\\`*_{}\[\]()#|!~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


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
        script: that trained it.
        limits: what the model is not for, Markdown.
        pipeline_tag: the Hub's name of the task.
    """
    front = ModelCardData(
        library_name="diffusers",
        pipeline_tag=pipeline_tag,
        tags=["fq-vae", "fq-ldm", "vector-quantization", "latent-diffusion"],
    )
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in metrics.items()}
    title, configuration = escape(title), to_yaml(options).strip()
    data = (
        f"Trained on {escape(str(options['dataset']))}, split {escape(str(options['train_split']))}, in "
        f"{'x'.join(map(str, options['resolution']))} pixels. What the model makes carries what that data carries, "
        "its biases too, and the licence of the data holds for it."
    )
    if options["card_notes"]:
        data += "\n\n" + escape(options["card_notes"])
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", configuration)), default=0))
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in shown.items())
    (folder / "README.md").write_text(
        f"""---
{front.to_yaml()}
---

# {title}

{summary}

![{title}]({picture})

## Usage

```python
{usage}
```

## Metrics

| metric | value |
|---|---|
{rows}

## Data

{data}

## Limits and intended use

{limits}

## Training

With the configuration below in `training_config.yaml`:

```bash
accelerate launch {script} --config training_config.yaml
```

{fence}yaml
{configuration}
{fence}

## Method

{PAPER}
"""
    )
