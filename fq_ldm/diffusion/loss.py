"""The loss of the diffusion model."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import compute_snr

from ..data import ImageDataset
from ..distributed import merge, my_batches, my_share
from ..models import TokenAutoencoder
from .latents import encode_images


def draw_timesteps(
    count: int,
    steps: int,
    device: torch.device,
    generator: torch.Generator,
    sampling: str = "uniform",
    logit_mean: float = 0.0,
) -> torch.Tensor:
    """One random timestep for each image of a batch, out of 0 .. steps - 1: (count,) int64.

    Each is drawn from the distribution, but together they leave no gaps, which takes noise from the loss and its
    gradient (Kingma et al. 2021, variational diffusion models, appendix I.1).

    Args:
        count: images.
        steps: of the diffusion.
        device: of the result.
        generator: of the random number that all share.
        sampling: "uniform", or "logit_normal": oftener in the middle of the noise than at its ends (Esser et al. 2024).
        logit_mean: of "logit_normal", whose logits have a deviation of 1; below 0 there is oftener less noise.
    """
    offset = torch.rand((), device=device, generator=generator, dtype=torch.float64)
    quantiles = (torch.arange(count, device=device, dtype=torch.float64) + offset) / count
    if sampling == "logit_normal":
        quantiles = torch.sigmoid(logit_mean + torch.special.ndtri(quantiles))
    return (quantiles * steps).long().clamp(max=steps - 1)


def diffusion_loss(
    model: torch.nn.Module,
    scheduler: DDPMScheduler,
    latents: torch.Tensor,
    generator: torch.Generator,
    snr_gamma: float | None = None,
    timestep_sampling: str = "uniform",
    class_labels: torch.Tensor | None = None,
    logit_mean: float = 0.0,
    teacher: Callable | None = None,
) -> torch.Tensor:
    """Squared error of the prediction at timesteps spread over the noise: latents (B, C, H, W) -> scalar.

    Args:
        model: predicts noise or velocity, as the scheduler's configuration says.
        scheduler: of the noise.
        latents: without noise.
        generator: of noise and timesteps.
        snr_gamma: weigh the error of the predicted latents by min(SNR, gamma) (Hang et al. 2023, min-SNR); None
            weighs all timesteps alike in units of the prediction.
        timestep_sampling: as in `draw_timesteps`.
        class_labels: (B,) int64 for a class-conditional model, else None.
        logit_mean: as in `draw_timesteps`.
        teacher: `teacher(target, noisy latents, timesteps)` gives another target; None to learn from images alone.
    """
    noise = torch.randn(latents.shape, device=latents.device, generator=generator)
    steps = scheduler.config.num_train_timesteps
    timesteps = draw_timesteps(len(latents), steps, latents.device, generator, timestep_sampling, logit_mean)
    condition = {} if class_labels is None else {"class_labels": class_labels}
    errors = _errors(partial(model, **condition), scheduler, latents, noise, timesteps, teacher)
    if snr_gamma is not None:
        snr = compute_snr(scheduler, timesteps)
        # An error of the noise is one of the latents times the SNR, an error of the velocity times SNR + 1.
        predicts_noise = scheduler.config.prediction_type == "epsilon"
        errors = errors * snr.clamp(max=snr_gamma) / (snr if predicts_noise else snr + 1)
    return errors.mean()


def discriminative_loss(
    model: torch.nn.Module,
    reference: Callable,
    scheduler: DDPMScheduler,
    latents: torch.Tensor,
    samples: torch.Tensor,
    generator: torch.Generator,
    beta: float,
    timestep_sampling: str = "uniform",
    logit_mean: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How badly a model tells latents from samples of what it was: direct discriminative optimisation.

    By how much its squared error is smaller than that of the reference says how much likelier it finds something. As a
    logit of "is real", this makes a discriminator of the model, with no other network (Zheng et al. 2025, direct
    discriminative optimization). Where samples lie too close or images too thin, the model moves away or towards them:
    what it does wrong by itself is seen, where denoising alone sees images only.

    Args:
        model: as in `diffusion_loss`.
        reference: the model as it was, without gradients.
        scheduler: of the noise.
        latents: of images (B, C, H, W), without noise.
        samples: of the reference, of the same shape.
        generator: of noise and timesteps.
        beta: times the difference of the errors, summed over the latents, is the logit. The smaller, the further the
            model goes from the reference.
        timestep_sampling: as in `draw_timesteps`.
        logit_mean: likewise.

    Returns:
        the loss, 2 log 2 at first, and the share of the pairs in which the image has the larger logit, 0.5 at first.
    """
    steps = scheduler.config.num_train_timesteps
    timesteps = draw_timesteps(len(latents), steps, latents.device, generator, timestep_sampling, logit_mean).repeat(2)
    both = torch.cat([latents, samples])
    noise = torch.randn(both.shape, device=both.device, generator=generator)
    before, now = (_errors(each, scheduler, both, noise, timesteps) for each in (reference, model))
    real, own = (beta * latents[0].numel() * (before - now)).chunk(2)
    told_apart = ((real > own).float() + (real >= own).float()).mean() / 2  # of equal logits one half
    return -(F.logsigmoid(real) + F.logsigmoid(-own)).mean(), told_apart


def _errors(
    model: Callable,
    scheduler: DDPMScheduler,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    teacher: Callable | None = None,
) -> torch.Tensor:
    """Mean squared error of the prediction for each of the latents: (B,), float32."""
    noisy = scheduler.add_noise(latents, noise, timesteps)
    prediction = model(noisy, timesteps).sample
    predicts_noise = scheduler.config.prediction_type == "epsilon"
    target = noise if predicts_noise else scheduler.get_velocity(latents, noise, timesteps)
    if teacher is not None:
        target = teacher(target, noisy, timesteps)
    return F.mse_loss(prediction.float(), target, reduction="none").mean((1, 2, 3))


def hide_labels(labels: torch.Tensor, share: float, no_class: int, generator: torch.Generator) -> torch.Tensor:
    """Class labels (B,), each replaced by `no_class` with probability `share` (Ho & Salimans 2022)."""
    hidden = torch.rand(len(labels), device=labels.device, generator=generator) < share
    return torch.where(hidden, no_class, labels)


@torch.no_grad()
def held_out_loss(
    unet: UNet2DModel,
    scheduler: DDPMScheduler,
    vae: TokenAutoencoder,
    images: ImageDataset,
    target: str,
    batch_size: int,
) -> float:
    """The diffusion loss on held-out images with their classes, without min-SNR, with the same noise at every call."""
    unet.eval()
    losses = []  # of the batches of this process
    starts = my_share(range(0, len(images), batch_size))
    for start, batch in zip(starts, my_batches(images, batch_size), strict=True):
        generator = torch.Generator(unet.device).manual_seed(start)
        labels = None if images.labels is None else images.labels[start : start + len(batch)].to(unet.device)
        latents = encode_images(vae, batch, target)
        loss = diffusion_loss(unet, scheduler, latents, generator, class_labels=labels)
        losses.append(loss.item() * len(batch))
    return sum(merge(losses)) / len(images)
