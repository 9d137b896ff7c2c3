"""What `train_vae.py` trains: the model, what is measured on it, and what is saved of it."""

import inspect
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from tqdm.auto import tqdm

from ..cards import display_scale, model_name, push_to_hub, save_card, save_grid, save_metrics, vae_usages
from ..data import ImageDataset
from ..distributed import merge, my_batches
from ..metrics import evaluate_reconstruction, pixel_variance
from ..models import BaselineModel, FQModel, HQAModel, TokenAutoencoder, equalize_
from ..models.start import STATISTICS_IMAGES
from ..options import DataConfig, DataError, TrainingConfig, UserError, VAEConfig
from ..quantization.moments import gather
from .run import Progress

PREVIEW_IMAGES = 8
EVALUATION_BATCH_SIZE = 128
KINDS = {FQModel: "FQ-VAE", BaselineModel: "Baseline", HQAModel: "HQA"}


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


@contextmanager
def told_of(dataset: str) -> Iterator[None]:
    """Errors of a start from training images, as those of the dataset of this name."""
    try:
        yield
    except ValueError as error:
        raise DataError(f"{dataset}: {error}") from error


def find_tokens_(
    accelerator: Accelerator, model: TokenAutoencoder, sample: Iterable[torch.Tensor], dataset: str
) -> None:
    """Weigh the channels that were learnt, find tokens in the latents, by batches of training images, and freeze both.

    The main process does, and the others are given what it found: their processors may round otherwise.

    Raises:
        DataError: if the images do not do for it.
    """
    if accelerator.is_main_process:
        print("finding tokens in the learnt latents")
        with told_of(dataset):
            model.weigh_learnt_channels_(next(iter(sample)))
            model.find_tokens_(sample)
    for tensor in model.state_dict().values():
        broadcast(tensor)
    model.freeze_tokens_()


@torch.no_grad()
def measure(
    model: TokenAutoencoder,
    progress: Progress,
    held_out: ImageDataset,
    sample: Iterable[torch.Tensor],
    standardise: bool = True,
    quantize: bool = True,
) -> dict[str, float]:
    """Standardise the diffusion latents of the trained model by batches of training images, and measure the model.

    Its equalizer, if it has one, is set by those images first: what is measured is what it makes of pictures.

    The processes share the held-out images. Latents are standardised, and images reconstructed, from quantized latents
    or from unquantized ones, as the decoder was trained. Latents of another model's tokens are not standardised anew,
    so that its pipelines can take this one's decoder.
    """
    model.eval()
    size = STATISTICS_IMAGES * math.prod(model.latent_shape)
    if standardise:
        latents = gather(sample, lambda batch: model.encode(batch.to(model.device)).latents, size)
        model.measure_diffusion_latents_(latents, quantize)
    if model.equalizer is not None:
        equalize_(model, sample, quantize)
    batches = tqdm(my_batches(held_out, EVALUATION_BATCH_SIZE), desc="held-out images")
    metrics = evaluate_reconstruction(model, batches, pixel_variance(sample), merge=merge, quantize=quantize)
    learnt = ("decoder.", "encoder.") if model.diffusion_view.has_learnt_channels else ("decoder.",)
    used = (p for name, p in model.named_parameters() if p.requires_grad or name.startswith(learnt))
    return metrics | {"parameters": sum(p.numel() for p in used)} | progress.metrics()


@torch.no_grad()
def draw_reconstructions(model: TokenAutoencoder, shown: torch.Tensor, path: Path, quantize: bool) -> np.ndarray:
    """Write images (n, c, H, W) in [-1, 1] above their reconstructions, as `save_grid` does; the model is evaluated."""
    model.eval()
    reconstructions = model(shown.to(model.device), force_not_quantize=not quantize).sample.float().cpu()
    pairs = (torch.cat([shown, reconstructions]) + 1) / 2
    return save_grid(pairs, path, len(shown), display_scale(shown.shape[-2]))


def finish(model: TokenAutoencoder, metrics: dict, shown: torch.Tensor, config: TrainingConfig, options: dict) -> None:
    """Save the trained model with a picture, its metrics and its card."""
    quantize = not options["decode_unquantized"]
    folder = Path(config.output_dir)
    print("validation: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
    model.save_pretrained(folder)
    draw_reconstructions(model, shown, folder / "reconstructions.png", quantize)
    save_metrics(folder, metrics)
    save_card(
        folder,
        title=f"{KINDS[type(model)]} on {Path(options['dataset']).name}",
        summary=f"{model.config.num_tokens} tokens from {model.config.num_vq_embeddings} "
        f"codes, {model.bits_per_image:.0f} bits per image. Above, held-out images; below, their reconstructions"
        f"{'.' if quantize else ' from latents that are not quantized, for which the decoder was trained.'}",
        picture="reconstructions.png",
        usages=vae_usages(model_name(folder, options)),
        metrics=metrics,
        options=options,
        script="train_vae",
        limits="For research on tokens and compression of images like those it was trained on; others lose detail. "
        "Reconstructions are approximate: read no text, number or identity from them.",
        task=("image-to-image", "image reconstruction"),
    )
    if config.push_to_hub:
        push_to_hub(config, options)
