from .codebook import Codebook
from .graph import GraphModule
from .quantizer import FrequencyQuantizer, QuantizedTokens
from .tokens import FrequencyTokens

__all__ = ["Codebook", "FrequencyQuantizer", "FrequencyTokens", "GraphModule", "QuantizedTokens"]
