"""Telling cells from others: by their names and values, wherever they lie."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from ._file_matrix import Rows, dense

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

N_RUNS, LENGTH_OF_RUN = 32, 8  # neighbouring cells are read together


def sampled_rows(n_cells: int) -> np.ndarray:
    """Choose some hundred cells, spread evenly over all; return their row numbers, which ascend."""
    starts = np.linspace(0, max(n_cells - LENGTH_OF_RUN, 0), N_RUNS).astype(int)
    rows = np.unique(starts[:, None] + np.arange(LENGTH_OF_RUN))
    return rows[rows < n_cells]


def digest_of_cells(names: Iterable[Sequence[str]], totals: Iterable[np.ndarray], sampled: Rows) -> str:
    """Tell cells from others; it does not depend on how they are parted or stored.

    Parameters
    ----------
    names
        Names of all cells, in consecutive parts.
    totals
        Sums of their values, in double precision and in consecutive parts.
    sampled
        Values of the cells that :func:`sampled_rows` chose.
    """
    digest = hashlib.sha256()
    for part in names:
        digest.update("".join(f"{name}\n" for name in part).encode())
    for sums in totals:
        digest.update(sums.tobytes())
    digest.update(np.ascontiguousarray(dense(sampled)).tobytes())
    return digest.hexdigest()
