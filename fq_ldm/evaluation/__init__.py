"""What `evaluate.py` is made of."""

from .classes import judge_classes, make_judge
from .inputs import check_images, check_output, choose_images, chosen_metrics, load_model
from .networks import load_pair_metrics
from .report import PROTOCOL, save_report
from .samples import evaluate_pipeline
from .vae import evaluate_vae

__all__ = [
    "PROTOCOL",
    "check_images",
    "check_output",
    "choose_images",
    "chosen_metrics",
    "evaluate_pipeline",
    "evaluate_vae",
    "judge_classes",
    "load_model",
    "load_pair_metrics",
    "save_report",
    "make_judge",
]
