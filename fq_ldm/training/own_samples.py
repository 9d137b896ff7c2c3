"""Training on own samples: a UNet learns to tell images from what it made of noise, or to make it in fewer steps."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from tqdm.auto import tqdm

from ..diffusion import SAMPLE_STEPS, discriminative_loss, distilled_scheduler, fast_scheduler, saved_scheduler
from ..diffusion.latent_cache import digest, is_current, open_shard, write_shard
from ..distributed import my_share, processes
from ..options import LATENTS_FOLDER, LDMConfig, check
from ..pipelines import FQLDMPipeline
from ..pipelines.schedules import schedule_of

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
    ) -> tuple[torch.Tensor, dict]:
        """`discriminative_loss` of latents (B, C, H, W) and as many samples, and the share of them told apart."""
        chosen = torch.randint(len(self.samples), (len(latents),), device=latents.device, generator=generator)
        loss, told_apart = discriminative_loss(
            model, self._refer, scheduler, latents, self.samples[chosen], generator, self.ldm.own_samples_beta,
            self.ldm.timestep_sampling, self.ldm.timestep_logit_mean,
        )  # fmt: skip
        return loss, {"told_apart": told_apart}

    @torch.no_grad()
    def _refer(self, noisy: torch.Tensor, timesteps: torch.Tensor):
        with self.autocast():
            return self.reference(noisy, timesteps)


class OwnWays:
    """The ways of a UNet from noise to samples, to be gone in few steps (after Luhman & Luhman 2021).

    Args:
        ways: latents (n, K + 1, C, H, W) where the K steps begin, and where the last one ends.
        scheduler: `distilled_scheduler` of K steps.
    """

    def __init__(self, ways: torch.Tensor, scheduler: DPMSolverMultistepScheduler):
        self.ways, self.steps = ways, ways.shape[1] - 1
        scheduler.set_timesteps(self.steps, device=ways.device)
        self.timesteps, sigmas = scheduler.timesteps, scheduler.sigmas.double().to(ways.device)
        kept = (1 + sigmas.square()).rsqrt()
        self._kept, self._noise = kept.float(), (sigmas * kept).float()

    def loss(self, model: torch.nn.Module, count: int, generator: torch.Generator) -> tuple[torch.Tensor, dict]:
        """Mean squared error of the velocities that take so many ways one step on, all steps as often as can be."""
        device = self.ways.device
        chosen = torch.randint(len(self.ways), (count,), device=device, generator=generator)
        first = torch.randint(self.steps, (1,), device=device, generator=generator)  # a batch may hold fewer than all
        step = (first + torch.arange(count, device=device)) % self.steps
        here, there = self.ways[chosen, step], self.ways[chosen, step + 1]
        velocity = model(here, self.timesteps[step]).sample
        return F.mse_loss(velocity.float(), self.velocities(here, there, step)), {}

    def velocities(self, here: torch.Tensor, there: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """With which DDIM (Song et al. 2021, equation 12) goes from one to the other: latents (B, C, H, W) all."""
        kept, noise = self._kept.view(-1, 1, 1, 1), self._noise.view(-1, 1, 1, 1)
        now, then = step, step + 1
        straight = kept[then] * kept[now] + noise[then] * noise[now]
        return (there - straight * here) / (noise[then] * kept[now] - kept[then] * noise[now])


def check_own_samples(ldm: LDMConfig) -> None:
    """Raise a `UserError` if there is nothing to sample with, or something else would tell samples from images."""
    check(ldm.distill_steps == 0 or ldm.own_samples > 0, "distill_steps", ldm.distill_steps, "needs own_samples")
    check(ldm.distill_steps == 0 or SAMPLE_STEPS % ldm.distill_steps == 0, "distill_steps", ldm.distill_steps,
          f"must divide {SAMPLE_STEPS}")  # fmt: skip
    if not ldm.own_samples:
        return
    rules = [
        (ldm.start_from is not None, "are of the UNet that start_from gives: give it"),
        (ldm.target == "unquantized", "need target unquantized: samples are not of the codebook, which would tell"),
        (ldm.linear_teacher is None, "learn of no other UNet: leave linear_teacher out"),
        (ldm.num_train_timesteps >= SAMPLE_STEPS, f"take {SAMPLE_STEPS} steps: give num_train_timesteps as many"),
    ]
    if ldm.distill_steps:
        rules += [(ldm.prediction_type == "v_prediction", "have ways for a UNet of v_prediction alone")]
    else:
        rules += [
            (ldm.unet_dropout == 0, "need unet_dropout 0: it makes the errors larger than those of the UNet as it was"),
            (ldm.snr_gamma is None, "are told apart without weights: leave snr_gamma out"),
        ]
    for holds, rule in rules:
        check(holds, "own_samples", ldm.own_samples, rule)


def check_start(path: str, option: str, scheduler: DDPMScheduler) -> None:
    """Raise a `UserError` if the UNet that an option names was trained for another noise schedule, or for few steps."""
    theirs = DDPMScheduler.load_config(path, subfolder="scheduler")
    other = [f"{key} {theirs.get(key)}, not {value}" for key, value in schedule_of(scheduler).items()
             if theirs.get(key) != value]  # fmt: skip
    check(not other, option, path, f"was trained with {', '.join(other)}: give the options that it had")
    steps = FQLDMPipeline.load_config(path).get("num_inference_steps")
    check(steps is None, option, path, f"samples in {steps} steps alone: give what it was made of")


def make_own_samples(
    accelerator: Accelerator, folder: Path, pipeline: FQLDMPipeline, ldm: LDMConfig, seed: int
) -> OwnSamples | OwnWays:
    """Latents sampled by DPM-Solver++, or those of an earlier start of the run; with `distill_steps` their ways too.

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
    distilled = distilled_scheduler(pipeline.scheduler, ldm.distill_steps) if ldm.distill_steps else None
    if distilled is None:
        pipeline.scheduler = fast_scheduler(saved_scheduler(pipeline.scheduler, ldm))
    else:
        pipeline.scheduler = fast_scheduler(pipeline.scheduler, "dpmsolver++")
    pipeline.set_progress_bar_config(disable=True)
    # Not the noise that `evaluate.py` takes with this seed, of which the UNet would know what comes out wrong. A
    # generator looks at the lowest 32 bits of its seed alone.
    seeds = torch.randint(2**62, (ldm.own_samples,), generator=torch.Generator().manual_seed(2**31 + seed))
    folder = folder / LATENTS_FOLDER
    folder.mkdir(exist_ok=True)
    shards = [
        (folder / f"own_{number:05d}.safetensors", part) for number, part in enumerate(seeds.split(SHARD_SAMPLES))
    ]
    key = _fingerprint(pipeline, seeds, ldm.distill_steps)
    missing = [shard for shard in my_share(shards) if not is_current(shard[0], key)]
    for path, part in tqdm(missing, desc="own samples", disable=not (missing and processes().is_main_process)):
        write_shard(path, torch.cat([_sample(pipeline, some, ldm.distill_steps) for some in part.split(BATCH)]), key)
    accelerator.wait_for_everyone()
    samples = torch.cat([open_shard(path).get_tensor("items") for path, _ in shards]).to(accelerator.device)
    if distilled is not None:
        return OwnWays(samples, distilled)
    return OwnSamples(pipeline.unet, samples, ldm, accelerator.autocast)


def _sample(pipeline: FQLDMPipeline, seeds: torch.Tensor, ways: int) -> torch.Tensor:
    """Latents (n, C, H, W), or (n, ways + 1, C, H, W) with where so many parts of their ways begin."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    noise = randn_tensor((len(seeds), *pipeline.vqvae.diffusion_latent_shape), generators)
    passed = [noise]

    def look(_, i, timestep, tensors):
        if ways and (i + 1) % (SAMPLE_STEPS // ways) == 0:
            passed.append(tensors["latents"].cpu())
        return tensors

    samples = pipeline(
        len(seeds),
        SAMPLE_STEPS,
        generators,
        latents=noise,
        output_type="latent",
        callback_on_step_end=look,
        learnt_temperature=1.0,
    ).images.cpu()
    return torch.stack(passed, 1) if ways else samples


def _fingerprint(pipeline: FQLDMPipeline, seeds: torch.Tensor, ways: int) -> str:
    """What the samples are of, in short."""
    public = {key: value for key, value in pipeline.scheduler.config.items() if key[0] != "_"}
    said = f"{seeds.tolist()} {SAMPLE_STEPS} {sorted(public.items())}"
    return digest(f"{said} {ways}" if ways else said, pipeline.unet.state_dict())
