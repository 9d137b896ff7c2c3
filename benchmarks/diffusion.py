"""Diffusion on latents against diffusion on pixels, and what makes it faster, with one UNet:

    python benchmarks/diffusion.py runs/celeba64/codec --unet_block_out_channels 64 128 128

The rows named pixels are the training step of diffusers' train_unconditional.py (noise, UNet, error, AdamW, EMA)
on whole images; the others are that of train_ldm.py. The UNet, the batch and the precision are the same, only its
channels at both ends differ. Sampling takes DPM-Solver++ steps, and for latents the decoder too. Data loading is left
out of both. Prints a Markdown table; the weights are random, which changes no time.
"""

import argparse
import time
from dataclasses import dataclass, fields

import torch
from diffusers.training_utils import EMAModel

from fq_ldm import FQLDMPipeline, load_vae
from fq_ldm.diffusion import build_scheduler, build_unet, diffusion_loss, fast_scheduler
from fq_ldm.options import LDMConfig, parse_config


@dataclass
class Row:
    title: str
    shape: tuple[int, int, int]
    channels_last: bool = False
    fused: bool = False
    compiled: bool = False


def train_speed(row: Row, ldm: LDMConfig, device: torch.device, options: argparse.Namespace) -> float:
    """Images per second."""
    torch.manual_seed(0)
    unet = build_unet(ldm, row.shape).to(device)
    if row.channels_last:
        unet = unet.to(memory_format=torch.channels_last)
    ema = EMAModel(unet.parameters(), decay=ldm.ema_decay)
    ema.to(device)
    optimizer = torch.optim.AdamW(unet.parameters(), fused=row.fused)
    scheduler = build_scheduler(ldm)
    model = torch.compile(unet) if row.compiled else unet
    latents = torch.randn(options.batch_size, *row.shape, device=device)
    if row.channels_last:
        latents = latents.to(memory_format=torch.channels_last)
    generator = torch.Generator(device).manual_seed(0)
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}[options.precision]
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)

    def step():
        with torch.autocast(device.type, precision, enabled=precision is not None):
            loss = diffusion_loss(model, scheduler, latents, generator)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ema.step(unet.parameters())

    return options.batch_size * options.steps / timed(step, options.steps, device)


def sample_seconds(row: Row, vae, ldm: LDMConfig, device: torch.device, options: argparse.Namespace) -> float:
    """Seconds for one image, in a batch."""
    unet = build_unet(ldm, row.shape).to(device).eval()
    scheduler = fast_scheduler(build_scheduler(ldm))
    if row.shape == vae.diffusion_latent_shape:
        pipeline = FQLDMPipeline(vae, unet, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return timed(lambda: pipeline(options.batch_size, options.inference_steps), 1, device) / options.batch_size

    @torch.no_grad()
    def sample():
        images = torch.randn(options.batch_size, *row.shape, device=device)
        scheduler.set_timesteps(options.inference_steps, device=device)
        for t in scheduler.timesteps:
            images = scheduler.step(unet(images, t).sample, t, images).prev_sample

    return timed(sample, 1, device) / options.batch_size


def timed(function, times: int, device: torch.device) -> float:
    """Seconds of so many calls after one, or for many of them three, that do not count."""
    for _ in range(min(times, 3)):
        function()
    wait(device)
    start = time.perf_counter()
    for _ in range(times):
        function()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vae", help="folder of a trained FQ-VAE")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="training steps that are timed")
    parser.add_argument("--inference_steps", type=int, default=20)
    parser.add_argument("--precision", choices=["no", "bf16", "fp16"], default="bf16", help="of training")
    parser.add_argument("--latent_patch_size", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--no-pixels", action="store_true", help="leave the pixels out")
    parser.add_argument("--no-sampling", action="store_true", help="time training alone")
    options, unet_flags = parser.parse_known_args()
    known = {field.name for field in fields(LDMConfig)}
    if any(flag.startswith("--") and flag[2:] not in known for flag in unet_flags):
        parser.error("the other options are train_ldm.py's, of the UNet")
    (ldm,) = parse_config(unet_flags, LDMConfig)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = load_vae(options.vae).to(device)

    print("| UNet on | parameters (M) | training images/s | seconds per sample |\n|---|---|---|---|", flush=True)
    pixels = (vae.config.in_channels, *vae.sample_size)
    rows = [] if options.no_pixels else [Row("pixels", pixels), Row("pixels, fused, channels last", pixels, True, True)]
    for patch_size in options.latent_patch_size:
        vae.set_diffusion_view_(vae.config.diffusion_layout, patch_size)
        shape, title = vae.diffusion_latent_shape, f"latents, patch {patch_size}"
        rows += [
            Row(title, shape),
            Row(f"{title}, fused AdamW", shape, fused=True),
            Row(f"{title}, fused, channels last", shape, True, True),
        ]
        if options.compile:
            rows.append(Row(f"{title}, fused, channels last, compiled", shape, True, True, True))
    for row in rows:
        parameters = sum(p.numel() for p in build_unet(ldm, row.shape).parameters()) / 1e6
        seconds = ""
        if not options.no_sampling and not row.channels_last and not row.fused:
            if row.title != "pixels":
                vae.set_diffusion_view_(vae.config.diffusion_layout, int(row.title.split()[-1]))
            seconds = f"{sample_seconds(row, vae, ldm, device, options):.3f}"
        speed = train_speed(row, ldm, device, options)
        shape = "x".join(map(str, row.shape))
        print(f"| {row.title}, {shape} | {parameters:.2f} | {speed:.1f} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
