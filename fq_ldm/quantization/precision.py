"""Modules that stay in float32 when the model around them goes to half precision."""

import torch
from torch import nn


class Float32Module(nn.Module):
    """A module whose parameters and buffers `half()`, `to(dtype)` and the like leave as they are; devices they follow.

    Codes, statistics and gains that were rounded once would not come back.
    """

    def _apply(self, fn, recurse=True):
        return super()._apply(lambda tensor: keep_dtype(fn, tensor), recurse)


def keep_dtype(fn, tensor: torch.Tensor) -> torch.Tensor:
    """What `fn` makes of a tensor or, if it would cast it, the tensor itself where `fn` would put it."""
    moved = fn(tensor)
    return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
