"""Training against own samples: a UNet learns to tell images from what it made of noise before."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from tqdm.auto import tqdm

from ..diffusion import discriminative_loss, fast_scheduler, saved_scheduler
from ..diffusion.latent_cache import digest, is_current, open_shard, write_shard
from ..distributed import my_share, processes
from ..options import LATENTS_FOLDER, LDMConfig, check
from ..pipelines import FQLDMPipeline

SAMPLE_STEPS = 20  # of DPM-Solver++
SHARD_SAMPLES = 500
BATCH = 100


class OwnSamples:
    """Samples of the UNet that a run starts from, and that UNet as it was.

    Args:
        reference: the UNet, in evaluation mode.
        samples: its diffusion latents (n, C, H, W), on its device.
        ldm: the options.
        autocast: gives the context that the trained UNet is called in.
    """

    def __init__(
        self,
        reference: UNet2DModel,
        samples: torch.Tensor,
        ldm: LDMConfig,
        autocast: Callable[[], AbstractContextManager],
    ):
        self.reference, self.samples, self.ldm, self.autocast = reference, samples, ldm, autocast

    def loss(
        self, model: torch.nn.Module, scheduler: DDPMScheduler, latents: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`discriminative_loss` of latents (B, C, H, W) and as many samples, and the share of them told apart."""
        chosen = torch.randint(len(self.samples), (len(latents),), device=latents.device, generator=generator)
        return discriminative_loss(
            model, self._refer, scheduler, latents, self.samples[chosen], generator, self.ldm.own_samples_beta,
            self.ldm.timestep_sampling,
        )  # fmt: skip

    @torch.no_grad()
    def _refer(self, noisy: torch.Tensor, timesteps: torch.Tensor):
        with self.autocast():
            return self.reference(noisy, timesteps)


def check_own_samples(ldm: LDMConfig) -> None:
    """Raise a `UserError` if there is nothing to sample with, or something else would tell samples from images."""
    if not ldm.own_samples:
        return
    for holds, rule in (
        (ldm.start_from is not None, "are of the UNet that start_from gives: give it"),
        (ldm.target == "unquantized", "need target unquantized: the codebook tells quantized latents from any sample"),
        (ldm.unet_dropout == 0, "need unet_dropout 0: it makes the errors larger than those of the UNet as it was"),
        (ldm.snr_gamma is None, "are told apart without weights: leave snr_gamma out"),
        (ldm.num_train_timesteps >= SAMPLE_STEPS, f"take {SAMPLE_STEPS} steps: give num_train_timesteps as many"),
    ):
        check(holds, "own_samples", ldm.own_samples, rule)


def make_own_samples(
    accelerator: Accelerator, folder: Path, pipeline: FQLDMPipeline, ldm: LDMConfig, seed: int
) -> OwnSamples:
    """Latents sampled as the saved pipeline will sample, or those of an earlier start of the run.

    Each process makes its share of the shards, which lie with the encoded images; what was interrupted goes on.

    Args:
        accelerator: of the run.
        folder: of the run.
        pipeline: with the UNet that the run starts from, of which it keeps another.
        ldm: the options.
        seed: of the run.

    Raises:
        DataError: if a shard cannot be written or read.
    """
    pipeline.unet = copy.deepcopy(pipeline.unet).requires_grad_(False).eval().to(accelerator.device)
    pipeline.scheduler = fast_scheduler(saved_scheduler(pipeline.scheduler, ldm))
    pipeline.set_progress_bar_config(disable=True)
    # Not the noise that `evaluate.py` takes with this seed, of which the UNet would know what comes out wrong. A
    # generator looks at the lowest 32 bits of its seed alone.
    seeds = torch.randint(2**62, (ldm.own_samples,), generator=torch.Generator().manual_seed(2**31 + seed))
    folder = folder / LATENTS_FOLDER
    folder.mkdir(exist_ok=True)
    shards = [
        (folder / f"own_{number:05d}.safetensors", part) for number, part in enumerate(seeds.split(SHARD_SAMPLES))
    ]
    key = _fingerprint(pipeline, seeds)
    missing = [shard for shard in my_share(shards) if not is_current(shard[0], key)]
    for path, part in tqdm(missing, desc="own samples", disable=not (missing and processes().is_main_process)):
        write_shard(path, torch.cat([_sample(pipeline, some) for some in part.split(BATCH)]), key)
    accelerator.wait_for_everyone()
    samples = torch.cat([open_shard(path).get_tensor("items") for path, _ in shards]).to(accelerator.device)
    return OwnSamples(pipeline.unet, samples, ldm, accelerator.autocast)


def _sample(pipeline: FQLDMPipeline, seeds: torch.Tensor) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    return pipeline(len(seeds), SAMPLE_STEPS, generators, output_type="latent").images.cpu()


def _fingerprint(pipeline: FQLDMPipeline, seeds: torch.Tensor) -> str:
    """What the samples are of, in short."""
    public = {key: value for key, value in pipeline.scheduler.config.items() if key[0] != "_"}
    return digest(f"{seeds.tolist()} {SAMPLE_STEPS} {sorted(public.items())}", pipeline.unet.state_dict())
