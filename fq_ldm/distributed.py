"""Work that several processes share, with the results of one."""

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch.utils.data import DataLoader

TIMEOUT = timedelta(hours=2)  # for one that waits: others may read, encode or measure more than ten minutes


def processes() -> PartialState:
    """Which process this is. Asked without `cpu`, accelerate takes each of several CPU processes for the only one."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=TIMEOUT)


def my_share(items: Sequence) -> Sequence:
    """Every n-th item for each of n processes; some may have one more than others, or none."""
    state = processes()
    return items[state.process_index :: state.num_processes]


def merge(mine: list) -> list:
    """The results of all processes in the order of the items that `my_share` dealt out; on every process.

    Args:
        mine: one result for each item of this process's share.
    """
    count = processes().num_processes
    if count == 1:
        return mine
    shares = [None] * count
    dist.all_gather_object(shares, mine)
    return [shares[i % count][i // count] for i in range(sum(map(len, shares)))]


def my_batches(dataset: torch.utils.data.Dataset, batch_size: int) -> DataLoader:
    """This process's share of the batches of a dataset, each the same as in a single process."""
    numbers = list(range(len(dataset)))
    batches = [numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)]
    return DataLoader(dataset, batch_sampler=my_share(batches))
