"""What people see of a trained model: its card, its pictures, its figures, its place on the Hub."""

from .card import save_card
from .hub import push_to_hub
from .metrics_file import save_metrics
from .pictures import display_scale, save_grid

__all__ = ["display_scale", "push_to_hub", "save_card", "save_grid", "save_metrics"]
