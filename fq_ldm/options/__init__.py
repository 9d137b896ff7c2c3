"""Typed options of all scripts, and the errors that scripts print in one line."""

from .data import DataConfig
from .errors import DataError, UserError, check
from .evaluation import NETWORK_METRICS, PIPELINE_METRICS, VAE_METRICS, EvaluationConfig
from .ldm import LDMConfig
from .painting import PaintingConfig
from .parsing import parse_config, resolved, to_yaml
from .same_run import check_same_run
from .script import run_script
from .training import LATENTS_FOLDER, TrainingConfig
from .vae import VAEConfig

VAE_CONFIGS = (DataConfig, VAEConfig, PaintingConfig, TrainingConfig)  # that train_vae.py reads
LDM_CONFIGS = (DataConfig, LDMConfig, TrainingConfig)  # that train_ldm.py reads

__all__ = [
    "LATENTS_FOLDER",
    "LDM_CONFIGS",
    "NETWORK_METRICS",
    "PIPELINE_METRICS",
    "VAE_CONFIGS",
    "VAE_METRICS",
    "DataConfig",
    "DataError",
    "EvaluationConfig",
    "LDMConfig",
    "PaintingConfig",
    "TrainingConfig",
    "UserError",
    "VAEConfig",
    "check",
    "check_same_run",
    "parse_config",
    "resolved",
    "run_script",
    "to_yaml",
]
