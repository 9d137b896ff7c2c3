"""Loading pipelines with the installed package: the index first, then only what it names; no code of a repository."""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError

from fq_ldm.models import CLASSES, TokenAutoencoder, load_vae
from fq_ldm.models.loading import INDEX_FILE, fetch_index

from .arguments import OF_UNET
from .schedules import OF_TRAINING

OURS = "fq_ldm"  # the library that components are imported from, whatever file a repository brings
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")
WEIGHTS = "diffusion_pytorch_model"
CONFIG_FILE = "config.json"  # of an FQ-VAE alone
CARD = """---
library_name: diffusers
tags: [fq-vae, fq-ldm, vector-quantization, latent-diffusion]
---

# {name}

Latent diffusion on the quantized frequency latents of an FQ-VAE.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{repo_id}", trust_remote_code=True)
images = pipeline(num_images=16).images
```
"""  # for a pipeline that comes from no folder with a card


class PackageLoading:
    """What `FQLDMPipeline` does with folders and repositories where this package is installed."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """Load a pipeline folder or a Hub repository; weights are read from safetensors only.

        The arguments are those of `DiffusionPipeline.from_pretrained`. Code that lies in the repository is not run.
        With a `unet` that is given, steps and guidance that were found for the saved one are left out.

        Raises:
            OSError: if there is no such folder or repository, or a file is missing.
            ValueError: if it holds a pipeline of another kind, or was trained on other latents than those of a `vqvae`
                that is given in place of its own.
        """
        name = os.fspath(pretrained_model_name_or_path)
        folder = name if os.path.isdir(name) else cls.download(name, **kwargs)
        read_index(Path(folder))
        if kwargs.get("vqvae") is not None:
            check_latents(name, Path(folder), kwargs["vqvae"], kwargs.get("variant"))
        if kwargs.get("unet") is not None:
            kwargs = OF_UNET | kwargs
        pipeline = super().from_pretrained(folder, **{"use_safetensors": True, **kwargs})
        # A scheduler that is given in place of the saved one must go through the same noise.
        saved = json.loads((Path(folder) / "scheduler" / SCHEDULER_CONFIG_NAME).read_text())
        pipeline._trained_schedule = {key: saved[key] for key in OF_TRAINING if key in saved}
        for component in ("vqvae", "unet"):
            # diffusers only warns of weights that a file lacks, and leaves them empty.
            if any(parameter.is_meta for parameter in getattr(pipeline, component).parameters()):
                raise ValueError(f"{name}: {component} has the weights of another model")
        return pipeline

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str:
        """Download a pipeline from the Hub: what its index names, and its card. Returns the folder.

        The arguments are those of `DiffusionPipeline.download`. A UNet that is given is not downloaded; an FQ-VAE and
        a scheduler are: given ones must have their latents and their noise.

        Raises:
            OSError: if there is no such repository, it cannot be reached, or the connection breaks again and again.
            ValueError: if it holds a pipeline of another kind.
        """
        if kwargs.get("proxies"):
            raise ValueError("proxies: huggingface_hub takes them from the environment: set HTTPS_PROXY instead")
        hub = {name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None}
        index = fetch_index(pretrained_model_name, {"revision": kwargs.get("revision"), **hub})
        folder = index.parent  # named by the commit
        components = [name for name in read_index(folder) if name not in kwargs or name != "unet"]
        variant = kwargs.get("variant")
        having = set(components)
        patterns = [INDEX_FILE, "README.md", "samples.png"]
        try:
            if variant and not kwargs.get("local_files_only"):
                files = HfApi(token=kwargs.get("token")).list_repo_files(pretrained_model_name, revision=folder.name)
                having = {file.partition("/")[0] for file in files if f"{WEIGHTS}.{variant}" in file}
            for component in components:
                patterns += _wanted(component, variant if component in having else None)
            return snapshot_download(pretrained_model_name, revision=folder.name, allow_patterns=patterns, **hub)
        except OSError:  # an answer of the Hub, which says what is wrong
            raise
        except HTTPError as error:
            raise OSError(
                f"{pretrained_model_name}: the download broke off ({error}); call it again: it goes on from there"
            ) from error

    @classmethod
    def load_config(cls, pretrained_model_name_or_path, **kwargs):
        """The index, with the classes of this package in place of those that the repository brings."""
        loaded = super().load_config(pretrained_model_name_or_path, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][1]
        if isinstance(config.get("vqvae"), list | tuple) and config["vqvae"][1] in CLASSES:
            config["vqvae"] = [OURS, config["vqvae"][1]]
        return loaded

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        variant: str | None = None,
    ) -> str:
        """Upload the pipeline with its code and, where it was loaded from a folder with a card, with that card.

        A UNet whose weights are all numbers of float16 is uploaded in float16: nothing is lost, and half of it saved.

        Returns:
            The address of the commit.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            dtype = self.unet.dtype
            if all((weight.half().to(dtype) == weight).all() for weight in self.unet.parameters()):
                self.unet.half()
            try:
                self.save_pretrained(folder, variant=variant)
            finally:
                self.unet.to(dtype)
            forget_paths(Path(folder))
            source = self.config.get("_name_or_path")
            write_card(Path(source) if source else None, Path(folder), repo_id)
            message = commit_message or f"Upload {type(self).__name__}"
            return api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=message, create_pr=create_pr
            ).commit_url


