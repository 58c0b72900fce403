"""Whether several processes train together, and what they tell each other."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from scgen_diffusion._compat import ddp_options

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy


def is_distributed() -> bool:
    """Tell whether this process is one of several that train one model."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def process_rank() -> int:
    """Return the number of this process among those that train together."""
    return distributed.get_rank() if is_distributed() else 0


def process_count() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if is_distributed() else 1


def from_first_process(value: Any) -> Any:
    """Return the first process's plain value in all of them."""
    if not is_distributed():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def from_all_processes(value: Any) -> list[Any]:
    """Return the plain values of all processes, by rank."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * process_count()
    distributed.all_gather_object(values, value)
    return values


def largest_of_processes(values: list[int]) -> list[int]:
    """Return, of each value, the largest that any process has."""
    table = torch.tensor(values, dtype=torch.long, device=collective_device())
    distributed.all_reduce(table, op=distributed.ReduceOp.MAX)
    return table.tolist()


def collective_device() -> torch.device:
    """Return where tensors have to be that processes send each other."""
    on_gpu = distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def keep_buffers_apart(strategy: Strategy) -> None:
    """Keep distributed training from sending all buffers in every step: none of ours is changed by a step in one process alone."""
    name = "forward_sync_buffers"  # older versions of torch could only leave out the synchronisation at the start too
    if isinstance(strategy, DDPStrategy) and name in signature(DistributedDataParallel).parameters:
        ddp_options(strategy).setdefault(name, False)
