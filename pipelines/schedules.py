"""Which schedulers sample the latents that a UNet was trained on."""

import inspect

from diffusers import DDPMScheduler, SchedulerMixin

# What a scheduler must share with the one of the training; the others are ways to go through the same noise.
OF_TRAINING = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
# Those of diffusers that were seen to make as good images as the default; docs/measuring.md has the table.
TRIED = (
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
FEW_STEPS = 50  # of schedulers that need fewer than DDPM
FEWER_STEPS = 20  # of those of higher order: more make no better images (results/diffusion_celeba64/sampling.md)
HIGHER_ORDER = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler")


def default_steps(scheduler: SchedulerMixin) -> int:
    """All steps of the training for DDPM, as in the paper, and few for schedulers that need no more."""
    steps, name = scheduler.config.num_train_timesteps, type(scheduler).__name__
    if isinstance(scheduler, DDPMScheduler):
        return steps
    return min(FEWER_STEPS if name in HIGHER_ORDER else FEW_STEPS, steps)


def adds_noise(scheduler: SchedulerMixin, eta: float = 0.0) -> bool:
    """Whether its steps add noise, so that samples depend on more than the noise that they start from."""
    name = type(scheduler).__name__
    kind = scheduler.config.get("algorithm_type", "")
    return eta != 0 or "DDPM" in name or "Ancestral" in name or kind.startswith("sde")


def schedule_of(scheduler: SchedulerMixin) -> dict:
    """The noise schedule and the prediction that a scheduler stands for."""
    return {name: scheduler.config.get(name) for name in OF_TRAINING}


def check_scheduler(scheduler: SchedulerMixin, trained: dict) -> None:
    """Refuse a scheduler that would make noise of latents, or mud.

    Args:
        scheduler: to sample with.
        trained: `schedule_of` that of the training.

    Raises:
        ValueError: if it is one of diffusers' that was not seen to work, has another schedule, or clips.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name not in TRIED and type(scheduler).__module__.split(".")[0] == "diffusers":
        raise ValueError(f"{name} does not sample these latents well: take one of {', '.join(TRIED)}")
    for key, value in trained.items():
        if config.get(key) != value:
            raise ValueError(
                f"{name} has the {key} {config.get(key)}, but the UNet was trained with {value}: make it with "
                f"{name}.from_config(pipeline.scheduler.config)"
            )
    if config.get("clip_sample", False) and config.get("clip_sample_range", 1.0) <= 1:
        raise ValueError(
            f"{name} clips the predicted latents to [-1, 1], which ruins the images: make it with clip_sample=False, "
            "or with from_config(pipeline.scheduler.config)"
        )


def step_options(scheduler: SchedulerMixin, generator, eta: float) -> dict:
    """What this scheduler's `step` takes beside the model's output: schedulers differ.

    Raises:
        ValueError: for an eta that it does not have, or one outside 0 .. 1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in 0 .. 1, not {eta}")
    accepted = inspect.signature(scheduler.step).parameters
    options = {}
    if "eta" in accepted:
        options["eta"] = eta
    elif eta != 0:
        raise ValueError(f"{type(scheduler).__name__} has no eta; leave it at 0 or use DDIMScheduler")
    if "generator" in accepted:
        options["generator"] = generator
    return options
