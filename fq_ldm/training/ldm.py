"""What `train_ldm.py` leaves: samples, and the pipeline with its card."""

from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel

from ..cards import display_scale, push_to_hub, save_card, save_grid, save_metrics
from ..diffusion import fast_scheduler, sampling_scheduler
from ..models import TokenAutoencoder
from ..options import LDMConfig, TrainingConfig
from ..pipelines import FQLDMPipeline

USAGE = {
    "ddpm": """from diffusers import DPMSolverMultistepScheduler
from fq_ldm import FQLDMPipeline

pipeline = FQLDMPipeline.from_pretrained("{folder}")
images = pipeline(num_images=16).images  # {steps} steps

pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
    pipeline.scheduler.config, algorithm_type="sde-dpmsolver++"
)
images = pipeline(num_images=16).images  # 50 steps""",
    "dpm_solver": """from diffusers import DDPMScheduler
from fq_ldm import FQLDMPipeline

pipeline = FQLDMPipeline.from_pretrained("{folder}")
images = pipeline(num_images=16).images  # 50 steps of DPM-Solver++

pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
images = pipeline(num_images=16).images  # {steps} steps, as in the paper""",
}


def sample(unet: UNet2DModel, vae: TokenAutoencoder, scheduler, ldm: LDMConfig) -> torch.Tensor:
    """The same few images at every call: (n, c, H, W) in [0, 1]; the UNet is evaluated."""
    unet.eval()
    pipeline = FQLDMPipeline(
        vae, unet, sampling_scheduler(scheduler, ldm.preview_inference_steps), ldm.quantize_samples
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(ldm.preview_images, ldm.preview_inference_steps, generator, output_type="pt").images


def draw_samples(images: torch.Tensor, path: Path) -> np.ndarray:
    """Write images (n, c, H, W) in [0, 1] as a nearly square grid, as `save_grid` does."""
    return save_grid(images, path, max(1, round(len(images) ** 0.5)), display_scale(images.shape[-2]))


def finish(pipeline: FQLDMPipeline, ldm: LDMConfig, config: TrainingConfig, metrics: dict, options: dict) -> None:
    """Save the pipeline, a picture of its samples and its card."""
    folder = Path(config.output_dir)
    if ldm.save_precision == "fp16":
        pipeline.unet.half()  # the FQ-VAE is small, and its codebook must not be rounded
    if ldm.save_scheduler == "dpm_solver":
        pipeline.scheduler = fast_scheduler(pipeline.scheduler)
    pipeline.save_pretrained(folder)
    pipeline.unet.float()
    images = sample(pipeline.unet, pipeline.vqvae, pipeline.scheduler, ldm)
    draw_samples(images, folder / "samples.png")
    save_metrics(folder, metrics)
    parameters = sum(p.numel() for p in pipeline.unet.parameters())
    channels, height, width = pipeline.vqvae.diffusion_latent_shape
    save_card(
        folder,
        title=f"FQ-LDM on {Path(options['dataset']).name}",
        summary=f"Latent diffusion on the quantized frequency latents of an FQ-VAE: a UNet of {parameters / 1e6:.2f} M "
        f"parameters on {channels}x{height}x{width} latents, {pipeline.vqvae.bits_per_image:.0f} bits per image. "
        f"The samples are not selected; {ldm.preview_inference_steps} steps of DPM-Solver++.",
        picture="samples.png",
        usage=USAGE[ldm.save_scheduler].format(folder=folder.name, steps=ldm.num_train_timesteps),
        metrics={**metrics, "bits_per_image": pipeline.vqvae.bits_per_image, "unet_parameters": parameters},
        options=options,
        script="train_ldm",
        limits="For research on generative models. Samples are unconditional and not filtered; what is rare in the "
        "data is rarer in them. They show nobody and nothing real: do not pass them off as such.",
        pipeline_tag="unconditional-image-generation",
    )
    if config.push_to_hub:
        push_to_hub(config)
