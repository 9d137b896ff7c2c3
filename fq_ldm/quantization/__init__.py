from .bank import BankTokens
from .codebook import Codebook, QuantizedTokens
from .filters import DynamicFilterTokens
from .graph import GraphModule
from .grid import GridTokens, TransformerTokens
from .quantizer import TokenQuantizer
from .stochastic import StochasticCodebook
from .tokens import InterleavedTokens

__all__ = [
    "BankTokens",
    "Codebook",
    "DynamicFilterTokens",
    "GraphModule",
    "GridTokens",
    "InterleavedTokens",
    "QuantizedTokens",
    "StochasticCodebook",
    "TokenQuantizer",
    "TransformerTokens",
]
