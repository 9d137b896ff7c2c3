"""The metrics that need a trained network, with one line for what they lack."""

import importlib

import torch

from ..metrics.fidelity import LPIPS, FeatureExtractor, ReconstructionFID
from ..options import EvaluationConfig, UserError


def make_extractor(config: EvaluationConfig, metrics: list[str], device: torch.device) -> FeatureExtractor:
    """The network whose features "fid", "kid" and "prc" compare.

    Raises:
        UserError: if there is no such module, extractor or weights.
    """
    if config.feature_extractor_module is not None:
        try:
            importlib.import_module(config.feature_extractor_module)
        except ImportError as error:
            raise UserError(f"feature_extractor_module: cannot be imported ({error})") from error
    name = config.feature_extractor
    try:
        return one_line(FeatureExtractor, metrics, name, config.feature_extractor_weights, device=device)
    except ImportError as error:  # of an extractor of somebody else
        raise UserError(f"feature_extractor: {name} needs a package that is not installed ({error})") from error


def load_pair_metrics(config: EvaluationConfig, metrics: list[str], device: torch.device) -> dict:
    """Those of the metrics that need a trained network, with their networks, by name.

    Load them first: nobody should wait for a training or for reconstructions to learn that a file is missing.

    Raises:
        UserError: if a network lacks its weights.
    """
    pairs = {}
    if "lpips" in metrics:
        pairs["lpips"] = one_line(LPIPS, config.lpips_weights, device=device)
    if "rfid" in metrics:
        pairs["rfid"] = ReconstructionFID(make_extractor(config, ["fid"], device))
    return pairs


def one_line(function, *args, **kwargs):
    """Call a function of `fq_ldm.metrics`; what it objects to becomes a `UserError`."""
    try:
        return function(*args, **kwargs)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
