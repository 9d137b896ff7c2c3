"""What `train_ldm.py` is made of: the UNet, the noise schedule, the loss and the cached latents."""

import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin, UNet2DModel
from diffusers.training_utils import compute_snr
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..models import TokenAutoencoder, load_vae
from ..models.autoencoder import STATISTICS_IMAGES
from .config import LATENTS_FILE, DataConfig, DataError, LDMConfig, UserError, check
from .data import ImageDataset, random_flip, sample_images
from .share import merge, my_batches, my_share

ENCODE_BATCH_SIZE = 128


def open_vae(path: str) -> TokenAutoencoder:
    """The trained FQ-VAE, or baseline, in a folder or on the Hub, in evaluation mode.

    Raises:
        DataError: if there is none.
    """
    try:
        return load_vae(path)
    except Exception as error:  # a foreign or damaged file fails in as many ways as there are files
        raise DataError(f"vae: no FQ-VAE can be loaded from {path} ({' '.join(str(error).split())})") from error


def check_vae(vae: TokenAutoencoder, path: str, data: DataConfig) -> None:
    """Raise a `UserError` if the FQ-VAE was trained for images of another shape."""
    made_for, given = (vae.config.in_channels, *vae.sample_size), (data.channels, *data.size)
    if made_for != given:
        raise UserError(
            f"vae: {path} takes images of {'x'.join(map(str, made_for))}, but channels and resolution give "
            f"{'x'.join(map(str, given))}"
        )


def choose_view(vae: TokenAutoencoder, ldm: LDMConfig) -> bool:
    """Give the FQ-VAE the view of its latents that the options ask for; tells whether that changed it.

    Raises:
        UserError: if the latents have no such view.
    """
    old = (vae.config.diffusion_layout, vae.config.diffusion_patch_size)
    new = (ldm.latent_layout or old[0], ldm.latent_patch_size or old[1])
    if new == old:
        return False
    try:
        vae.set_diffusion_view_(*new)
    except ValueError as error:
        raise UserError(f"latent_layout, latent_patch_size: {error}") from error
    return True


@torch.no_grad()
def measure_view_(vae: TokenAutoencoder, images: ImageDataset, target: str) -> None:
    """Standardise a view by the statistics of some training images, quantized or unquantized as the target is."""
    sample = sample_images(images, STATISTICS_IMAGES, seed=0).to(vae.device)
    latents = torch.cat([vae.encode(part).latents for part in sample.split(ENCODE_BATCH_SIZE)])
    vae.measure_diffusion_latents_(latents, quantized=target == "quantized")


def build_unet(ldm: LDMConfig, latent_shape: tuple[int, int, int]) -> UNet2DModel:
    """The untrained UNet for diffusion latents of this shape (C, H, W).

    Raises:
        UserError: if the latent cannot be halved once for each level, or the channels do not fit.
    """
    channels, *size = latent_shape
    levels = len(ldm.unet_block_out_channels)
    factor = 2 ** (levels - 1)
    check(
        not any(side % factor for side in size),
        "unet_block_out_channels",
        f"{levels} levels",
        f"must fit latents of {size[0]}x{size[1]}, whose sides are to be multiples of 2^(levels-1)",
    )
    check(
        set(ldm.unet_attention_levels) <= set(range(levels)),
        "unet_attention_levels",
        ldm.unet_attention_levels,
        f"must lie in 0 .. {levels - 1}",
    )
    attention = [level in ldm.unet_attention_levels for level in range(levels)]
    try:
        return UNet2DModel(
            sample_size=tuple(size),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(ldm.unet_block_out_channels),
            layers_per_block=ldm.unet_layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            attention_head_dim=ldm.unet_attention_head_dim,
            norm_num_groups=ldm.unet_norm_num_groups,
            dropout=ldm.unet_dropout,
        )
    except ValueError as error:
        raise UserError(f"unet: {error}") from error


def start_from_(unet: UNet2DModel, path: str) -> None:
    """Give a UNet the weights of the one in a pipeline.

    Raises:
        DataError: if there is none, or it has another shape.
    """
    try:
        trained = UNet2DModel.from_pretrained(path, subfolder="unet", use_safetensors=True)
    except Exception as error:  # as in open_vae
        raise DataError(f"start_from: no UNet can be loaded from {path} ({' '.join(str(error).split())})") from error
    wanted, found = (json.loads(model.to_json_string()) for model in (unet, trained))
    differ = [name for name in wanted if name[0] != "_" and found[name] != wanted[name]]
    if differ:
        found = ", ".join(f"{name} {found[name]} instead of {wanted[name]}" for name in differ)
        raise DataError(f"start_from: the UNet of {path} has {found}: give the options that it was trained with")
    unet.load_state_dict(trained.state_dict())


def build_scheduler(ldm: LDMConfig) -> DDPMScheduler:
    """The noise schedule of training. Other schedulers are made from its configuration."""
    # Few steps must begin where training ends, at pure noise, else samples lack contrast (Lin et al. 2024, common
    # diffusion noise schedules). Not so for noise predicted under the cosine schedule: there, errors of the first step
    # would be divided by the 0.00005 that it leaves of the latents.
    unstable = ldm.prediction_type == "epsilon" and ldm.beta_schedule == "squaredcos_cap_v2"
    return DDPMScheduler(
        num_train_timesteps=ldm.num_train_timesteps,
        beta_schedule=ldm.beta_schedule,
        beta_start=ldm.beta_start,
        beta_end=ldm.beta_end,
        prediction_type=ldm.prediction_type,
        clip_sample=False,  # standardised latents reach beyond [-1, 1], where the default would clip them
        timestep_spacing="leading" if unstable else "trailing",
    )


