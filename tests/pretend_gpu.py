"""A GPU that is not there: tensors that say they lie on cuda:0, while the CPU computes what they hold.

Where there is no GPU, this finds what only a GPU would show: tensors and random generators of different devices that
meet, and the places where the host would wait for the device.

    with pretend_gpu() as record:
        model.to("cuda")
        model(images.to("cuda")).sample.mean().item()
    print(record.table())

Functions of torch are seen as they are called: there devices are checked, moves are made, and results marked. The
operators inside them, those of the backward pass too, are what waits: one call may hide several.

It cannot show what only CUDA's kernels do: memory, streams, speed, rounding, and errors that they raise later. Copies
that do not block are not counted, though on a GPU they need pinned memory to be so.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import fq_ldm

CUDA = torch.device("cuda", 0)
PROJECT = tuple(str(Path(fq_ldm.__file__).parents[1] / name) + "/" for name in ("fq_ldm", "pipelines"))
ELSEWHERE = ("/torch/", "/contextlib.py", __file__)  # frames that say nothing of who called

T = torch.Tensor
as_plain = torch._C.DisableTorchFunctionSubclass

# How often each operator makes the host wait on a GPU. Masks as indices wait too; see `Operators`.
ONE_WAIT = (
    "equal nonzero masked_select _unique _unique2 unique_dim unique_consecutive _linalg_check_errors linalg_lstsq"
)
WAITS = {
    "_local_scalar_dense": 1,  # item(), bool(), int(), float(), a 0-dim tensor as an index
    "bincount": 2,  # for the smallest number, and the largest
    **dict.fromkeys(ONE_WAIT.split(), 1),
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}

INDEX_FUNCTIONS = {T.__getitem__, T.__setitem__, T.index_put, T.index_put_, torch.index_put, torch.index_put_}
MOVES = {T.to, T.cpu, T.cuda}
FROM_HOST = {torch.tensor, torch.as_tensor, torch.asarray, T.new_tensor}
TO_PYTHON = {T.tolist, T.__repr__, T.__str__, T.__format__}  # what they do inside, they do after one copy
# A CPU scalar may stand beside tensors of the GPU, but these take all their tensors as they are.
NO_SCALARS = {torch.stack, torch.cat, torch.concat, torch.concatenate, torch.hstack, torch.vstack}


class DeviceMixError(RuntimeError):
    """Tensors or generators of two devices met where a GPU would not have it."""


@dataclass(frozen=True)
class Event:
    kind: str  # "wait" for the device to finish, or "copy", a blocking one from the host, which waits as well
    what: str  # the function or operator
    place: str  # file:line, the innermost of the project if there is one


@dataclass
class Record:
    """All that happened, in order."""

    events: list[Event] = field(default_factory=list)

    def add(self, kind: str, what: str, times: int = 1) -> None:
        self.events += [Event(kind, what, _place())] * times

    def counts(self, start: int = 0, stop: int | None = None) -> tuple[int, int]:
        """Waits and blocking copies, from one event to another."""
        kinds = Counter(event.kind for event in self.events[start:stop])
        return kinds["wait"], kinds["copy"]

    def table(self, start: int = 0, stop: int | None = None) -> str:
        """A line for each place: how often, what, where."""
        counts = Counter(self.events[start:stop])
        rows = sorted(counts.items(), key=lambda row: (row[0].place, row[0].what))
        return "\n".join(f"  {n:3d} {e.kind:4s} {e.what:26s} {e.place}" for e, n in rows) or "  none"


class CudaTensor(torch.Tensor):
    """A tensor of the CPU that says it lies on the GPU, except to torch's own code while that computes with it."""

    @property
    def device(self) -> torch.device:
        return CUDA if torch._C._is_torch_function_enabled() else T.device.__get__(self)

    @property
    def is_cuda(self) -> bool:
        return torch._C._is_torch_function_enabled()

    @property
    def is_cpu(self) -> bool:
        return not self.is_cuda

    def __reduce_ex__(self, protocol):
        with as_plain():  # files hold plain tensors
            return self.as_subclass(T).__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        # Reached when the GPU is gone, or inside torch: marks alone, without checks.
        with as_plain():
            return _marked(func(*args, **(kwargs or {})))


class PretendGenerator(torch.Generator):
    """A generator of the CPU that says where it was asked to be."""

    def __new__(cls, device="cpu"):
        self = super().__new__(cls, "cpu")
        self._device = CUDA if torch.device(device).type == "cuda" else torch.device("cpu")
        return self

    def __init__(self, device="cpu"):
        pass

    @property
    def device(self) -> torch.device:
        return self._device


