"""What the page shows, as pictures: nothing here knows of the page."""

import math
import queue
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps

from fq_ldm import FQLDMPipeline
from fq_ldm.data import to_tensor
from fq_ldm.diffusion import fast_scheduler
from fq_ldm.metrics import psnr, to_uint8
from fq_ldm.pipelines.guidance import has_attention

SHOWN = 256  # pixels, at least, of the longer side of a picture
PREVIEWS = 5  # pictures on the way to a sample


class Looks:
    """A pipeline, and all the looks at it. One at a time: the pipeline's scheduler counts its steps.

    Args:
        name: folder or repository of the pipeline.
    """

    def __init__(self, name: str):
        self.pipeline = FQLDMPipeline.from_pretrained(name)
        self.pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.scheduler = fast_scheduler(self.pipeline.scheduler)
        self.has_attention = has_attention(self.pipeline.unet)
        self.lock = threading.Lock()
        self.vae = self.pipeline.vqvae
        self.class_names = self.pipeline.config.class_names or []
        height, width = self.vae.sample_size
        self.summary = (
            f"{name}: images of {height}x{width} pixels from {self.vae.config.num_tokens} tokens of "
            f"{self.vae.bits_per_image / self.vae.config.num_tokens:g} bits, each of which describes the whole image."
        )

    def generate(
        self, seed: int, count: int, steps: int, label: str | None, guidance: float, guide_all: bool
    ) -> Iterator[tuple[float, list[Image.Image]]]:
        """Yield the share of the steps that is done, and the pictures as far as they are.

        Args:
            seed: of the first picture; the others have the next ones.
            count: how many.
            steps: of DPM-Solver++.
            label: name of a class, or None.
            guidance: its scale; of classes only.
            guide_all: by attention, in place of those pictures that the pipeline was saved to guide.
        """
        found: queue.Queue = queue.Queue()
        every = max(1, steps // PREVIEWS)

        def look(pipeline, step, timestep, tensors):
            if (step + 1) % every == 0 and step + 1 < steps:
                found.put(((step + 1) / steps, self._decode(tensors["latents"])))
            return {}

        def work():
            seeds = [torch.Generator().manual_seed(seed + i) for i in range(count)]
            options = {"callback_on_step_end": look}
            if guide_all:
                options |= {"pag_scale": self.pipeline.config.pag_scale or 1.0, "pag_threshold": math.inf}
            if self.class_names:
                options |= {"class_labels": label, "guidance_scale": guidance}
            try:
                with self.lock:
                    images = self.pipeline(count, steps, seeds, **options).images
                found.put((1.0, [enlarge(image) for image in images]))
            except Exception as error:  # to be raised where somebody waits for pictures
                found.put(error)

        threading.Thread(target=work, daemon=True).start()
        share = 0.0
        while share < 1:
            item = found.get()
            if isinstance(item, Exception):
                raise item
            share = item[0]
            yield item

    @torch.no_grad()
    def reconstruct(self, image: Image.Image) -> tuple[Image.Image, Image.Image, Image.Image, str]:
        """The image cut to size, its reconstruction, its tokens as colours, and bits and PSNR in words."""
        pixels = self._fit(image)
        tokens = self.vae.tokenize(pixels)
        decoded = self.vae.detokenize(tokens).clamp(-1, 1)
        quality = psnr((decoded + 1) / 2, (pixels + 1) / 2).item()
        raw = 8 * pixels.numel()
        bits = self.vae.bits_per_image
        words = f"{bits:.0f} bits in place of {raw}: {raw / bits:.0f} times fewer. PSNR {quality:.1f} dB."
        return (*map(enlarge, to_pictures(torch.cat([pixels, decoded]))), self.draw_tokens(tokens), words)

    def draw_tokens(self, tokens: torch.Tensor) -> Image.Image:
        """Tokens (1, U) as a square of colours, one for each entry of the codebook."""
        number = tokens.shape[1]
        columns = math.ceil(math.sqrt(number))
        shades = np.random.default_rng(0).integers(40, 256, (self.vae.config.num_vq_embeddings, 3), np.uint8)
        square = np.zeros((columns * math.ceil(number / columns), 3), np.uint8)
        square[:number] = shades[tokens[0].cpu()]
        return enlarge(Image.fromarray(square.reshape(-1, columns, 3)))

    @torch.no_grad()
    def without_token(self, image: Image.Image, token: int) -> tuple[Image.Image, Image.Image, Image.Image, str]:
        """The reconstruction, the same without one token, their difference around grey, and how much changed."""
        whole = self._quantized(image)
        lacking = whole.clone()
        lacking[:, token] = 0  # the mean over the training images
        before, after = self._images(whole), self._images(lacking)
        change = after - before
        changed = (change.abs() > 1 / 127.5).any(1).float().mean().item()
        stretched = change / change.abs().amax().clamp(min=1e-6)
        words = f"Without token {token}, {changed:.0%} of the pixels change: it is nowhere, and everywhere."
        return (*map(enlarge, to_pictures(torch.cat([before, after, stretched]))), words)

    @torch.no_grad()
    def swap_bands(self, first: Image.Image, second: Image.Image) -> list[tuple[Image.Image, str]]:
        """The first image with ever more of the second's tokens, from their strongest numbers on: coarse to fine."""
        one, two = self._quantized(first), self._quantized(second)
        pictures = []
        for bands in range(one.shape[-1] + 1):
            mixed = torch.cat([two[..., :bands], one[..., bands:]], -1)
            (picture,) = to_pictures(self._images(mixed))
            pictures.append((enlarge(picture), f"{bands} of {one.shape[-1]}"))
        return pictures

    def interpolate(self, first: int, second: int, count: int, steps: int, label: str | None) -> list[Image.Image]:
        """Pictures on the way from the noise of one seed to that of another, by DDIM without added noise.

        Args:
            first: seed.
            second: seed.
            count: of pictures.
            steps: of DDIM.
            label: name of the class of all of them; None where there are no classes.
        """
        shape = self.vae.diffusion_latent_shape
        one, two = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (first, second))
        angles = torch.linspace(0, math.pi / 2, count)
        noise = torch.stack([math.cos(angle) * one + math.sin(angle) * two for angle in angles])
        with self.lock:
            ddim = DDIMScheduler.from_config(self.pipeline.scheduler.config)
            pipeline = FQLDMPipeline.from_pipe(self.pipeline, scheduler=ddim)
            pipeline.set_progress_bar_config(disable=True)
            # Guided or not by a threshold, neighbours on the way would jump.
            images = pipeline(num_inference_steps=steps, latents=noise, class_labels=label, pag_scale=0.0).images
            return [enlarge(image) for image in images]

    def examples(self, count: int = 4, steps: int = 20) -> list[str]:
        """Files with pictures to begin with, for who has none at hand: samples of the pipeline itself."""
        seeds = [torch.Generator().manual_seed(seed) for seed in range(count)]
        self._examples = tempfile.TemporaryDirectory(prefix="fq-ldm-")  # gone when this is
        folder = Path(self._examples.name)
        with self.lock:
            images = self.pipeline(count, steps, seeds).images
        for number, image in enumerate(images):
            image.save(folder / f"{number}.png")
        return [str(folder / f"{number}.png") for number in range(count)]

    def _fit(self, image: Image.Image) -> torch.Tensor:
        """An image of any size -> (1, c, H, W) in [-1, 1], its middle."""
        height, width = self.vae.sample_size
        image = ImageOps.exif_transpose(image).convert("L" if self.vae.config.in_channels == 1 else "RGB")
        return to_tensor(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))[None].to(self.vae.device)

    def _quantized(self, image: Image.Image) -> torch.Tensor:
        """The quantized tokens (1, U, m) of an image."""
        return self.vae.quantize.codebook(self.vae.tokenize(self._fit(image)))

    def _images(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (n, U, m) -> images (n, c, H, W) in [-1, 1]."""
        return self.vae.decode(self.vae.quantize.join(tokens), force_not_quantize=True).sample.clamp(-1, 1)

    def _decode(self, latents: torch.Tensor) -> list[Image.Image]:
        images = VaeImageProcessor.pt_to_numpy(self.pipeline.decode(latents))
        return [enlarge(picture) for picture in self.pipeline.numpy_to_pil(images)]


def to_pictures(images: torch.Tensor) -> list[Image.Image]:
    """Images (n, c, H, W) in [-1, 1] -> pictures."""
    pixels = to_uint8(images).cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(each.squeeze(-1) if each.shape[-1] == 1 else each) for each in pixels]


def enlarge(picture: Image.Image) -> Image.Image:
    """A small picture with each pixel as a square, large enough to see."""
    scale = -(-SHOWN // max(picture.size))
    return picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)
