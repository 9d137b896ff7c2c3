"""The file of measurements beside a model's card."""

import json
import math
from pathlib import Path


def save_metrics(folder: Path, metrics: dict) -> None:
    """Write `metrics.json`; what is not finite becomes null, since JSON has no word for it."""
    (folder / "metrics.json").write_text(json.dumps(_finite(metrics), indent=2, allow_nan=False) + "\n")


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
