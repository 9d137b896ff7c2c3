"""Train latent diffusion on an FQ-VAE: accelerate launch -m fq_ldm.train_ldm --config mnist/ldm --vae DIR"""

from pathlib import Path

import torch
from diffusers.training_utils import EMAModel

from .data import BAD_IMAGES_FILE, load_images
from .diffusion import (
    build_scheduler,
    build_unet,
    check_vae,
    choose_view,
    diffusion_loss,
    encode_images,
    held_out_loss,
    latents_of_tokens,
    measure_view_,
    open_vae,
    start_from_,
)
from .diffusion.latent_cache import cache_latents
from .options import DataConfig, LDMConfig, TrainingConfig, parse_config, resolved, run_script
from .pipelines import FQLDMPipeline
from .training.ldm import draw_samples, finish, sample
from .training.loop import train
from .training.setup import make_accelerator, make_loader, start_run
from .training.sharding import whole_unet


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

    accelerator = make_accelerator(config, may_shard=True)
    folder = Path(config.output_dir)
    vae.to(accelerator.device).requires_grad_(False)
    unet = build_unet(ldm, vae.diffusion_latent_shape)  # again, now that the seed is set
    if ldm.start_from is not None:
        start_from_(unet, ldm.start_from)
    scheduler = build_scheduler(ldm)
    ema = EMAModel([], decay=ldm.ema_decay, foreach=True) if ldm.use_ema else None  # `train` gives it the weights
    train_images, validation_images = load_images(data, folder / BAD_IMAGES_FILE)
    if view_is_new or ldm.target == "unquantized":  # train_vae.py has measured the quantized latents
        measure_view_(vae, train_images, ldm.target)
    if ldm.cache_latents:
        wait = accelerator.wait_for_everyone
        train_data = cache_latents(folder, vae, train_images, ldm.target, data.random_flip, wait)
    else:
        train_data = train_images

    def compute_loss(prepared, batch):
        given, generator = batch.data, batch.generator
        if ldm.cache_latents:
            views = torch.randint(given.shape[1], (len(given),), device=given.device, generator=generator)
            latents = given[torch.arange(len(given), device=given.device), views]
            if ldm.target == "quantized":
                latents = latents_of_tokens(vae, latents)
        else:
            latents = encode_images(vae, given, ldm.target, data.random_flip, generator)
        return diffusion_loss(prepared, scheduler, latents, generator, ldm.snr_gamma, ldm.timestep_sampling), {}

    def preview(step):
        averaged = whole_unet(unet, ema)
        if not accelerator.is_main_process:
            return {}
        path = folder / "previews" / f"{step:08d}.png"
        return {"samples": draw_samples(sample(averaged, vae, scheduler, ldm), path)}

    loader = make_loader(train_data, config, data.dataloader_num_workers)
    progress = train(accelerator, config, unet, loader, compute_loss, preview, ema)

    unet = whole_unet(unet, ema)
    metrics = {
        "validation_loss": held_out_loss(unet, scheduler, vae, validation_images, ldm.target, config.train_batch_size),
        **progress.metrics(),
    }
    if accelerator.is_main_process:
        print(f"validation: {metrics}")
        finish(FQLDMPipeline(vae, unet, scheduler, ldm.quantize_samples), ldm, config, metrics, options)
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
