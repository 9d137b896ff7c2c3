"""Train an FQ-VAE: accelerate launch -m fq_ldm.train_vae --config mnist/vae [--key value ...]"""

from pathlib import Path

import torch
from diffusers.training_utils import EMAModel

from .data import BAD_IMAGES_FILE, load_images, random_flip, sample_batches, sample_images
from .metrics.image import SSIM_WINDOW
from .options import VAE_CONFIGS, check, parse_config, resolved, run_script
from .quantization.codebook import perplexity
from .training.adversary import open_discriminator
from .training.checkpoint import checkpoints
from .training.loop import train
from .training.painting import averaged, freeze_, make_objective, open_start_
from .training.setup import make_accelerator, make_loader, start_run
from .training.vae import PREVIEW_IMAGES, build_model, draw_reconstructions, find_tokens_, finish, measure, told_of

USED_SHARE = 0.01  # in the progress bar, a code counts as used from this part of the mean usage on


def main(argv: list[str]) -> None:
    data, vae, painting, config = parse_config(argv, *VAE_CONFIGS, required=("dataset", "output_dir"))
    check(min(data.size) >= SSIM_WINDOW, "resolution", data.resolution, f"must be {SSIM_WINDOW} or more, SSIM's window")
    options = resolved(data, vae, painting, config)
    torch.manual_seed(config.seed)
    model = build_model(data, vae)
    taken = [] if painting.start_from is None else open_start_(painting, model)
    freeze_(model, painting, taken)
    learning = model.latents_learning
    discriminator = open_discriminator(painting, data.channels)
    start_run(config, options)
    if config.dry_run:
        return

    accelerator = make_accelerator(config)
    folder = Path(config.output_dir)
    train_images, validation_images = load_images(data, folder / BAD_IMAGES_FILE)
    sample = sample_batches(train_images, vae.init_images, config.seed, data.dataloader_num_workers)
    check(not learning or len(sample.dataset) * vae.num_tokens >= vae.num_vq_embeddings, "num_vq_embeddings",
          vae.num_vq_embeddings, f"are more than the tokens of the first {len(sample.dataset)} images")  # fmt: skip
    if not checkpoints(folder / "checkpoints"):
        model.to(accelerator.device)
        if painting.start_from is not None:
            weights, kept = len(model.decoder.state_dict()), "channels that it has" if learning else "tokens"
            accelerator.print(f"start_from: the {kept}, and {len(taken)} of the decoder's {weights} weights")
        # The other processes get its weights and buffers with the first step.
        elif accelerator.is_main_process:
            print(f"initialising from {len(sample.dataset)} training images")
            with told_of(data.dataset):
                model.initialize_(sample)
    shown = sample_images(validation_images, PREVIEW_IMAGES, seed=0)

    objective = make_objective(accelerator, model, discriminator, painting, config)
    ema = None if painting.decoder_ema_decay is None else EMAModel([], decay=painting.decoder_ema_decay, foreach=True)

    def compute_loss(prepared, batch):
        images = random_flip(batch.data, batch.generator) if data.random_flip else batch.data
        loss, values = objective(prepared, images, batch)
        if learning:  # tokens are found afterwards
            return loss, values
        usage = model.quantize.codebook.usage  # a running mean, over about 1 / (1 - usage_decay) batches
        codes = {
            "perplexity": lambda: perplexity(usage),
            "codes_used": lambda: (usage > USED_SHARE / len(usage)).sum(),
        }
        return loss, values | codes

    quantize = not painting.decode_unquantized

    def preview(step):
        if not accelerator.is_main_process:
            return {}
        with averaged(model, ema):
            path = folder / "previews" / f"{step:08d}.png"
            return {"reconstructions": draw_reconstructions(model, shown, path, quantize)}

    loader = make_loader(train_images, config, data.dataloader_num_workers)
    progress = train(accelerator, config, model, loader, compute_loss, preview, ema)

    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if ema is not None:
        ema.copy_to(model.parameters())
    if learning:
        find_tokens_(accelerator, model, sample, data.dataset)
    metrics = measure(model, progress, validation_images, sample, learning or painting.start_from is None, quantize)
    if objective.adversary is not None:
        objective.adversary.save(folder)
    if accelerator.is_main_process:
        finish(model, metrics, shown, config, options)
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
