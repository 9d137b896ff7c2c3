"""Whether a folder holds a run with the same options."""

from pathlib import Path

from .errors import UserError

# Options that a resumed run may change; another value of any other one makes another model.
FREE_OPTIONS = {
    "output_dir", "max_train_steps", "max_train_seconds", "num_train_epochs", "report_to", "logging_steps",
    "checkpointing_steps", "checkpoints_total_limit", "preview_steps", "preview_images", "preview_inference_steps",
    "card_notes", "card_license", "push_to_hub", "hub_model_id", "hub_private", "dry_run", "skip_nonfinite", "compile",
    "dataloader_num_workers",
}  # fmt: skip
# What runs did that were begun before there was the option.
BEFORE = {
    "optimizer": "adamw", "painter_outputs": 1, "painter_equalizer": False, "freeze_taken": False,
    "discriminator_from": None, "own_samples": 0, "distill_steps": 0, "perceptual_weight": 0.0, "projected_weight": 0.0,
    "learnt_channels": 0, "learnt_noise": 0.0, "learnt_scale": 1.0,
    "timestep_logit_mean": 0.0, "linear_teacher": None, "learnt_temperature": 1.0,
}  # fmt: skip


def check_same_run(folder: Path, old: dict, new: dict) -> None:
    """Stop before a run with other options goes on from the checkpoints of this one.

    Raises:
        UserError: naming the options that differ.
    """
    if old.keys().isdisjoint(new):
        raise UserError(f"output_dir: {folder} holds something else than a run of this script; choose another one")
    old = BEFORE | old
    changed = [k for k in new if k not in FREE_OPTIONS and k in old and old[k] != new[k]]
    if changed:
        differences = ", ".join(f"{k} {old[k]} -> {new[k]}" for k in changed)
        raise UserError(
            f"output_dir: {folder} holds checkpoints of a run with other options ({differences}); choose another "
            "output_dir, or delete it to start anew"
        )
