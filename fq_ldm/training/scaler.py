"""What the gradient scaler of fp16 does to a run."""

import torch

from ..options import DataError

LOWEST_SCALE = 2.0**-10  # of the loss; it starts at 2^16, and gradients that overflow even here are no gradients


class ScalerWatch:
    """Counts the steps that the scaler has left out, since their gradients were not finite.

    The optimizer's own word is no help: a fused one reports every step as made. The scale does not lie: it shrinks at
    such a step and at no other; a discriminator's steps, which it shrinks at too, lie before `before_step`.

    Args:
        scaler: of the accelerator; None where nothing is scaled.
    """

    def __init__(self, scaler: torch.amp.GradScaler | None):
        self.scaler = scaler
        self._skipped = 0  # on the device once there are steps: reading it at every step would wait for the GPU
        self._scale = None if scaler is None else scaler.get_scale()

    def before_step(self) -> None:
        """To be called before every optimizer step of the model."""
        if self.scaler is not None and (scale := self.scaler._get_scale_async()) is not None:  # none before the first
            self._scale = scale.clone()

    def after_step(self) -> None:
        """To be called after every optimizer step, made or left out."""
        if self.scaler is not None and (scale := self.scaler._get_scale_async()) is not None:
            self._skipped = self._skipped + (scale < self._scale)
            self._scale = scale.clone()

    def collect(self) -> int:
        """The steps left out since the last call."""
        skipped, self._skipped = int(self._skipped), 0
        return skipped

    def shown(self) -> dict[str, torch.Tensor]:
        """The scale, to be logged."""
        return {} if self.scaler is None else {"loss_scale": self._scale}

    def check(self, values: dict[str, float], step: int) -> None:
        """Stop a run that trains nothing.

        Args:
            values: the logged numbers, `shown` among them.
            step: of the run.

        Raises:
            DataError: if the scale has collapsed.
        """
        scale = values.get("loss_scale")
        if scale is not None and scale < LOWEST_SCALE:
            raise DataError(
                f"step {step}: no scale of the loss keeps the gradients in the range of fp16 (it has fallen to "
                f"{scale:.2g}, and steps are left out): train with mixed_precision bf16, or lower learning_rate"
            )
