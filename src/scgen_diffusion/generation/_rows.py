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
    """Copy cells ``(cells, genes)`` to the host; if sparse, only their non-zero values. All must be finite."""
    values = values.float()
    if not sparse:
        check_sampled(dense := _to_host(values))
        return dense
    n_genes = values.shape[1]
    found = values != 0
    flat = found.flatten().nonzero().view(-1)
    data, columns, counts = (_to_host(part) for part in (values.flatten()[flat], (flat % n_genes).int(), found.sum(1)))
    check_sampled(data)
    matrix = sp.csr_matrix((data, columns, np.cumsum([0, *counts])), shape=values.shape)
    matrix.has_canonical_format = True
    return matrix


def _to_host(values: Tensor) -> np.ndarray:
    """Copy a tensor to an array; from a GPU by pinned memory, which is ten times as fast."""
    if values.device.type != "cuda":
        return values.cpu().numpy()
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    pinned.copy_(values, non_blocking=True)
    torch.cuda.current_stream(values.device).synchronize()
    return pinned.numpy().copy()  # so that pinned memory is used again


def check_sampled(values: np.ndarray) -> None:
    """Raise FloatingPointError for values that are NaN or infinite."""
    if not np.isfinite(values).all():
        msg = (
            "Sampling diverged: the generated values are not finite. Try more steps, another sampler or less guidance. "
            "If that does not help, the model itself has diverged: train again with a lower learning rate."
        )
        raise FloatingPointError(msg)
