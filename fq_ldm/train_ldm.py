"""Train latent diffusion on an FQ-VAE: accelerate launch -m fq_ldm.train_ldm --config mnist/ldm --vae DIR"""

from pathlib import Path

from diffusers.training_utils import EMAModel
from torch.utils.data import StackDataset

from .data import BAD_IMAGES_FILE, load_images
from .diffusion import (
    build_scheduler,
    build_unet,
    check_vae,
    choose_view,
    held_out_loss,
    linear_channels,
    measure_view_,
    open_vae,
    start_from_,
)
from .diffusion.latent_cache import cache_latents
from .options import LDM_CONFIGS, check, parse_config, resolved, run_script
from .training.ldm import draw_samples, finish, make_loss, make_pipeline, sample
from .training.loop import train
from .training.own_samples import check_own_samples, check_start, make_own_samples
from .training.setup import make_accelerator, make_loader, start_run
from .training.sharding import whole_unet
from .training.teacher import check_learnt, open_teacher


def main(argv: list[str]) -> None:
    data, ldm, config = parse_config(argv, *LDM_CONFIGS, required=("dataset", "output_dir", "vae"))
    options = resolved(data, ldm, config)
    vae = open_vae(ldm.vae, subfolder=ldm.vae_subfolder, revision=ldm.vae_revision)
    check_vae(vae, ldm.vae, data)
    check_own_samples(ldm)
    check_learnt(ldm, vae)
    choose_view(vae, ldm)
    unet = build_unet(ldm, vae.diffusion_latent_shape)
    start_run(config, options)
    if config.dry_run:
        return

    accelerator = make_accelerator(config, may_shard=True)
    folder = Path(config.output_dir)
    vae.to(accelerator.device).requires_grad_(False)
    train_images, validation_images = load_images(data, folder / BAD_IMAGES_FILE)
    classes = train_images.class_names
    if classes:
        check(not ldm.own_samples, "own_samples", ldm.own_samples, "are of no class, and these images have some: put "
              "configs/classes/none.yaml behind, with a start_from that was trained so")  # fmt: skip
        _ = validation_images.labels  # one that is missing is told before the training
        accelerator.print(f"{len(classes)} classes by {data.label_column}: {', '.join(classes)}")
    unet = build_unet(ldm, vae.diffusion_latent_shape, len(classes))  # again, now that the seed is set
    if ldm.start_from is not None:
        start_from_(unet, ldm.start_from, None if ldm.own_samples else linear_channels(vae))
    scheduler = build_scheduler(ldm)
    if ldm.own_samples:
        check_start(ldm.start_from, "start_from", scheduler)
    ema = EMAModel([], decay=ldm.ema_decay, foreach=True) if ldm.use_ema else None  # `train` gives it the weights
    # On these images and for this target: the FQ-VAE may have its statistics from others (`train_vae.py --start_from`).
    measure_view_(vae, train_images, ldm.target)
    teacher = open_teacher(ldm, scheduler, vae, accelerator, len(classes))
    if ldm.cache_latents and not ldm.distill_steps:  # which learns of no image
        wait = accelerator.wait_for_everyone
        train_data = cache_latents(folder, vae, train_images, ldm.target, data.random_flip, wait)
    else:
        train_data = train_images
    if classes:
        train_data = StackDataset(train_data, train_images.labels)
    own = None
    if ldm.own_samples:
        pipeline = make_pipeline(vae, unet, scheduler, ldm, train_images)
        own = make_own_samples(accelerator, folder, pipeline, ldm, config.seed)
    compute_loss = make_loss(vae, scheduler, ldm, data.random_flip, len(classes), own, teacher)

    def preview(step):
        averaged = whole_unet(unet, ema)
        if not accelerator.is_main_process:
            return {}
        path = folder / "previews" / f"{step:08d}.png"
        pipeline = make_pipeline(vae, averaged, scheduler, ldm, train_images)
        return {"samples": draw_samples(sample(pipeline, ldm), path)}

    loader = make_loader(train_data, config, data.dataloader_num_workers)
    progress = train(accelerator, config, unet, loader, compute_loss, preview, ema)

    unet = whole_unet(unet, ema)
    metrics = {
        "validation_loss": held_out_loss(unet, scheduler, vae, validation_images, ldm.target, config.train_batch_size),
        **progress.metrics(),
    }
    if accelerator.is_main_process:
        print(f"validation: {metrics}")
        finish(make_pipeline(vae, unet, scheduler, ldm, train_images), ldm, config, metrics, options)
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
