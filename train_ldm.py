"""Train latent diffusion on an FQ-VAE: accelerate launch train_ldm.py --config configs/mnist/ldm.yaml --vae DIR"""

from pathlib import Path

import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel

from fq_ldm import FQLDMPipeline
from fq_ldm.models import TokenAutoencoder
from fq_ldm.training.config import DataConfig, LDMConfig, TrainingConfig, parse_config, resolved, run_script
from fq_ldm.training.data import BAD_IMAGES_FILE, load_images
from fq_ldm.training.diffusion import (
    build_scheduler,
    build_unet,
    check_vae,
    choose_view,
    diffusion_loss,
    encode_images,
    fast_scheduler,
    held_out_loss,
    load_or_cache_latents,
    measure_view_,
    open_vae,
    sampling_scheduler,
    start_from_,
)
from fq_ldm.training.hub import push_to_hub, save_card, save_metrics
from fq_ldm.training.loop import train
from fq_ldm.training.pictures import display_scale, save_grid
from fq_ldm.training.setup import make_accelerator, make_loader, start_run

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


def main(argv: list[str]) -> None:
    data, ldm, config = parse_config(
        argv, DataConfig, LDMConfig, TrainingConfig, required=("dataset", "output_dir", "vae")
    )
    options = resolved(data, ldm, config)
    vae = open_vae(ldm.vae)
    check_vae(vae, ldm.vae, data)
    view_is_new = choose_view(vae, ldm)
    unet = build_unet(ldm, vae.diffusion_latent_shape)
    start_run(config, options)
    if config.dry_run:
        return

    accelerator = make_accelerator(config)
    folder = Path(config.output_dir)
    vae.to(accelerator.device).requires_grad_(False)
    unet = build_unet(ldm, vae.diffusion_latent_shape)  # again, now that the seed is set
    if ldm.start_from is not None:
        start_from_(unet, ldm.start_from)
    scheduler = build_scheduler(ldm)
    ema = EMAModel(unet.parameters(), decay=ldm.ema_decay) if ldm.use_ema else None
    if ema is not None:
        ema.to(accelerator.device)
    train_images, validation_images = load_images(data, folder / BAD_IMAGES_FILE)
    if view_is_new or ldm.target == "unquantized":  # train_vae.py has measured the quantized latents
        measure_view_(vae, train_images, ldm.target)
    if ldm.cache_latents:
        with accelerator.main_process_first():
            train_data = load_or_cache_latents(folder, vae, train_images, ldm.target, data.random_flip)
    else:
        train_data = train_images

    def compute_loss(prepared, batch, generator):
        if ldm.cache_latents:
            views = torch.randint(batch.shape[1], (len(batch),), device=batch.device, generator=generator)
            latents = batch[torch.arange(len(batch), device=batch.device), views]
        else:
            latents = encode_images(vae, batch, ldm.target, data.random_flip, generator)
        return diffusion_loss(prepared, scheduler, latents, generator, ldm.snr_gamma), {}

    def preview(step):
        images = sample(unet, vae, scheduler, ema, ldm)
        path = folder / "previews" / f"{step:08d}.png"
        return {"samples": save_grid(images, path, columns(len(images)), display_scale(data.size[0]))}

    loader = make_loader(train_data, config, data.dataloader_num_workers)
    progress = train(accelerator, config, unet, loader, compute_loss, preview, ema)

    unet = accelerator.unwrap_model(unet, keep_fp32_wrapper=False)
    if ema is not None:
        ema.copy_to(unet.parameters())
    metrics = {
        "validation_loss": held_out_loss(unet, scheduler, vae, validation_images, ldm.target, config.train_batch_size),
        "steps": progress.step,
        "images_seen": progress.images,
        "train_seconds": progress.seconds,
        **({"steps_skipped": progress.skipped} if progress.skipped else {}),
    }
    if accelerator.is_main_process:
        print(f"validation: {metrics}")
        finish(FQLDMPipeline(vae, unet.eval(), scheduler), ldm, config, metrics, options)
    accelerator.end_training()


def sample(unet: UNet2DModel, vae: TokenAutoencoder, scheduler, ema: EMAModel | None, ldm: LDMConfig) -> torch.Tensor:
    """The same few images at every call, from the averaged weights where there are any: (n, c, H, W) in [0, 1]."""
    if ema is not None:
        ema.store(unet.parameters())
        ema.copy_to(unet.parameters())
    unet.eval()
    pipeline = FQLDMPipeline(vae, unet, sampling_scheduler(scheduler, ldm.preview_inference_steps))
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipeline(ldm.preview_images, ldm.preview_inference_steps, generator, output_type="pt").images
    if ema is not None:
        ema.restore(unet.parameters())
    return images


def columns(count: int) -> int:
    """Columns of a nearly square grid."""
    return max(1, round(count**0.5))


def finish(pipeline: FQLDMPipeline, ldm: LDMConfig, config: TrainingConfig, metrics: dict, options: dict) -> None:
    """Save the pipeline, a picture of its samples and its card."""
    folder = Path(config.output_dir)
    if ldm.save_precision == "fp16":
        pipeline.unet.half()  # the FQ-VAE is small, and its codebook must not be rounded
    if ldm.save_scheduler == "dpm_solver":
        pipeline.scheduler = fast_scheduler(pipeline.scheduler)
    pipeline.save_pretrained(folder)
    pipeline.unet.float()
    images = sample(pipeline.unet, pipeline.vqvae, pipeline.scheduler, None, ldm)
    save_grid(images, folder / "samples.png", columns(len(images)), display_scale(images.shape[-2]))
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
        script="train_ldm.py",
        limits="For research on generative models. Samples are unconditional and not filtered; what is rare in the "
        "data is rarer in them. They show nobody and nothing real: do not pass them off as such.",
        pipeline_tag="unconditional-image-generation",
    )
    if config.push_to_hub:
        push_to_hub(config)


if __name__ == "__main__":
    run_script(main)
