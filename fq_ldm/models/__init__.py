from .autoencoder import TokenAutoencoder
from .baselines import BaselineModel, HQAModel
from .equalizer import equalize_, equalize_samples_
from .fq_model import FQModel
from .loading import CLASSES, load_vae
from .outputs import FQDecoderOutput, QuantizedLatents
from .transfer import take_tokens_

__all__ = [
    "CLASSES",
    "BaselineModel",
    "FQDecoderOutput",
    "FQModel",
    "HQAModel",
    "QuantizedLatents",
    "TokenAutoencoder",
    "equalize_",
    "equalize_samples_",
    "load_vae",
    "take_tokens_",
]
