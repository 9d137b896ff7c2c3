"""A second UNet that makes details, in the place of a decoder that paints: python benchmarks/cascade.py CODEC

    python benchmarks/cascade.py runs/codec --painter runs/vae --dataset path/to/celeba64 \\
        --validation_split validation --resolution 64 --seconds 1200

CODEC has latents of more frequencies than the painter's, and a decoder for them. A shallow UNet at their full size
learns to denoise what lies beyond the painter's crop, given what lies inside. Of training images that it has not seen,
both then get the same low frequencies: the UNet makes details by DPM-Solver++ for the codec to decode, and the painter
paints. The first UNet, which both would share, plays no part. Prints one line of JSON for each, and for the codec on
whole latents; `--output` is a picture: images, codec, details of the UNet, painter.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from timm.optim import Muon

from fq_ldm import FQModel, load_vae
from fq_ldm.cards import save_grid
from fq_ldm.data import load_images, sample_batches, sample_images
from fq_ldm.diffusion import build_scheduler, encode_images, fast_scheduler
from fq_ldm.diffusion.loss import draw_timesteps
from fq_ldm.evaluation.networks import make_extractor
from fq_ldm.evaluation.samples import look_at
from fq_ldm.metrics import to_uint8
from fq_ldm.metrics.fidelity import frechet_distance, kernel_distance, precision_recall
from fq_ldm.metrics.samples import spectral_distance, spectral_gain
from fq_ldm.options import DataConfig, EvaluationConfig, LDMConfig
from fq_ldm.spectrum import spectral_resize

BATCH = 64
WARMUP_STEPS = 50
EMA_DECAY = 0.999
SHOWN = 8
LDM = LDMConfig(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")


class Details(torch.nn.Module):
    """Noisy details and the low frequencies beside them (B, 2C, H, W) -> the velocity of the details (B, C, H, W)."""

    def __init__(self, shape: tuple[int, int, int], crop: tuple[int, int]):
        super().__init__()
        self.crop, self.scheduler = crop, build_scheduler(LDM)
        self.register_buffer("scale", torch.ones(()))
        self.unet = UNet2DModel(
            sample_size=shape[1:], in_channels=2 * shape[0], out_channels=shape[0], block_out_channels=(64, 96),
            layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip

    def split(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (B, C, H, W) -> those inside the crop and those beyond, at the same size."""
        low = spectral_resize(spectral_resize(latents, self.crop), latents.shape[-2:])
        return low, latents - low

    def loss(self, latents: torch.Tensor) -> torch.Tensor:
        low, details = self.split(latents)
        details, noise = details / self.scale, torch.randn_like(details)
        steps = self.scheduler.config.num_train_timesteps
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        timesteps = draw_timesteps(len(latents), steps, latents.device, generator, "logit_normal")
        noisy = torch.cat([self.scheduler.add_noise(details, noise, timesteps), low], 1)
        with torch.autocast("cpu", torch.bfloat16):
            prediction = self.unet(noisy, timesteps).sample
        return F.mse_loss(prediction.float(), self.scheduler.get_velocity(details, noise, timesteps))

    @torch.no_grad()
    def sample(self, low: torch.Tensor, steps: int) -> torch.Tensor:
        """Low frequencies (B, C, H, W) -> latents with details of their own, of the same shape."""
        scheduler = fast_scheduler(self.scheduler, "dpmsolver++")
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(0)  # the first timestep may be there twice
        details = torch.randn_like(low)
        for t in scheduler.timesteps:
            details = scheduler.step(self.unet(torch.cat([details, low], 1), t).sample, t, details).prev_sample
        return low + details * self.scale


