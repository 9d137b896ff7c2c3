from .pipeline_fq_ldm import FQLDMPipeline

__all__ = ["FQLDMPipeline"]
