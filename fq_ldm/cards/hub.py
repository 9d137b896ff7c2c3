"""Uploads to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi

from ..options import LATENTS_FOLDER, TrainingConfig


def push_to_hub(config: TrainingConfig) -> None:
    """Upload the output folder, without what only training needs; the login is that of `hf auth login`."""
    api = HfApi()
    repository = config.hub_model_id or Path(config.output_dir).name
    repository = api.create_repo(repository, private=config.hub_private, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repository,
        folder_path=config.output_dir,
        ignore_patterns=["checkpoints/**", "logs/**", f"{LATENTS_FOLDER}/**"],
    )
