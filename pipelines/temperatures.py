"""Weaker noise to start from: what it is for, and what it does not go with."""

from diffusers import ModelMixin, SchedulerMixin

from .schedules import adds_noise


def check_learnt_temperature(temperature: float, vqvae: ModelMixin) -> None:
    """Raise a `ValueError` for noise of learnt channels that there are none of, or that would vanish."""
    _check_above_0("learnt_temperature", temperature)
    if temperature != 1 and not vqvae.diffusion_view.has_learnt_channels:
        raise ValueError(
            "learnt_temperature is for an FQ-VAE with learnt channels, and this one has none: leave it at 1"
        )


def check_temperatures(
    temperature: float, learnt: float | None, vqvae: ModelMixin, scheduler: SchedulerMixin, eta: float, image
) -> None:
    """Raise a `ValueError` if images cannot be made at these temperatures.

    Args:
        temperature: of coarse waves.
        learnt: of learnt channels; None leaves it to the pipeline.
        vqvae: of the pipeline.
        scheduler: likewise.
        eta: noise that its steps add.
        image: to start from in place of noise, or None.
    """
    if learnt is None:
        learnt = 1.0
    check_learnt_temperature(learnt, vqvae)
    _check_above_0("temperature", temperature)
    for name, given in (("temperature", temperature), ("learnt_temperature", learnt)):
        if given == 1:
            continue
        if image is not None:
            raise ValueError(f"{name} is of noise to start from: leave it at 1, or leave image out")
        if adds_noise(scheduler, eta):
            raise ValueError(
                f"{name} is for schedulers without noise in their steps, and {type(scheduler).__name__} adds some: "
                "leave it at 1, or take DPMSolverMultistepScheduler with algorithm_type dpmsolver++"
            )


def _check_above_0(name: str, temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"{name} must be above 0, and 1 for noise as it was in training, not {temperature}")
