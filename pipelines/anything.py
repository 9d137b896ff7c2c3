"""Loading a pipeline or an FQ-VAE, whichever is there."""

import os

from fq_ldm.models import TokenAutoencoder, load_vae
from fq_ldm.models.loading import is_pipeline

from .pipeline_fq_ldm import FQLDMPipeline


def load_any(name: str, revision: str | None = None) -> FQLDMPipeline | TokenAutoencoder:
    """The pipeline or, if there is none, the FQ-VAE of a folder or Hub repository.

    Raises:
        OSError: if there is neither.
        ValueError: if it is a model of another kind.
    """
    hub = {"revision": revision}
    return FQLDMPipeline.from_pretrained(name, **hub) if is_pipeline(os.fspath(name), hub) else load_vae(name, **hub)
