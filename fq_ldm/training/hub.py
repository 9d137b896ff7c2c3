"""Model cards, and uploads to the Hub."""

import json
from pathlib import Path

from huggingface_hub import HfApi, ModelCardData

from .config import LATENTS_FILE, TrainingConfig, to_yaml

PAPER = (
    "Feng and Liu, *Frequency-Quantized Variational Autoencoder Based on 2D-FFT for Enhanced Image Reconstruction and "
    "Generation*, Computers, Materials & Continua 83(2), 2025, https://doi.org/10.32604/cmc.2025.060252"
)


def save_metrics(folder: Path, metrics: dict) -> None:
    """Write `metrics.json`."""
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


def save_card(
    folder: Path,
    title: str,
    summary: str,
    picture: str,
    usage: str,
    metrics: dict,
    options: dict,
    pipeline_tag: str | None = None,
) -> None:
    """Write `README.md`: front matter, picture, usage, metrics and the training configuration.

    Args:
        folder: where the model lies.
        title: heading.
        summary: what the model is.
        picture: file name of a picture in the folder.
        usage: Python lines that use the model.
        metrics: name -> number, or text.
        options: the resolved configuration of the run.
        pipeline_tag: the Hub's name of the task.
    """
    front = ModelCardData(
        library_name="diffusers",
        pipeline_tag=pipeline_tag,
        tags=["fq-vae", "fq-ldm", "vector-quantization", "latent-diffusion"],
    )
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in metrics.items()}
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

## Training configuration

```yaml
{to_yaml(options).strip()}
```

## Method

{PAPER}
"""
    )


def push_to_hub(config: TrainingConfig) -> None:
    """Upload the output folder, without what only training needs; the login is that of `hf auth login`."""
    api = HfApi()
    repository = config.hub_model_id or Path(config.output_dir).name
    repository = api.create_repo(repository, private=config.hub_private, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repository,
        folder_path=config.output_dir,
        ignore_patterns=["checkpoints/**", "logs/**", LATENTS_FILE],
    )
