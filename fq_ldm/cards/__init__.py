"""What people see of a trained model: its card, its pictures, its figures, its place on the Hub."""

from .card import model_name, save_card
from .hub import CONFIG_FILE, check_hub, push_to_hub
from .metrics_file import save_json, save_metrics
from .pictures import display_scale, save_grid
from .usage import pipeline_usages, vae_usages

__all__ = [
    "CONFIG_FILE",
    "check_hub",
    "display_scale",
    "model_name",
    "pipeline_usages",
    "push_to_hub",
    "save_card",
    "save_grid",
    "save_json",
    "save_metrics",
    "vae_usages",
]
