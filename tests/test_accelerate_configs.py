"""The configurations for `accelerate launch --config_file`, as accelerate itself reads them."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.run import get_args_parser

FOLDER = Path(__file__).parent.parent / "configs" / "accelerate"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def launched(name, *flags):
    """What `accelerate launch` makes of a configuration and flags: its arguments, and the processes' environment."""
    command = ["--config_file", str(FOLDER / f"{name}.yaml"), *flags, "train_ldm.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(command))
    return arguments, prepare_multi_gpu_env(arguments)


def test_all_are_known_here():
    assert NAMES == ["four_machines_8_gpus", "one_machine_8_gpus"]


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_it(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig) and config.use_cpu is False and config.mixed_precision == "no"
    assert config.distributed_type == DistributedType.MULTI_GPU and config.dynamo_config == {}


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