def read_index(folder: Path) -> list[str]:
    """The components that the index of an `FQLDMPipeline` names; other pipelines are refused.

    Both forms are known: classes of the package, and those of files beside the weights.

    Raises:
        OSError: if there is no index.
        ValueError: if it is that of another pipeline, or names a class of another library.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise OSError(f"{folder} holds no pipeline: {INDEX_FILE} is missing")
    try:
        index = json.loads(path.read_text())
        found = index["_class_name"]
        components = {name: tuple(index[name]) for name in ("vqvae", "unet", "scheduler")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the index of an FQLDMPipeline ({type(error).__name__}: {error})") from error
    if found not in ("FQLDMPipeline", ["pipeline_fq_ldm", "FQLDMPipeline"]):
        raise ValueError(f"{folder} holds a pipeline of class {found}, not FQLDMPipeline")
    for name, component in components.items():
        if not _is_known(name, component):
            raise ValueError(f"{path}: {name} is {list(component)}, not a class of fq_ldm or diffusers")
    return list(components)


def check_latents(name: str, folder: Path, vae: TokenAutoencoder, variant: str | None) -> None:
    """Raise a `ValueError` if the diffusion latents of an FQ-VAE are not those that a pipeline was trained on."""
    has_variant = variant is not None and any((folder / "vqvae").glob(f"{WEIGHTS}.{variant}*"))
    saved = load_vae(folder, "vqvae", variant=variant if has_variant else None).diffusion_view
    if not vae.diffusion_view.resembles(saved):
        raise ValueError(
            f"vqvae: has other diffusion latents than those that the UNet of {name} was trained on: train it with "
            f"train_vae.py --start_from {name}"
        )


def _is_known(name: str, component: tuple) -> bool:
    """Whether a component of an index is a class that such a pipeline may have, in either form."""
    if len(component) != 2 or not all(isinstance(part, str) for part in component):
        return False
    library, class_name = component
    if name != "vqvae":
        return library == "diffusers"
    return class_name in CLASSES and library in (OURS, CLASSES[class_name].__init__.__module__.rpartition(".")[2])


def _wanted(component: str, variant: str | None) -> list[str]:
    """Patterns of the files that a component is loaded from."""
    suffix = f".{variant}" if variant else ""
    names = [f"{WEIGHTS}{suffix}.safetensors", f"{WEIGHTS}{suffix}-?????-of-?????.safetensors"]
    return [f"{component}/{name}" for name in ("*.json", *names)]


def forget_paths(folder: Path) -> None:
    """Take the paths that components were loaded from out of their configurations."""
    for file in folder.glob("*/*.json"):
        config = json.loads(file.read_text())
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_card(source: Path | None, target: Path, repo_id: str) -> None:
    """The card and the pictures of the folder that a model was loaded from, with the new name in its lines.

    A pipeline from no such folder is given a short one.
    """
    of_model = source is not None and any((source / name).is_file() for name in (INDEX_FILE, CONFIG_FILE))
    if of_model and (card := source / "README.md").is_file():
        lines = re.sub(r'(from_pretrained|load_vae)\("[^"]*"', rf'\1("{repo_id}"', card.read_text())
        for picture in source.glob("*.png"):
            shutil.copy(picture, target)
    else:
        lines = CARD.format(name=repo_id.rpartition("/")[2], repo_id=repo_id)
    (target / "README.md").write_text(lines)
