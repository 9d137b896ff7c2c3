from .fq_model import FQDecoderOutput, FQModel, QuantizedLatents

__all__ = ["FQDecoderOutput", "FQModel", "QuantizedLatents"]