def sampling_scheduler(scheduler: SchedulerMixin, steps: int) -> SchedulerMixin:
    """A scheduler for so many steps: DDPM, as in the paper, for all those of the training, DPM-Solver++ for fewer."""
    if steps == scheduler.config.num_train_timesteps:
        return DDPMScheduler.from_config(scheduler.config)
    return fast_scheduler(scheduler)


def fast_scheduler(scheduler: SchedulerMixin) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ for 20 to 50 steps (Lu et al. 2022), with the options of one that was saved with a pipeline.

    By default it solves the stochastic equation: noise added in each step, as in DDPM, takes earlier errors away.
    """
    kind = scheduler.config.get("algorithm_type", "sde-dpmsolver++")
    return DPMSolverMultistepScheduler.from_config(scheduler.config, algorithm_type=kind)


def draw_timesteps(count: int, steps: int, device: torch.device, generator: torch.Generator) -> torch.Tensor:
    """One random timestep for each image of a batch, spread evenly over 0 .. steps - 1: (count,) int64.

    Each is uniform, but together they leave no gaps, which takes noise from the loss and its gradient (Kingma et al.
    2021, variational diffusion models, appendix I.1).
    """
    offset = torch.rand((), device=device, generator=generator, dtype=torch.float64)
    strata = torch.arange(count, device=device, dtype=torch.float64)
    return ((strata + offset) / count * steps).long().clamp(max=steps - 1)


def diffusion_loss(
    model: torch.nn.Module,
    scheduler: DDPMScheduler,
    latents: torch.Tensor,
    generator: torch.Generator,
    snr_gamma: float | None = None,
) -> torch.Tensor:
    """Squared error of the prediction at timesteps spread over the noise: latents (B, C, H, W) -> scalar.

    Args:
        model: predicts noise or velocity, as the scheduler's configuration says.
        scheduler: of the noise.
        latents: without noise.
        generator: of noise and timesteps.
        snr_gamma: weigh the error of the predicted latents by min(SNR, gamma) (Hang et al. 2023, min-SNR); None
            weighs all timesteps alike in units of the prediction.
    """
    noise = torch.randn(latents.shape, device=latents.device, generator=generator)
    timesteps = draw_timesteps(len(latents), scheduler.config.num_train_timesteps, latents.device, generator)
    prediction = model(scheduler.add_noise(latents, noise, timesteps), timesteps).sample
    predicts_noise = scheduler.config.prediction_type == "epsilon"
    target = noise if predicts_noise else scheduler.get_velocity(latents, noise, timesteps)
    errors = F.mse_loss(prediction.float(), target, reduction="none").mean((1, 2, 3))
    if snr_gamma is not None:
        snr = compute_snr(scheduler, timesteps)
        # An error of the noise is one of the latents times the SNR, an error of the velocity times SNR + 1.
        errors = errors * snr.clamp(max=snr_gamma) / (snr if predicts_noise else snr + 1)
    return errors.mean()


@torch.no_grad()
def encode_images(
    vae: TokenAutoencoder,
    images: torch.Tensor,
    target: str = "quantized",
    flip: bool = False,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Images (B, c, H, W) -> diffusion latents (B, C, H', W'), of mirrored images half the time if `flip`."""
    images = images.to(vae.device)
    if flip:
        images = random_flip(images, generator)
    images = images.to(vae.dtype, memory_format=torch.channels_last)  # float32 convolutions are twice as fast
    latents = vae.encode(images).latents
    latents = vae.quantize_latents(latents).latents if target == "quantized" else vae.project_latents(latents)
    return vae.to_diffusion_latents(latents)


def load_or_cache_latents(
    folder: Path, vae: TokenAutoencoder, images: ImageDataset, target: str, flip: bool
) -> torch.Tensor:
    """The diffusion latents of all images (n, V, C, H, W), in one or, with mirrored images, V = 2 views.

    They come from the folder if they were saved there for the same FQ-VAE and images.
    """
    path = folder / LATENTS_FILE
    key = _fingerprint(vae, images, f"{target} {flip}")
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") == key:
                    return file.get_tensor("latents")
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: is damaged ({error}); delete it, to encode the images again") from error
    batches = []
    for batch in tqdm(DataLoader(images, batch_size=ENCODE_BATCH_SIZE), desc="encoding images"):
        views = [batch, batch.flip(-1)] if flip else [batch]
        batches.append(torch.stack([encode_images(vae, view, target).cpu() for view in views], dim=1))
    latents = torch.cat(batches)
    aside = path.with_suffix(".partial")
    try:
        save_file({"latents": latents}, aside, metadata={"key": key})
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error}): make room, or set cache_latents to false") from error
    return latents


def _fingerprint(vae: TokenAutoencoder, images: ImageDataset, options: str) -> str:
    digest = hashlib.sha256(f"{images.config} {len(images)} {vae.config} {options}".encode())
    for name, value in vae.state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def held_out_loss(
    unet: UNet2DModel,
    scheduler: DDPMScheduler,
    vae: TokenAutoencoder,
    images: ImageDataset,
    target: str,
    batch_size: int,
) -> float:
    """The diffusion loss on held-out images, without min-SNR, with the same noise at every call."""
    unet.eval()
    losses = []  # of the batches of this process
    starts = my_share(range(0, len(images), batch_size))
    for start, batch in zip(starts, my_batches(images, batch_size), strict=True):
        generator = torch.Generator(unet.device).manual_seed(start)
        loss = diffusion_loss(unet, scheduler, encode_images(vae, batch, target), generator)
        losses.append(loss.item() * len(batch))
    return sum(merge(losses)) / len(images)