class Operators(TorchDispatchMode):
    """Counts the operators that wait, while a function computes on the GPU."""

    def __init__(self, record: Record):
        super().__init__()
        self.record = record
        self.on_gpu = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.on_gpu:
            name = func.overloadpacket.__name__
            waits = _masks(*args) if name in INDEXING else WAITS.get(name, 0)
            if name == "multinomial":  # looks at its weights, unless it may draw one twice
                waits = 2 if args[1] == 1 or not (args[2:3] or (False,))[0] else 0
            if waits:
                self.record.add("wait", name, waits)
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """Checks the devices of what functions are given, moves what they move, and marks what they return."""

    def __init__(self, record: Record, operators: Operators):
        super().__init__()
        self.record = record
        self.operators = operators

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, T)]
        on_gpu = any(isinstance(tensor, CudaTensor) for tensor in tensors)
        makes = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"
        name = getattr(func, "__name__", str(func))
        self._check_generator(name, kwargs, on_gpu)
        if func in MOVES:
            return self._move(func, args, kwargs)
        if not on_gpu and not makes:
            return func(*args, **kwargs)
        if name == "__set__" or func is torch._has_compatible_shallow_copy_type:  # of data and grad, and before it
            return self._compute(func, args, kwargs)
        if func is T.copy_:
            return self._copy(*args, **kwargs)
        if func is torch._foreach_copy_:  # one by one, where devices differ
            return [self._copy(*pair, *args[2:], **kwargs) for pair in zip(*args[:2], strict=True)]
        if func in INDEX_FUNCTIONS:
            return self._index(func, args, kwargs)
        if func in (T.numpy, T.__array__):
            raise TypeError(f"{name} of a CUDA tensor, at {_place()}")
        if func in TO_PYTHON:
            self.record.add("wait", name)
            with as_plain():
                return func(*args, **kwargs)
        if func in FROM_HOST and not any(isinstance(data, CudaTensor) for data in args[func is T.new_tensor :]):
            self.record.add("copy", name)
        elif on_gpu:
            _check_devices(func, name, tensors)
        if makes:
            kwargs = kwargs | {"device": "cpu"}
        return _marked(self._compute(func, args, kwargs))

    def _compute(self, func: Callable, args: tuple, kwargs: dict):
        self.operators.on_gpu = True
        try:
            with as_plain():
                return func(*args, **kwargs)
        finally:
            self.operators.on_gpu = False

    def _check_generator(self, name: str, kwargs: dict, on_gpu: bool) -> None:
        generator, device = kwargs.get("generator"), kwargs.get("device")
        wanted = ("cuda" if on_gpu else "cpu") if device is None else torch.device(device).type
        if generator is not None and generator.device.type != wanted:
            raise DeviceMixError(f"{name}: a generator of {generator.device.type} for {wanted}, at {_place()}")

    def _move(self, func: Callable, args: tuple, kwargs: dict) -> torch.Tensor:
        """`to`, `cpu` and `cuda`, of tensors on either side."""
        source, *rest = args
        copy, before = kwargs.get("copy", False), isinstance(source, CudaTensor)
        if func is not T.to:
            device, dtype, blocks, layout = torch.device(func.__name__), None, not kwargs.get("non_blocking"), None
        else:
            if rest and isinstance(rest[0], T):
                rest[:1] = [rest[0].device, rest[0].dtype]
            options = {name: value for name, value in kwargs.items() if name != "copy"}  # which the parser refuses
            device, dtype, non_blocking, layout = torch._C._nn._parse_to(*rest, **options)
            blocks = not non_blocking
        after = before if device is None else device.type == "cuda"
        if before != after and blocks:
            self.record.add("copy" if after else "wait", f"{func.__name__} {'cuda' if after else 'cpu'}")
        with as_plain():
            moved = source.to(
                dtype=dtype or source.dtype,
                memory_format=layout or torch.preserve_format,
                copy=copy or before != after,
            )
            return moved.as_subclass(CudaTensor if after else T) if before != after else _marked(moved, after)

    def _copy(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        to_gpu = isinstance(target, CudaTensor)
        if to_gpu != isinstance(source, CudaTensor) and not non_blocking:
            self.record.add("copy" if to_gpu else "wait", "copy_")
        return self._compute(T.copy_, (target, source), {})

    def _index(self, func: Callable, args: tuple, kwargs: dict):
        """Reading and writing at indices; the result lies where the indexed tensor does."""
        target, index, *values = args
        on_gpu = isinstance(target, CudaTensor)
        by_tensors = False
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, T) and part.dim() > 0:
                by_tensors = True
                if not on_gpu and isinstance(part, CudaTensor):
                    raise DeviceMixError(f"an index on the GPU into a CPU tensor, at {_place()}")
            of_host = isinstance(part, list) or (
                isinstance(part, T) and not isinstance(part, CudaTensor) and part.dim()
            )
            if on_gpu and of_host:
                self.record.add("copy", "index from the host")
        for value in values:
            if isinstance(value, T) and on_gpu != isinstance(value, CudaTensor) and value.dim() > 0:
                if by_tensors:
                    raise DeviceMixError(f"{func.__name__}: values of another device, at {_place()}")
                self.record.add("copy" if on_gpu else "wait", func.__name__)
        return _marked(self._compute(func, args, kwargs), on_gpu)


