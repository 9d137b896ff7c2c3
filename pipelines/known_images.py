"""Images to start from, and parts of images to keep, in the terms of the diffusion latents."""

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

Images = PIL.Image.Image | np.ndarray | torch.Tensor | list
ENCODE_BATCH_SIZE = 64
FROM_THE_START = ("LMSDiscreteScheduler", "PNDMScheduler")


class KnownImages:
    """Given images with their diffusion latents, and what of them is to be kept.

    Args:
        vqvae: encodes them.
        image: PIL images, arrays (n, H, W, c) or tensors (n, c, H, W) in [0, 1], one or as many as are made.
        mask_image: the same of one channel: 1, or white, where pixels are made anew; None to keep none.
        num_images: how many are made.
        quantize: take quantized latents, as the UNet has learnt them.
        device: of the latents.

    Raises:
        ValueError: if images or masks do not fit the model, one another or the number of images.
    """

    def __init__(
        self,
        vqvae: ModelMixin,
        image: Images,
        mask_image: Images | None,
        num_images: int,
        quantize: bool,
        device: torch.device,
    ):
        channels = vqvae.config.in_channels
        self.pixels = _as_tensor("image", image, channels, vqvae.sample_size, num_images).to(device)
        parts = []
        for part in self.pixels.split(ENCODE_BATCH_SIZE):
            encoded = vqvae.encode((part * 2 - 1).to(vqvae.dtype)).latents
            encoded = vqvae.quantize_latents(encoded).latents if quantize else vqvae.project_latents(encoded)
            parts.append(vqvae.to_diffusion_latents(encoded))
        self.latents = _for_each(torch.cat(parts), num_images)
        self.pixels = _for_each(self.pixels, num_images)
        self.mask = self.latent_mask = None
        if mask_image is not None:
            if vqvae.config.diffusion_layout != "spatial":
                raise ValueError("mask_image: diffusion latents that are Fourier coefficients have no places to keep")
            mask = _as_tensor("mask_image", mask_image, 1, vqvae.sample_size, num_images)
            self.mask = _for_each(mask.to(device), num_images)
            # Latents take part in what lies around them: those that see any pixel to be made are made.
            self.latent_mask = F.adaptive_max_pool2d(self.mask, self.latents.shape[-2:])

    def start(
        self, scheduler: SchedulerMixin, noise: torch.Tensor, strength: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The timesteps from the one nearest to `strength` of the training's on, and the latents noised to it.

        Not a share of the steps: they may lie closer together where there is little noise, and farther apart elsewhere.

        Raises:
            ValueError: for a scheduler that cannot begin between its steps.
        """
        order = getattr(scheduler, "order", 1)
        aim, moments = strength * scheduler.config.num_train_timesteps, scheduler.timesteps[::order].tolist()
        first = min(range(len(moments)), key=lambda i: abs(moments[i] - aim)) * order
        if first and type(scheduler).__name__ in FROM_THE_START:
            raise ValueError(
                f"strength: {type(scheduler).__name__} goes on from what it has predicted before: it must begin at 1"
            )
        timesteps = scheduler.timesteps[first:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        return timesteps, self.noised(scheduler, noise, timesteps[0])

    def noised(self, scheduler: SchedulerMixin, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The known latents at a timestep."""
        return scheduler.add_noise(self.latents, noise, timestep.view(1).expand(len(noise)))

    def keep_latents(
        self,
        latents: torch.Tensor,
        scheduler: SchedulerMixin,
        timestep: torch.Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> torch.Tensor:
        """Latents at a timestep, or without noise for None, with the known ones where they are to be kept.

        Known latents have new noise at every step, as in RePaint (Lugmayr et al. 2022), which the made ones then fit
        better than the same noise again.
        """
        if self.latent_mask is None:
            return latents
        known = self.latents
        if timestep is not None:
            noise = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=torch.float32)
            known = self.noised(scheduler, noise, timestep)
        return torch.lerp(known, latents, self.latent_mask)

    def keep_pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, c, H, W) in [0, 1] with the known pixels where they are to be kept.

        Decoded latents miss the known pixels by a little, which would show as a seam: what they miss there is carried
        on into the made pixels, and fades away over a sixteenth of the image.
        """
        if self.mask is None:
            return images
        known = 1 - self.mask
        near = _blur(known)
        missed = _blur(known * (self.pixels - images)) / near.clamp(min=1e-4) * (2 * near).clamp(max=1)
        return torch.lerp(self.pixels, (images + missed).clamp(0, 1), self.mask)


def _blur(images: torch.Tensor) -> torch.Tensor:
    """Nearly Gaussian, over a sixteenth of the shorter side."""
    reach = max(1, min(images.shape[-2:]) // 32)
    for _ in range(2):
        images = F.avg_pool2d(images, 2 * reach + 1, 1, reach, count_include_pad=False)
    return images


def _as_tensor(name: str, images: Images, channels: int, size: tuple[int, int], count: int) -> torch.Tensor:
    """Images as they may be given -> (1 or count, channels, H, W) float32 in [0, 1]."""
    processor = VaeImageProcessor(
        do_resize=False, do_normalize=False, do_convert_rgb=channels == 3, do_convert_grayscale=channels == 1
    )
    tensor = processor.preprocess(images).float()
    if tuple(tensor.shape[1:]) != (channels, *size):
        raise ValueError(
            f"{name} must be of {size[0]}x{size[1]} pixels and {channels} channels, not of "
            f"{'x'.join(map(str, tensor.shape[2:]))} and {tensor.shape[1]}"
        )
    if tensor.min() < 0 or tensor.max() > 1:
        raise ValueError(f"{name} must lie in [0, 1], not in {tensor.min():.2g} .. {tensor.max():.2g}")
    if len(tensor) not in (1, count):
        raise ValueError(f"{name}: {len(tensor)} of them for {count} images: give one, or one for each")
    return tensor


def _for_each(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """One, or one for each of `count` images -> one for each."""
    return tensor.expand(count, *tensor.shape[1:])
