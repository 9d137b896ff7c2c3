"""Unconditional image generation: diffusion on the quantized frequency latents of an FQ-VAE."""

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, SchedulerMixin, UNet2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import snapshot_download

from fq_ldm.models import TokenAutoencoder

INDEX_FILE = "model_index.json"
LIBRARIES = ("fq_ldm", "diffusers")  # that components may come from
FEW_STEPS = 50  # of schedulers that need fewer than DDPM
DECODE_BATCH_SIZE = 64  # images decoded at a time: the decoder works at full resolution


class FQLDMPipeline(DiffusionPipeline):
    """Samples images: noise -> UNet and scheduler -> FQ-VAE latents -> quantize and decode.

    Args:
        vqvae: a trained `FQModel`, or a baseline.
        unet: denoises the FQ-VAE's diffusion latents; its channels and size are the model's
            `diffusion_latent_shape`.
        scheduler: any diffusers scheduler whose `step` takes (model_output, timestep, sample). It must not
            clip the predicted sample to [-1, 1], since standardised latents reach further: `clip_sample=False`.
        quantize_samples: snap sampled latents to the codebook before they are decoded, which takes small errors of
            the UNet away; not for a decoder that was trained on unquantized latents.

    Raises:
        ValueError: if the UNet's channels are not those of the diffusion latents.
    """

    model_cpu_offload_seq = "unet"
    # It is small, and its tokens, codebook and latents are reached through methods: offloading finds only `forward`.
    _exclude_from_cpu_offload = ["vqvae"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self, vqvae: TokenAutoencoder, unet: UNet2DModel, scheduler: SchedulerMixin, quantize_samples: bool = True
    ):
        super().__init__()
        channels = vqvae.diffusion_latent_shape[0]
        if unet.config.in_channels != channels or unet.config.out_channels != channels:
            raise ValueError(
                f"the UNet maps {unet.config.in_channels} to {unet.config.out_channels} channels, but the diffusion "
                f"latents of this FQ-VAE have {channels}: was the UNet trained with another FQ-VAE?"
            )
        self.register_modules(vqvae=vqvae, unet=unet, scheduler=scheduler)
        self.register_to_config(quantize_samples=quantize_samples)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "FQLDMPipeline":
        """Load a pipeline folder or a Hub repository; weights are read from safetensors only.

        The arguments are those of `DiffusionPipeline.from_pretrained`.

        Raises:
            OSError: if there is no such folder or repository, or a file is missing.
            ValueError: if it holds a pipeline of another kind.
        """
        if not os.path.isdir(pretrained_model_name_or_path):
            # diffusers downloads components of other packages only together with their code. Ours is installed.
            download = {k: kwargs.pop(k) for k in ("cache_dir", "revision", "token", "local_files_only") if k in kwargs}
            pretrained_model_name_or_path = snapshot_download(str(pretrained_model_name_or_path), **download)
        _check_index(Path(pretrained_model_name_or_path))
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **{"use_safetensors": True, **kwargs})
        for name in ("vqvae", "unet"):
            # diffusers only warns of weights that a file lacks, and leaves them empty.
            if any(parameter.is_meta for parameter in getattr(pipeline, name).parameters()):
                raise ValueError(f"{pretrained_model_name_or_path}: {name} has the weights of another model")
        return pipeline

    @torch.no_grad()
    def __call__(
        self,
        num_images: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """Generate images.

        Args:
            num_images: how many.
            num_inference_steps: denoising steps; by default those of the training (1000) for `DDPMScheduler`, as in the
                paper, and 50 for other schedulers.
            generator: one generator for the batch, or a list with one for each image. An image made with a
                generator of its own does not depend on the batch it is made in.
            eta: noise added at each step, from 0 (none) to 1, for schedulers that have it (DDIM).
            latents: starting noise of unit variance (num_images, C, H, W), drawn from `generator` if None.
            output_type: "pil" (list of images), "np" (num_images, H, W, c) or "pt" (num_images, c, H, W),
                the last two float32 in [0, 1].
            return_dict: return an `ImagePipelineOutput`, else a tuple with the images.
            callback_on_step_end: called after each step as `callback(pipeline, step, timestep, tensors)`; a
                "latents" in the dictionary that it returns replaces the current ones.
            callback_on_step_end_tensor_inputs: names in `tensors`; only "latents" exists.

        Returns:
            `ImagePipelineOutput` with `images`, or `(images,)`.

        Raises:
            ValueError: for an argument that fits neither the pipeline nor its scheduler.
        """
        self._check_inputs(num_images, generator, latents, output_type, callback_on_step_end_tensor_inputs)
        step_kwargs = self._step_kwargs(generator, eta)
        if num_inference_steps is None:
            all_steps = self.scheduler.config.num_train_timesteps
            num_inference_steps = all_steps if isinstance(self.scheduler, DDPMScheduler) else min(FEW_STEPS, all_steps)
        device = self._execution_device
        shape = (num_images, *self.vqvae.diffusion_latent_shape)

        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        latents = latents.to(device, self.unet.dtype)

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = latents * self.scheduler.init_noise_sigma

        # Denoise.
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            model_input = self.scheduler.scale_model_input(latents, t)
            prediction = self.unet(model_input, t).sample
            latents = self.scheduler.step(prediction, t, latents, **step_kwargs).prev_sample
            if callback_on_step_end is not None:
                latents = (callback_on_step_end(self, i, t, {"latents": latents}) or {}).get("latents", latents)

        # Decode.
        generators = generator if isinstance(generator, list) else None
        parts = []
        for start in range(0, num_images, DECODE_BATCH_SIZE):
            part = slice(start, start + DECODE_BATCH_SIZE)
            parts.append(self._decode(latents[part], generators[part] if generators else generator))
        images = torch.cat(parts)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)

        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _decode(self, latents: torch.Tensor, generator) -> torch.Tensor:
        latents = self.vqvae.from_diffusion_latents(latents)
        kept = not self.config.quantize_samples
        images = self.vqvae.decode(latents, force_not_quantize=kept, generator=generator).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def _step_kwargs(self, generator, eta: float) -> dict:
        """What this scheduler's `step` takes beside the model's output: schedulers differ."""
        accepted = inspect.signature(self.scheduler.step).parameters
        kwargs = {}
        if "eta" in accepted:
            kwargs["eta"] = eta
        elif eta != 0:
            raise ValueError(f"{type(self.scheduler).__name__} has no eta; leave it at 0 or use DDIMScheduler")
        if "generator" in accepted:
            kwargs["generator"] = generator
        return kwargs

    def _check_inputs(self, num_images, generator, latents, output_type, callback_tensor_inputs):
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, not {num_images}")
        if isinstance(generator, list) and len(generator) != num_images:
            raise ValueError(f"{len(generator)} generators for {num_images} images: give one for each image")
        shape = (num_images, *self.vqvae.diffusion_latent_shape)
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"latents must have the shape {shape}, not {tuple(latents.shape)}")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'output_type must be "pil", "np" or "pt", not {output_type!r}')
        unknown = set(callback_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has unknown names {sorted(unknown)}; only 'latents' exists"
            )
        if self.scheduler.config.get("clip_sample", False) and self.scheduler.config.get("clip_sample_range", 1.0) <= 1:
            raise ValueError(
                f"{type(self.scheduler).__name__} clips the predicted latents to [-1, 1], which ruins the images: "
                "make it with clip_sample=False, or with from_config(pipeline.scheduler.config)"
            )


def _check_index(folder: Path) -> None:
    """Refuse a folder that is no `FQLDMPipeline` before diffusers imports whatever its index names."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise OSError(f"{folder} holds no pipeline: {INDEX_FILE} is missing")
    try:
        index = json.loads(path.read_text())
        found = index["_class_name"]
        components = {name: tuple(index[name]) for name in ("vqvae", "unet", "scheduler")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the index of an FQLDMPipeline ({type(error).__name__}: {error})") from error
    if found != "FQLDMPipeline":
        raise ValueError(f"{folder} holds a pipeline of class {found}, not FQLDMPipeline")
    for name, component in components.items():
        if len(component) != 2 or component[0] not in LIBRARIES:
            raise ValueError(f"{path}: {name} is {list(component)}, not a class of {' or '.join(LIBRARIES)}")
