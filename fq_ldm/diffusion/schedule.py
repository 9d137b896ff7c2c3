"""The noise schedule, and the schedulers that sample by it."""

from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin

from ..options import LDMConfig

# Where steps even in noise begin and end, in standard deviations of the latents. At 80 (as in Karras et al. 2022) the
# lowest frequencies of the latents, ten times as strong as the mean of all, are an eighth of the noise; at 0.03 noise
# is nowhere to be seen. A UNet that was trained by `logit_normal` has hardly met the timesteps beyond, and errs there.
NOISE_LIMITS = (80.0, 0.03)
SAMPLE_STEPS = 20  # of DPM-Solver++, for samples that a UNet is trained on


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


def saved_scheduler(scheduler: SchedulerMixin, ldm: LDMConfig) -> SchedulerMixin:
    """The scheduler that a pipeline is saved with."""
    if ldm.distill_steps:
        return distilled_scheduler(scheduler, ldm.distill_steps)
    if ldm.save_scheduler == "ddpm":
        return scheduler
    return fast_scheduler(scheduler, "dpmsolver++" if ldm.save_scheduler == "dpm_solver_ode" else "sde-dpmsolver++")


def fast_scheduler(scheduler: SchedulerMixin, algorithm_type: str | None = None) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ for 20 to 50 steps (Lu et al. 2022), with the options of one that was saved with a pipeline.

    Args:
        scheduler: to make it of.
        algorithm_type: by default that of `scheduler` or, if it has none, "sde-dpmsolver++": noise added in each step,
            as in DDPM, takes earlier errors away. A UNet that makes few has more of "dpmsolver++", without, in steps
            that each divide the noise by the same factor (`use_exponential_sigmas`), inside `NOISE_LIMITS`: steps of as
            many timesteps each leave too much of the noise to the last ones, and samples too much alike. Without
            `algorithm_type` the steps stay as `scheduler` has them too.
    """
    if algorithm_type is None:
        kind = scheduler.config.get("algorithm_type", "sde-dpmsolver++")
        return DPMSolverMultistepScheduler.from_config(scheduler.config, algorithm_type=kind)
    # They begin at the last timestep, where a UNet that predicts noise is of no use under the cosine schedule.
    even = algorithm_type == "dpmsolver++" and scheduler.config.timestep_spacing != "leading"
    fast = DPMSolverMultistepScheduler.from_config(
        scheduler.config, algorithm_type=algorithm_type, use_exponential_sigmas=even
    )
    if even:
        largest, smallest = NOISE_LIMITS
        # Not arguments of this scheduler, which looks for them in its configuration all the same.
        fast.register_to_config(
            sigma_max=min(largest, fast.sigmas.max().item()), sigma_min=max(smallest, fast.sigmas.min().item())
        )
    return fast


def distilled_scheduler(scheduler: SchedulerMixin, steps: int) -> DPMSolverMultistepScheduler:
    """DDIM for so many steps, each of which goes as far as `SAMPLE_STEPS / steps` of DPM-Solver++, even in noise.

    Args:
        scheduler: to make it of.
        steps: a divisor of `SAMPLE_STEPS`.
    """
    fast = fast_scheduler(scheduler, "dpmsolver++")
    fast.set_timesteps(SAMPLE_STEPS)
    begins = fast.sigmas[:-1][:: SAMPLE_STEPS // steps]
    limits = dict(sigma_max=begins[0].item(), sigma_min=begins[-1].item())
    distilled = DPMSolverMultistepScheduler.from_config(fast.config, solver_order=1)
    distilled.register_to_config(**limits)
    return distilled
