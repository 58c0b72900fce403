"""Blocks of cells in parallel, and their way to the host."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import scipy.sparse as sp
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from torch import Tensor

Rows: TypeAlias = sp.csr_matrix | np.ndarray
Item = TypeVar("Item")
Result = TypeVar("Result")

N_GPU_WORKERS = 2
"""So that one block is put together on the host while the GPU computes the next."""


def in_parallel(make: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> Iterator[Result]:
    """Yield ``make(item)`` of every item in their order; several are made at a time, each by one thread of torch.

    On a CPU as many as torch has threads. So results do not depend on the number of threads, as sums that threads share do, and
    threads do not wait for each other, not even where other processes take the processor away.
    """
    n_threads = torch.get_num_threads()
    workers = {"cpu": n_threads, "cuda": N_GPU_WORKERS}.get(device.type, 1)
    if workers == 1:
        yield from map(make, items)
        return
    with ThreadPoolExecutor(workers, initializer=partial(torch.set_num_threads, 1)) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(make, item))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            torch.set_num_threads(n_threads)


def rows_of(values: Tensor, *, sparse: bool) -> Rows:
    """Bring cells ``(cells, genes)`` to the host; of sparse ones their non-zero values only."""
    values = values.float()
    if not sparse:
        return values.cpu().numpy()
    if values.device.type == "cpu":
        return csr_of(values.numpy())
    n_genes = values.shape[1]
    found = values != 0
    flat = found.view(-1).nonzero().view(-1)
    data, columns, counts = values.reshape(-1)[flat], (flat % n_genes).int(), found.sum(1)
    return _assemble(data.cpu().numpy(), columns.cpu().numpy(), counts.cpu().numpy(), n_genes)


def csr_of(values: np.ndarray) -> sp.csr_matrix:
    """Return dense cells ``(cells, genes)`` as CSR, five times as fast as by SciPy."""
    n_cells, n_genes = values.shape
    values = np.ascontiguousarray(values)
    found = values != 0
    flat, counts = np.flatnonzero(found), np.count_nonzero(found, axis=1)
    columns = (flat - np.repeat(np.arange(n_cells) * n_genes, counts)).astype(np.int32)
    return _assemble(values.reshape(-1)[flat], columns, counts, n_genes)


def _assemble(data: np.ndarray, columns: np.ndarray, counts: np.ndarray, n_genes: int) -> sp.csr_matrix:
    starts = np.concatenate([[0], np.cumsum(counts)])
    matrix = sp.csr_matrix((data, columns, starts), shape=(len(counts), n_genes))
    matrix.has_canonical_format = True
    return matrix


def stack(parts: list[Rows]) -> Rows:
    """Put rows below each other, sparse or not."""
    if len(parts) == 1:
        return parts[0]
    return sp.vstack(parts, format="csr") if sp.issparse(parts[0]) else np.concatenate(parts)
