"""The configurations for `accelerate launch --config_file`, as accelerate itself reads them."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.run import get_args_parser

from fq_ldm.diffusion import build_unet
from fq_ldm.options import LDMConfig

FOLDER = Path(__file__).parent.parent / "configs" / "accelerate"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def launched(name, *flags):
    """What `accelerate launch` makes of a configuration and flags: its arguments, and the processes' environment."""
    command = ["--config_file", str(FOLDER / f"{name}.yaml"), *flags, "train_ldm.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(command))
    return arguments, prepare_multi_gpu_env(arguments)


def test_all_are_known_here():
    assert NAMES == ["four_machines_8_gpus", "fsdp2", "one_machine_8_gpus"]


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_it(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig) and config.use_cpu is False and config.mixed_precision == "no"
    assert config.distributed_type == DistributedType["FSDP" if name == "fsdp2" else "MULTI_GPU"]
    assert config.dynamo_config == {}


def test_one_machine():
    arguments, _ = launched("one_machine_8_gpus", "--main_process_port", "0")
    assert arguments.multi_gpu and arguments.nproc_per_node == "8" and arguments.num_machines == 1


def test_four_machines():
    """Each starts 8 of 32 processes, and they meet where machine 0 is, by a rendezvous that can be joined again."""
    flags = ("--machine_rank", "2", "--main_process_ip", "10.0.0.1", "--max_restarts", "3", "--rdzv_backend", "c10d")
    arguments, _ = launched("four_machines_8_gpus", *flags)
    assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("4", "8", 2)
    assert (arguments.rdzv_backend, arguments.rdzv_endpoint) == ("c10d", "10.0.0.1:29500")
    assert arguments.max_restarts == 3
    assert {"rdzv_backend", "rdzv_endpoint", "max_restarts"} <= set(vars(get_args_parser().parse_args(["x.py"])))


def test_fsdp2():
    """What the processes read: the weights in shards, block by block, and checkpoints that are files."""
    arguments, environment = launched("fsdp2", "--main_process_port", "0")
    assert arguments.use_fsdp and arguments.nproc_per_node == "8" and arguments.num_machines == 1
    told = {name: value for name, value in environment.items() if "FSDP" in name}
    assert told["ACCELERATE_USE_FSDP"] == "true" and told["FSDP_VERSION"] == "2"
    assert told["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT" and told["FSDP_OFFLOAD_PARAMS"] == "false"
    assert told["FSDP_RESHARD_AFTER_FORWARD"] == "true" and told["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    unet = build_unet(LDMConfig(unet_attention_levels=[]), (3, 32, 32))
    classes = told["FSDP_TRANSFORMER_CLS_TO_WRAP"].split(",")
    # Accelerate fails at a class that the UNet does not have.
    assert {type(module).__name__ for module in unet.modules()} >= set(classes)
