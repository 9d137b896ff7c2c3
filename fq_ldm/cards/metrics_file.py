"""Files of measurements."""

import json
import math
from pathlib import Path


def save_metrics(folder: Path, metrics: dict) -> None:
    """Write `metrics.json`."""
    save_json(folder / "metrics.json", metrics)


def save_json(path: Path, values: dict) -> None:
    """Write a file of measurements; what is not finite becomes null, since JSON has no word for it."""
    path.write_text(json.dumps(_finite(values), indent=2, allow_nan=False) + "\n")


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
