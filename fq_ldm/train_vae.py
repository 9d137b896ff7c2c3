"""Train an FQ-VAE: accelerate launch -m fq_ldm.train_vae --config mnist/vae [--key value ...]"""

from pathlib import Path

import torch

from .data import BAD_IMAGES_FILE, load_images, random_flip, sample_batches, sample_images
from .metrics.image import SSIM_WINDOW
from .options import DataConfig, DataError, TrainingConfig, VAEConfig, check, parse_config, resolved, run_script
from .quantization.codebook import perplexity
from .training.checkpoint import checkpoints
from .training.loop import train
from .training.setup import make_accelerator, make_loader, start_run
from .training.vae import PREVIEW_IMAGES, build_model, draw_reconstructions, finish, measure

USED_SHARE = 0.01  # in the progress bar, a code counts as used from this part of the mean usage on


def main(argv: list[str]) -> None:
    data, vae, config = parse_config(argv, DataConfig, VAEConfig, TrainingConfig, required=("dataset", "output_dir"))
    check(min(data.size) >= SSIM_WINDOW, "resolution", data.resolution, f"must be {SSIM_WINDOW} or more, SSIM's window")
    options = resolved(data, vae, config)
    model = build_model(data, vae)
    start_run(config, options)
    if config.dry_run:
        return

    accelerator = make_accelerator(config)
    folder = Path(config.output_dir)
    train_images, validation_images = load_images(data, folder / BAD_IMAGES_FILE)
    sample = sample_batches(train_images, vae.init_images, config.seed, data.dataloader_num_workers)
    if not checkpoints(folder / "checkpoints"):
        accelerator.print(f"initialising from {len(sample.dataset)} training images")
        torch.manual_seed(config.seed)
        model = build_model(data, vae).to(accelerator.device)
        if accelerator.is_main_process:  # the others get its weights and buffers with the first step
            try:
                model.initialize_(sample)
            except ValueError as error:
                raise DataError(f"{data.dataset}: {error}") from error
    shown = sample_images(validation_images, PREVIEW_IMAGES, seed=0)

    def compute_loss(prepared, images, generator):
        if data.random_flip:
            images = random_flip(images, generator)
        output = prepared(images)
        loss, reconstruction_loss = model.loss(images, output)
        usage = model.quantize.codebook.usage  # a running mean, over about 1 / (1 - usage_decay) batches
        logs = {
            "reconstruction_loss": reconstruction_loss.detach(),
            "commit_loss": output.commit_loss.detach(),
            "perplexity": lambda: perplexity(usage),
            "codes_used": lambda: (usage > USED_SHARE / len(usage)).sum(),
        }
        return loss, logs

    def preview(step):
        if not accelerator.is_main_process:
            return {}
        return {"reconstructions": draw_reconstructions(model, shown, folder / "previews" / f"{step:08d}.png")}

    loader = make_loader(train_images, config, data.dataloader_num_workers)
    progress = train(accelerator, config, model, loader, compute_loss, preview)

    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    metrics = measure(model, progress, validation_images, sample)
    if accelerator.is_main_process:
        finish(model, metrics, shown, config, options)
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