@torch.enable_grad()
def train(model: Details, latents: torch.Tensor, seconds: float) -> None:
    """Muon for so many seconds, its learning rate falling to zero; the weights become their running mean."""
    optimizer = Muon(model.unet.parameters(), lr=3e-3, weight_decay=1e-6, nesterov=True)
    ema = EMAModel(model.unet.parameters(), decay=EMA_DECAY, foreach=True)
    model.scale.copy_(model.split(latents[:1024])[1].std())
    start, step = time.monotonic(), 0
    while (share := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / WARMUP_STEPS) * min(1, 2 * (1 - share))
        loss = model.loss(latents[torch.randint(len(latents), (BATCH,))])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.unet.parameters())
        step += 1
    print(json.dumps({"steps": step, "loss": loss.item(), "std_of_details": model.scale.item()}), flush=True)
    ema.copy_to(model.unet.parameters())


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec", help="folder of an FQ-VAE")
    parser.add_argument("--painter", required=True, help="folder of an FQ-VAE with a painter")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--validation_split", required=True)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1200, help="of training")
    parser.add_argument("--train_images", type=int, default=20000)
    parser.add_argument("--num_inference_steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=1000, help="training images that the UNet has not seen")
    parser.add_argument("--feature_extractor_module", default="benchmarks.mtcnn_features")
    parser.add_argument("--feature_extractor", default="mtcnn-onet")
    parser.add_argument("--output", type=Path, help="picture of the first images")
    options = parser.parse_args()
    torch.manual_seed(0)
    data = dict(dataset=options.dataset, validation_split=options.validation_split, resolution=[options.resolution])
    train_images, validation = load_images(DataConfig(**data))
    codec, painter = load_vae(options.codec), load_vae(options.painter)
    codec.set_diffusion_view_("spatial", 1)
    inner, outer = (model.diffusion_view.spectral_crop for model in (painter, codec))
    if any(o < i for o, i in zip(outer, inner, strict=True)) or outer == inner:
        parser.error(f"the codec's spectral crop {outer} must be larger than the painter's {inner}")
    some = sample_images(train_images, options.train_images + options.images, seed=0)
    some, images = some.tensor_split([options.train_images])
    encoded = torch.cat([codec.encode(part).latents for part in some.split(128)])
    codec.measure_diffusion_latents_(encoded, quantized=False)
    encoded = codec.to_diffusion_latents(encoded)
    model = Details(codec.diffusion_latent_shape, inner)
    train(model, encoded, options.seconds)

    network = EvaluationConfig(
        feature_extractor_module=options.feature_extractor_module, feature_extractor=options.feature_extractor
    )
    extractor = make_extractor(network, ["fid", "kid", "prc"], torch.device("cpu"))
    reference = map(to_uint8, sample_batches(validation, len(validation), seed=0, num_workers=0))
    wanted, _, real, _ = look_at(reference, extractor, None, 0)
    rows = [images[:SHOWN]]
    for name, (latents, make) in ways(codec, painter, model, images, options.num_inference_steps).items():
        start = time.monotonic()
        made = torch.cat([make(part) for part in latents.split(100)])
        seconds = time.monotonic() - start
        rows.append(made[:SHOWN])
        spectrum, _, found, _ = look_at(to_uint8(made).split(100), extractor, None, 0)
        error = (made.clamp(-1, 1) - images).square().mean() / 4
        figures = {"made_by": name, "fid": frechet_distance(found["fid"], real["fid"])}
        figures |= kernel_distance(found["kid"], real["kid"]) | precision_recall(found["prc"], real["prc"])
        figures |= {"spectral_distance_db": spectral_distance(spectral_gain(spectrum, wanted))}
        figures |= {"psnr": -10 * error.log10().item(), "seconds_per_image": seconds / len(images)}
        print(json.dumps(figures), flush=True)
    if options.output:
        save_grid(torch.cat(rows) / 2 + 0.5, options.output, SHOWN, 3)


def ways(
    codec: FQModel, painter: FQModel, model: Details, images: torch.Tensor, steps: int
) -> dict[str, tuple[torch.Tensor, Callable]]:
    """Diffusion latents (n, C, H, W) of images, and what makes images of them: of all, and twice of the low ones."""
    generator = torch.Generator().manual_seed(0)
    whole, low = (
        torch.cat([encode_images(vae, part, "unquantized") for part in images.split(100)]) for vae in (codec, painter)
    )

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return codec.decode(codec.from_diffusion_latents(latents), force_not_quantize=True).sample

    def cascade(latents: torch.Tensor) -> torch.Tensor:
        return decode(model.sample(model.split(latents)[0], steps))

    def paint(latents: torch.Tensor) -> torch.Tensor:
        latents = painter.from_diffusion_latents(latents)
        return painter.decode(latents, force_not_quantize=True, generator=generator).sample

    return {"codec": (whole, decode), "cascade": (whole, cascade), "painter": (low, paint)}


if __name__ == "__main__":
    main()
