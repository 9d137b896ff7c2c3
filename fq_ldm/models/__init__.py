from .autoencoder import TokenAutoencoder
from .baselines import BaselineModel, HQAModel
from .fq_model import FQModel
from .loading import CLASSES, load_vae
from .outputs import FQDecoderOutput, QuantizedLatents

__all__ = [
    "CLASSES",
    "BaselineModel",
    "FQDecoderOutput",
    "FQModel",
    "HQAModel",
    "QuantizedLatents",
    "TokenAutoencoder",
    "load_vae",
]
