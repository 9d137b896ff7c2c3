"""Train an FQ-VAE: accelerate launch train_vae.py --config configs/mnist/vae.yaml [--key value ...]"""

import inspect
from dataclasses import fields
from pathlib import Path

import torch
from tqdm.auto import tqdm

from fq_ldm import BaselineModel, FQModel, HQAModel
from fq_ldm.metrics import evaluate_reconstruction, pixel_variance
from fq_ldm.models import TokenAutoencoder
from fq_ldm.quantization.codebook import perplexity
from fq_ldm.training.checkpoint import checkpoints
from fq_ldm.training.config import (
    DataConfig,
    TrainingConfig,
    UserError,
    VAEConfig,
    parse_config,
    resolved,
    run_script,
)
from fq_ldm.training.data import BAD_IMAGES_FILE, ImageDataset, load_images, random_flip, sample_images
from fq_ldm.training.hub import push_to_hub, save_card, save_metrics
from fq_ldm.training.loop import Progress, train
from fq_ldm.training.pictures import display_scale, save_grid
from fq_ldm.training.setup import make_accelerator, make_loader, start_run
from fq_ldm.training.share import merge, my_batches

PREVIEW_IMAGES = 8
EVALUATION_BATCH_SIZE = 128
KINDS = {FQModel: "FQ-VAE", BaselineModel: "Baseline", HQAModel: "HQA"}
USED_SHARE = 0.01  # in the progress bar, a code counts as used from this part of the mean usage on


def main(argv: list[str]) -> None:
    data, vae, config = parse_config(argv, DataConfig, VAEConfig, TrainingConfig, required=("dataset", "output_dir"))
    options = resolved(data, vae, config)
    model = build_model(data, vae)
    start_run(config, options)
    if config.dry_run:
        return

    accelerator = make_accelerator(config)
    folder = Path(config.output_dir)
    train_images, validation_images = load_images(data, folder / BAD_IMAGES_FILE)
    sample = sample_images(train_images, vae.init_images, config.seed)
    if not checkpoints(folder / "checkpoints"):
        accelerator.print(f"initialising from {len(sample)} training images")
        torch.manual_seed(config.seed)
        model = build_model(data, vae)
        model.initialize_(sample)
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
            "perplexity": perplexity(usage),
            "codes_used": (usage > USED_SHARE / len(usage)).sum(),
        }
        return loss, logs

    def preview(step):
        model.eval()
        with torch.no_grad():
            reconstructions = model(shown.to(accelerator.device)).sample.float().cpu()
        pairs = (torch.cat([shown, reconstructions]) + 1) / 2
        picture = save_grid(pairs, folder / "previews" / f"{step:08d}.png", PREVIEW_IMAGES, display_scale(data.size[0]))
        return {"reconstructions": picture}

    loader = make_loader(train_images, config, data.dataloader_num_workers)
    progress = train(accelerator, config, model, loader, compute_loss, preview)

    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    metrics = measure(model, progress, validation_images, sample)
    if accelerator.is_main_process:
        finish(model, metrics, shown, config, options)
    accelerator.end_training()


def build_model(data: DataConfig, vae: VAEConfig) -> TokenAutoencoder:
    """The untrained model that these options describe.

    Raises:
        UserError: if they do not fit one another, or one is for models of another kind.
    """
    model_class = {"codebook": FQModel, "hqa": HQAModel}.get(vae.quantizer, BaselineModel)
    known = inspect.signature(model_class).parameters
    arguments = {"in_channels": data.channels, "sample_size": data.size}
    for field in fields(vae):
        value = getattr(vae, field.name)
        if field.name in known:
            arguments[field.name] = value
        elif field.name not in ("init_images", "quantizer"):
            if value != field.default:
                raise UserError(f"{field.name}: is not an option of quantizer {vae.quantizer}")
    try:
        return model_class(**arguments)
    except ValueError as error:
        raise UserError(str(error)) from error


@torch.no_grad()
def measure(model: TokenAutoencoder, progress: Progress, held_out: ImageDataset, sample: torch.Tensor) -> dict:
    """Standardise the diffusion latents of the trained model, and measure it; the processes share the images."""
    model.eval()
    latents = torch.cat([model.encode(batch.to(model.device)).latents for batch in sample.split(256)])
    model.measure_diffusion_latents_(latents)
    batches = tqdm(my_batches(held_out, EVALUATION_BATCH_SIZE), desc="held-out images")
    metrics = evaluate_reconstruction(model, batches, pixel_variance([sample]), merge=merge)
    return metrics | {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "steps": progress.step,
        "images_seen": progress.images,
        "train_seconds": progress.seconds,
        **({"steps_skipped": progress.skipped} if progress.skipped else {}),
    }


def finish(model: TokenAutoencoder, metrics: dict, shown: torch.Tensor, config: TrainingConfig, options: dict) -> None:
    """Save the trained model with a picture, its metrics and its card."""
    folder = Path(config.output_dir)
    with torch.no_grad():
        reconstructions = model(shown.to(model.device)).sample.float().cpu()
    print("validation: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
    model.save_pretrained(folder)
    pairs = (torch.cat([shown, reconstructions]) + 1) / 2
    save_grid(pairs, folder / "reconstructions.png", PREVIEW_IMAGES, display_scale(shown.shape[-2]))
    save_metrics(folder, metrics)
    save_card(
        folder,
        title=f"{KINDS[type(model)]} on {Path(options['dataset']).name}",
        summary=f"{model.config.num_tokens} tokens from {model.config.num_vq_embeddings} "
        f"codes, {model.bits_per_image:.0f} bits per image. Above, held-out images; below, their reconstructions.",
        picture="reconstructions.png",
        usage=f'from fq_ldm import load_vae\n\nmodel = load_vae("{folder.name}")\n'
        "tokens = model.tokenize(images)  # images (B, c, H, W) in [-1, 1] -> (B, U)\n"
        "reconstructions = model.detokenize(tokens)",
        metrics=metrics,
        options=options,
        script="train_vae.py",
        limits="For research on tokens and compression of images like those it was trained on; others lose detail. "
        "Reconstructions are approximate: read no text, number or identity from them.",
    )
    if config.push_to_hub:
        push_to_hub(config)


if __name__ == "__main__":
    run_script(main)
