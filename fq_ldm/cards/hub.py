"""Uploads to the Hub: checked before training, named file by file after it."""

import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled

from ..options import DataError, TrainingConfig, UserError, to_yaml

CONFIG_FILE = "training_config.yaml"
# Of the output folder; the rest is for training on, or of others.
PUBLISHED = (
    "README.md", "metrics.json", "reconstructions.png", "samples.png", "model_index.json", "config.json", "*.py",
    "diffusion_pytorch_model*.safetensors", "vqvae/*", "unet/*", "scheduler/*",
)  # fmt: skip


def check_hub(config: TrainingConfig) -> None:
    """Make the repository that the result is to be uploaded to, and see that it may be written to.

    Raises:
        UserError: if nobody is logged in, the name is none, or somebody else's; if it is public and ought not to be.
        DataError: if the Hub cannot be reached.
    """
    if not config.push_to_hub:
        return
    if config.hub_model_id is None:
        raise UserError("push_to_hub: say where to, so that no other model is overwritten: give --hub_model_id")
    if get_token() is None:
        raise UserError("push_to_hub: nobody is logged in: run hf auth login, or set HF_TOKEN")
    try:
        repository = _repository(HfApi(), config)
        HfApi().auth_check(repository, write=True)
        is_public = not HfApi().repo_info(repository).private
    except HFValidationError as error:
        raise UserError(f"hub_model_id: {config.hub_model_id} can be no repository's name ({error})") from error
    except HfHubHTTPError as error:
        raise UserError(f"hub_model_id: {config.hub_model_id} cannot be written to ({_line(error)})") from error
    except (OfflineModeIsEnabled, HTTPError) as error:
        raise DataError(f"push_to_hub: the Hub cannot be reached ({_line(error)})") from error
    if config.hub_private and is_public:
        raise UserError(f"hub_private: {repository} is there, and public; make it private on the Hub or choose another")


def push_to_hub(config: TrainingConfig, options: dict) -> None:
    """Upload what people load and look at, and print where it is.

    Args:
        config: with the output folder and the repository.
        options: the resolved configuration, which is uploaded without the paths of this machine.

    Raises:
        DataError: if that fails; the folder stays, and the same command tries again.
    """
    folder = Path(config.output_dir)
    operations = [
        CommitOperationAdd(file.relative_to(folder).as_posix(), file)
        for pattern in PUBLISHED
        for file in sorted(folder.glob(pattern))
        if file.is_file() and not file.name.endswith(".partial")
    ]
    operations.append(CommitOperationAdd(CONFIG_FILE, to_yaml(public(options)).encode()))
    try:
        repository = _repository(HfApi(), config)
        commit = HfApi().create_commit(repository, operations, commit_message=f"Upload {folder.name}")
    except (HfHubHTTPError, OfflineModeIsEnabled, HTTPError, OSError, RuntimeError) as error:  # the last: of one file
        raise DataError(
            f"push_to_hub: the upload failed ({_line(error)}); {folder} has everything: run the same command again"
        ) from error
    print(f"uploaded to {commit.repo_url}")


def public(options: dict) -> dict:
    """Options as others may see them: of paths of this machine, the last name. Notes are prose, and stay."""
    return {name: value if name == "card_notes" else _public(value) for name, value in options.items()}


def _public(value):
    if isinstance(value, list):
        return [_public(item) for item in value]
    if isinstance(value, str) and re.match(r"(/|~|[A-Za-z]:[\\/]|\.\./)", value):
        return "path/to/" + re.split(r"[/\\]", value.rstrip("/"))[-1]
    return value


def _repository(api: HfApi, config: TrainingConfig) -> str:
    """The whole name of the repository, which is made if it is not there.

    Without the wish for a private one, an organisation's own default holds.
    """
    return api.create_repo(config.hub_model_id, private=config.hub_private or None, exist_ok=True).repo_id


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
