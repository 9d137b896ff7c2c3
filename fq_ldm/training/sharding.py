"""Weights that lie in shards over the processes: accelerate's FSDP2.

Every process holds and trains its part of each tensor, a `DTensor`. What must be whole is brought together here: all
processes have to ask for it.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from torch.distributed.tensor import DTensor, distribute_tensor

from ..options import UserError, check


def check_sharding(accelerator: Accelerator, allowed: bool, optimizer: str = "adamw") -> None:
    """Refuse what is not supported of accelerate's sharding.

    Args:
        accelerator: as it was configured.
        allowed: whether the script can train sharded weights at all.
        optimizer: the option.

    Raises:
        UserError: if the script or the optimizer cannot, or the weights lie in shards in another way.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    if not allowed:
        raise UserError(
            "accelerate is configured for FSDP, and an FQ-VAE is not trained in shards (it is small, and its codebook "
            "is updated outside of the optimizer): use configs/accelerate/one_machine_8_gpus.yaml"
        )
    check(optimizer == "adamw", "optimizer", optimizer, "must be adamw where weights lie in shards")
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise UserError(f"fsdp_version: must be 2, not {plugin.fsdp_version}; see configs/accelerate/fsdp2.yaml")
    kind = plugin.state_dict_type.name
    if kind != "FULL_STATE_DICT":  # the others write folders, which have no digest
        raise UserError(f"fsdp_state_dict_type: must be FULL_STATE_DICT, not {kind}; see configs/accelerate/fsdp2.yaml")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor itself, or brought together from its shards, on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_whole_(tensor: torch.Tensor, source: torch.Tensor) -> None:
    """Give a tensor, sharded or not, the values of a whole one that every process has."""
    if isinstance(tensor, DTensor):
        source = source.to(tensor.device)
        source = distribute_tensor(source, tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(source)


def whole_unet(unet: UNet2DModel, ema: EMAModel | None) -> UNet2DModel:
    """A UNet with the averaged weights, or the trained ones where there is no mean, on every process.

    It shares the memory of what is whole already: it is to be used, and not trained.
    """
    with torch.device("meta"):
        result = UNet2DModel.from_config(unet.config)
    values = unet.parameters() if ema is None else ema.shadow_params
    names = (name for name, _ in result.named_parameters())
    weights = {name: whole(value.detach()) for name, value in zip(names, values, strict=True)}
    result.load_state_dict(weights, assign=True)
    return result
