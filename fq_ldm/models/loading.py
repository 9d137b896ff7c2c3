"""Loading a saved model without naming its class."""

import json
import os
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, RepositoryNotFoundError

from .autoencoder import TokenAutoencoder
from .baselines import BaselineModel, HQAModel
from .fq_model import FQModel

CLASSES = {cls.__name__: cls for cls in (FQModel, BaselineModel, HQAModel)}
INDEX_FILE = "model_index.json"  # of a pipeline, which has its FQ-VAE in the subfolder vqvae


def load_vae(
    name: str | os.PathLike,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    **kwargs,
) -> TokenAutoencoder:
    """The FQ-VAE or baseline saved in a folder or a Hub repository, in evaluation mode; of a pipeline, its FQ-VAE.

    Args:
        name: folder or repository.
        subfolder: where in it; by default "vqvae" in a pipeline, and else the folder itself.
        revision: branch, tag or commit of a repository.
        token: for a private one; by default that of `hf auth login`.
        kwargs: others of diffusers' `from_pretrained`: cache_dir, local_files_only, force_download, torch_dtype.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is a model of another kind.
    """
    name = os.fspath(name)
    hub = {"revision": revision, "token": token}
    hub |= {key: kwargs[key] for key in ("cache_dir", "local_files_only", "force_download") if key in kwargs}
    if subfolder is None and is_pipeline(name, hub):
        subfolder = "vqvae"
    class_name = TokenAutoencoder.load_config(name, subfolder=subfolder, **hub).get("_class_name")
    if class_name not in CLASSES:
        raise ValueError(f"{name}: holds a model of class {class_name}, not one of {', '.join(CLASSES)}")
    model, info = CLASSES[class_name].from_pretrained(
        name, subfolder=subfolder, use_safetensors=True, output_loading_info=True, **{**hub, **kwargs}
    )
    if info["missing_keys"] or info["unexpected_keys"]:
        raise ValueError(f"{name}: the weights are those of another model than its config.json describes")
    return model.eval()


def is_pipeline(name: str, hub: dict) -> bool:
    """Whether a folder or repository holds a pipeline.

    Raises:
        OSError: if there is neither.
    """
    if os.path.isdir(name):
        return (Path(name) / INDEX_FILE).is_file()
    try:
        index = fetch_index(name, hub)
    except EntryNotFoundError:  # there is none or, without a network, it was never asked for
        return False
    return "vqvae" in json.loads(index.read_text())


def fetch_index(name: str, hub: dict) -> Path:
    """Download the index of a repository.

    Args:
        name: of the repository.
        hub: arguments of `hf_hub_download`.

    Raises:
        OSError: if there is no such repository, or it cannot be reached.
        EntryNotFoundError: if it has no index.
    """
    try:
        return Path(hf_hub_download(name, INDEX_FILE, **hub))
    except HFValidationError as error:
        raise OSError(f"{name}: there is no such folder, and no repository on the Hub can be called so") from error
    except RepositoryNotFoundError as error:
        raise OSError(f"{name}: there is no such folder and, for this login, no such repository on the Hub") from error
    except OSError:  # an answer of the Hub, which says what is wrong
        raise
    except HTTPError as error:
        raise OSError(f"{name}: there is no such folder, and the Hub cannot be reached ({error})") from error
