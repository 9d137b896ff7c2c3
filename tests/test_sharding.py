"""What of sharding needs no second process; the rest is in test_slow_sharding.py."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from diffusers.training_utils import EMAModel

from fq_ldm.options import UserError
from fq_ldm.training.sharding import check_sharding, whole_unet


def accelerator(**plugin):
    """As far as `check_sharding` looks at one."""
    state = SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin(**plugin))
    return SimpleNamespace(distributed_type=DistributedType.FSDP, state=state)


def test_one_kind_of_sharding_is_supported():
    check_sharding(accelerator(fsdp_version=2, state_dict_type="FULL_STATE_DICT"), True)
    check_sharding(SimpleNamespace(distributed_type=DistributedType.MULTI_GPU), False)


@pytest.mark.parametrize(
    "plugin, allowed, error",
    [
        (dict(fsdp_version=2, state_dict_type="FULL_STATE_DICT"), False, "an FQ-VAE is not trained in shards"),
        (dict(fsdp_version=1), True, "fsdp_version: must be 2, not 1"),
        (dict(fsdp_version=2), True, "must be FULL_STATE_DICT, not SHARDED_STATE_DICT"),  # accelerate's default
    ],
)
def test_the_others_are_refused(plugin, allowed, error):
    with pytest.raises(UserError, match=error):
        check_sharding(accelerator(**plugin), allowed)


def test_muon_needs_whole_weights():
    with pytest.raises(UserError, match="optimizer: must be adamw where weights lie in shards, not muon"):
        check_sharding(accelerator(fsdp_version=2, state_dict_type="FULL_STATE_DICT"), True, "muon")


@pytest.mark.parametrize("averaged", [True, False])
def test_a_whole_unet_takes_no_memory_for_what_is_whole_already(pipeline, averaged):
    unet = pipeline.unet
    ema = EMAModel(unet.parameters()) if averaged else None
    if averaged:
        for i, shadow in enumerate(ema.shadow_params):
            shadow.add_(i)
    result = whole_unet(unet, ema)
    assert dict(result.config) == dict(unet.config) and result.device == unet.device
    sources = ema.shadow_params if averaged else unet.parameters()
    for parameter, source in zip(result.parameters(), sources, strict=True):
        assert torch.equal(parameter, source) and parameter.data_ptr() == source.data_ptr()
