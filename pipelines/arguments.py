"""What a pipeline is called with: how many images that makes, and what is refused."""

import torch
from diffusers import SchedulerMixin

# What a pipeline is saved with that was found for its UNet, and what stands in its place for another one.
OF_UNET = {"num_inference_steps": None, "pag_scale": 0.0, "pag_threshold": None}


def how_many(num_images: int | None, batch_size: int | None, latents: torch.Tensor | None, image) -> int:
    """As many as are asked for, under either name, or as there is something to start from."""
    if num_images is not None and batch_size is not None:
        raise ValueError("batch_size is another word for num_images: give one of them")
    if num_images is None:
        num_images = batch_size
    if num_images is None:
        num_images = len(latents) if latents is not None else len(image) if _is_batch(image) else 1
    return num_images


def _is_batch(image) -> bool:
    """Whether images are given as a list, or as an array or tensor of four dimensions."""
    return isinstance(image, list | tuple) or getattr(image, "ndim", 0) == 4


def check_steps(steps: int | None, scheduler: SchedulerMixin) -> None:
    """Raise a `ValueError` for more steps than those of the training, or none."""
    most = scheduler.config.num_train_timesteps
    if steps is not None and not 1 <= steps <= most:
        raise ValueError(f"num_inference_steps must lie in 1 .. {most}, the steps of the training, not {steps}")


def check_start(image, strength: float | None, mask_image) -> None:
    """Raise a `ValueError` for what does not go with an image to start from, or without one."""
    if image is None and mask_image is not None:
        raise ValueError("mask_image says what is kept of an image: give image too")
    if image is None and strength is not None:
        raise ValueError("strength says how much of an image is made anew: give image too")
    if strength is not None and not 0 < strength <= 1:
        raise ValueError(f"strength must lie in 0 .. 1, above 0, not {strength}")


def check_inputs(num_images: int, generator, latents: torch.Tensor | None, shape: tuple, output_type: str) -> None:
    """Raise a `ValueError` for latents that have not this shape (n, C, H, W), as many generators, or a type unknown."""
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, not {num_images}")
    generators = generator if isinstance(generator, list) else [generator]
    if not all(each is None or isinstance(each, torch.Generator) for each in generators):
        raise ValueError("generator must be a torch.Generator, a list of them or None: torch.manual_seed gives one")
    if isinstance(generator, list) and len(generator) != num_images:
        raise ValueError(f"{len(generator)} generators for {num_images} images: give one for each image")
    if latents is not None and tuple(latents.shape) != shape:
        raise ValueError(f"latents must have the shape {shape}, not {tuple(latents.shape)}")
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f'output_type must be "pil", "np", "pt" or "latent", not {output_type!r}')


def check_callback(names: tuple[str, ...], known: list[str]) -> None:
    """Raise a `ValueError` for tensors that no callback can be given."""
    if unknown := set(names) - set(known):
        raise ValueError(
            f"callback_on_step_end_tensor_inputs has unknown names {sorted(unknown)}; only 'latents' exists"
        )
