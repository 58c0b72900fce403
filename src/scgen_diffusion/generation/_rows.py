"""Cells on the host: rows of a matrix, dense or sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from scgen_diffusion.data import Rows


def rows_of(values: Tensor, *, sparse: bool) -> Rows:
    """Copy cells ``(cells, genes)`` to the host; if sparse, only their non-zero values."""
    values = values.float()
    if not sparse:
        return _to_host(values)
    if values.device.type == "cpu":
        return csr_of(values.numpy())
    n_genes = values.shape[1]
    found = values != 0
    flat = found.view(-1).nonzero().view(-1)
    data, columns, counts = values.reshape(-1)[flat], (flat % n_genes).int(), found.sum(1)
    return _assemble(_to_host(data), _to_host(columns), _to_host(counts), n_genes)


def _to_host(values: Tensor) -> np.ndarray:
    """Copy a tensor to an array; from a GPU by pinned memory, which is ten times as fast."""
    if values.device.type != "cuda":
        return values.cpu().numpy()
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    pinned.copy_(values, non_blocking=True)
    torch.cuda.current_stream(values.device).synchronize()
    return pinned.numpy().copy()  # so that pinned memory is used again


def csr_of(values: np.ndarray) -> sp.csr_matrix:
    """Return dense cells ``(cells, genes)`` as CSR, faster than SciPy does."""
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


def check_finite(rows: Rows) -> None:
    """Raise if any value of cells ``(cells, genes)`` is not finite.

    Raises
    ------
    FloatingPointError
        For values that are NaN or infinite.
    """
    if not np.isfinite(rows if isinstance(rows, np.ndarray) else rows.data).all():
        msg = (
            "Sampling diverged: the generated values are not finite. Try more steps, another sampler or less guidance. "
            "If that does not help, the model itself has diverged: train again with a lower learning rate."
        )
        raise FloatingPointError(msg)
