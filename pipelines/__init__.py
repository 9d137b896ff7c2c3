from .anything import load_any
from .pipeline_fq_ldm import FQLDMPipeline

__all__ = ["FQLDMPipeline", "load_any"]
