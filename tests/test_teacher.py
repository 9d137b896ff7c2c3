"""Learning linear channels from a trained UNet of them; wrong ones are refused in tests/test_painting.py."""

from types import SimpleNamespace

import pytest
import torch
from test_painter import PAINTING

from fq_ldm import FQModel
from fq_ldm.diffusion import build_scheduler, diffusion_loss
from fq_ldm.options import LDMConfig, UserError
from fq_ldm.training.ldm import make_loss
from fq_ldm.training.run import Batch
from fq_ldm.training.teacher import LinearTeacher, check_learnt

OPTIONS = LDMConfig(
    vae="vae", target="unquantized", beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction",
    timestep_sampling="logit_normal", timestep_logit_mean=0.5,
)  # fmt: skip
SCHEDULER = build_scheduler(OPTIONS)
MIDDLE = int((SCHEDULER.alphas_cumprod < 0.5).nonzero()[0])


class Known(torch.nn.Module):
    """A UNet of so many channels that predicts the noisy latents times a number."""

    def __init__(self, factor, channels):
        super().__init__()
        self.factor, self.device = factor, torch.device("cpu")
        self.config = SimpleNamespace(in_channels=channels)

    def forward(self, noisy, timesteps):
        assert noisy.shape[1] == self.config.in_channels and len(timesteps) == len(noisy)
        return SimpleNamespace(sample=self.factor * noisy)


def test_linear_channels_are_taught_where_there_is_more_noise():
    target, noisy = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    before = target.clone()
    teacher = LinearTeacher(Known(0.5, 2), SCHEDULER)
    taught = teacher(target, noisy, torch.tensor([0, MIDDLE - 1, MIDDLE, 999]))
    assert torch.equal(taught[:2], target[:2]) and torch.equal(taught[:, 2:], target[:, 2:])
    assert torch.equal(taught[2:, :2], 0.5 * noisy[2:, :2])
    assert torch.equal(teacher(target, noisy, torch.zeros(4, dtype=torch.long)), target)
    assert torch.equal(target, before)


def test_a_student_that_knows_what_its_teacher_does_has_no_error():
    latents = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    options = dict(timestep_sampling="logit_normal", logit_mean=9.0)  # in much noise alone
    taught, alone = (
        diffusion_loss(Known(0.5, 1), SCHEDULER, latents, torch.Generator().manual_seed(0), **options, teacher=teacher)
        for teacher in (LinearTeacher(Known(0.5, 1), SCHEDULER), None)
    )
    assert taught == 0 and alone > 0.1


def test_training_learns_from_the_teacher_where_the_options_say():
    """The loss of a batch of cached latents is `diffusion_loss` of the same noise, with the teacher and the mean."""
    latents = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    student, teacher = Known(0.1, 3), LinearTeacher(Known(0.5, 2), SCHEDULER)
    found = []
    for each in (teacher, None):
        batch = Batch(latents[:, None], 0, torch.Generator().manual_seed(1), 0.0)
        found.append(make_loss(None, SCHEDULER, OPTIONS, False, 0, teacher=each)(student, batch)[0])
        generator = torch.Generator().manual_seed(1)
        torch.randint(1, (16,), generator=generator)  # which view of each image
        expected = diffusion_loss(
            student, SCHEDULER, latents, generator, timestep_sampling="logit_normal", logit_mean=0.5, teacher=each
        )
        assert found[-1] == expected
    assert found[0] != found[1]


@pytest.mark.parametrize(
    "option", [dict(linear_teacher="pipeline"), dict(learnt_temperature=0.5, save_scheduler="dpm_solver_ode")]
)
def test_without_learnt_channels_there_is_nothing_to_teach_or_cool(option):
    linear = FQModel(**PAINTING)
    check_learnt(LDMConfig(vae="vae"), linear)
    name = next(iter(option))
    with pytest.raises(UserError, match=f"{name}: is for an FQ-VAE with learnt channels, which vae has not"):
        check_learnt(LDMConfig(vae="vae", **option), linear)