@contextmanager
def pretend_gpu() -> Iterator[Record]:
    """A GPU for as long as this lasts, and what makes the host wait for it."""
    record = Record()
    operators = Operators(record)
    with ExitStack() as stack:
        for owner, name, value in _replacements():
            stack.enter_context(patch.object(owner, name, value))
        stack.enter_context(operators)
        stack.enter_context(Functions(record, operators))
        yield record


def _replacements() -> list[tuple]:
    """Where torch asks C++ for devices, or needs a CUDA that is there: (owner, name, replacement)."""
    autocast = torch.amp.autocast_mode.autocast
    start_autocast = autocast.__init__
    group = torch._C._group_tensors_by_device_and_dtype

    def start_autocast_on_cpu(self, device_type, *args, **kwargs):
        start_autocast(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    apply_to_module = torch.nn.Module._apply

    def apply_by_swapping(self, *args, **kwargs):
        # A moved parameter is given new data otherwise, but keeps its class: it would stay a CPU tensor.
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return apply_to_module(self, *args, **kwargs)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swaps)

    def group_by_pretended_device(lists, *args):
        groups = group(lists, *args).items()
        return {(found[0][0][0].device, dtype): found for (_, dtype), found in groups}

    for_lists = [torch.Tensor, torch.nn.Parameter, CudaTensor]
    return [
        (torch, "Generator", PretendGenerator),
        (autocast, "__init__", start_autocast_on_cpu),
        (torch.nn.Module, "_apply", apply_by_swapping),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        # timm's optimizers take as many weights at once as the cache holds: here, that of an H100
        (torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=50 * 2**20)),
        (torch._C, "_group_tensors_by_device_and_dtype", group_by_pretended_device),
        # or clipping and the optimizer would go from tensor to tensor, as they do on no GPU
        (torch.utils._foreach_utils, "_foreach_supported_types", for_lists),
        (sys.modules["torch.optim.optimizer"], "_foreach_supported_types", for_lists),
    ]


def _marked(result, on_gpu: bool = True):
    """A function's result, with the tensors in it on the GPU."""
    if not on_gpu or isinstance(result, CudaTensor):
        return result
    if isinstance(result, T):
        with as_plain():
            return result.as_subclass(CudaTensor)
    if isinstance(result, (tuple, list)) and not isinstance(result, torch.Size):
        return tree_map(_marked, result)
    if isinstance(result, Iterator):  # of a tensor that is iterated over
        return map(_marked, result)
    return result


def _check_devices(func: Callable, name: str, tensors: list[torch.Tensor]) -> None:
    """Raise a `DeviceMixError` for tensors of the CPU among those of the GPU."""
    written = name.endswith("_") and not name.endswith("__") or name.startswith("__i")
    for i, tensor in enumerate(tensors):
        alone = tensor.dim() > 0 or func in NO_SCALARS or (written and i == 0)
        if alone and not isinstance(tensor, CudaTensor):
            raise DeviceMixError(f"{name}: a CPU tensor {tuple(tensor.shape)} meets CUDA tensors, at {_place()}")


def _masks(target: torch.Tensor, indices, value: torch.Tensor | None = None, *_) -> int:
    """How many masks an operator turns into positions; none where it writes one number, which fills in place."""
    masks = sum(isinstance(i, T) and i.dtype in (torch.bool, torch.uint8) for i in indices)
    return 0 if value is not None and value.numel() == 1 else masks


def _place() -> str:
    """file:line of the innermost frame in the project or, if nothing of it runs, outside torch."""
    elsewhere = None
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PROJECT):
            return f"{Path(file).relative_to(Path(PROJECT[0]).parent)}:{frame.f_lineno}"
        if elsewhere is None and not any(part in file for part in ELSEWHERE):
            elsewhere = f"{'/'.join(Path(file).parts[-3:])}:{frame.f_lineno}"
        frame = frame.f_back
    return elsewhere or "?"
