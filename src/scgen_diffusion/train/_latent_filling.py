"""Filling a cache of latents by several processes: each encodes its share of the cells, and all get all."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, distributed

from ._distributed import collective_device, from_all_processes, is_distributed, process_count, process_rank
from ._latents import MEMORY_LIMIT, LatentCache
from ._sharing import Share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

BATCH_SIZE = 512
T = TypeVar("T")


def cache_latents(
    n_cells: int,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    encode: Callable[[np.ndarray | None, int], Iterator[Mapping[str, Tensor]]],
    *,
    memory_limit: int = MEMORY_LIMIT,
) -> LatentCache:
    """Encode all cells once: each process its share of them. A file of latents is shared by the processes of a machine.

    Parameters
    ----------
    n_cells
        Number of cells.
    shapes, dtypes, memory_limit
        See :class:`LatentCache`.
    encode
        Yields the latents of given cells (None for all) in batches of the given size.
    """
    if not is_distributed():
        return LatentCache(n_cells, shapes, dtypes, memory_limit=memory_limit).fill(encode(None, BATCH_SIZE))
    cache = _shared_cache(n_cells, shapes, dtypes, memory_limit)
    share = Share.of(n_cells, process_rank(), process_count())
    batches = encode(np.arange(share.first, share.stop), BATCH_SIZE)
    largest_share = -(-n_cells // process_count())
    for start in range(0, largest_share, BATCH_SIZE):
        _exchange(cache, next(batches, {}), start)
    distributed.barrier()  # nobody reads before all is written
    return cache


def _shared_cache(
    n_cells: int, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype], memory_limit: int
) -> LatentCache:
    """Make a cache whose file, if it needs one, belongs to the first process of each machine."""
    machines = from_all_processes(socket.gethostname())
    owner = machines.index(socket.gethostname())
    new = partial(LatentCache, n_cells, shapes, dtypes, memory_limit=memory_limit)
    own = _in_all_or_none(lambda: new() if owner == process_rank() else None)
    folder = from_all_processes(None if own is None else own.folder)[owner]
    is_seen = folder is not None and Path(folder).exists()  # containers may hide it
    return _in_all_or_none(lambda: own if own is not None else new(folder=folder if is_seen else None))


def _in_all_or_none(work: Callable[[], T]) -> T:
    """Do what may fail for want of room in a file, and fail in all processes if it does in one, since they would wait for it forever.

    Raises
    ------
    OSError
        If it fails in any process.
    """
    result, own_error = None, None
    try:
        result = work()
    except OSError as error:
        own_error = error
    errors = from_all_processes(None if own_error is None else str(own_error))
    if own_error is not None:
        raise own_error
    for rank, error in enumerate(errors):
        if error is not None:
            msg = f"Process {rank}, which trains with this one, failed: {error}"
            raise OSError(msg)
    return cast("T", result)


def _exchange(cache: LatentCache, batch: Mapping[str, Tensor], start: int) -> None:
    """Send a batch of one's share to all, receive theirs, and write those that begin ``start`` rows into each share."""
    for name, array in cache.arrays.items():
        rows = torch.zeros((BATCH_SIZE, *array.shape[1:]), dtype=array.dtype, device=collective_device())
        if name in batch:
            rows[: len(batch[name])] = batch[name]
        received = [torch.empty_like(rows) for _ in range(process_count())]
        distributed.all_gather(received, rows)
        if cache.is_own:
            _write(array, received, start)


def _write(array: Tensor, received: list[Tensor], start: int) -> None:
    for rank, rows in enumerate(received):
        share = Share.of(len(array), rank, len(received))
        first, stop = share.first + start, min(share.first + start + BATCH_SIZE, share.stop)
        if first < stop:
            array[first:stop] = rows[: stop - first]
