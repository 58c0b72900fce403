"""Matrices of cells by genes that stay in their files: rows are read when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Rows: TypeAlias = np.ndarray | sp.csr_matrix
NEAR = 16  # rows that are rather read and left out than skipped


class FileMatrix:
    """A matrix in an HDF5 file or zarr store, dense or CSR, of which rows are read.

    Parameters
    ----------
    element
        What anndata wrote: an array, or a group with ``data``, ``indices`` and ``indptr``.
    columns
        Which columns to take, in which order; None for all as they are.

    Raises
    ------
    ValueError
        For a matrix that is stored by columns, or lacks a part.
    """

    def __init__(self, element: Any, columns: np.ndarray | None = None) -> None:
        self.element = element
        self.columns = columns
        self.is_sparse = not hasattr(element, "dtype")
        if self.is_sparse and element.attrs["encoding-type"] != "csr_matrix":
            msg = (
                f"the matrix is stored as {element.attrs['encoding-type']!r}, of which single cells cannot be read; write it by rows: "
                "`adata.X = adata.X.tocsr()`."
            )
            raise ValueError(msg)
        if self.is_sparse and (missing := {"data", "indices", "indptr"} - set(element)):
            msg = f"the matrix has no {sorted(missing)[0]!r}; the file is damaged."
            raise ValueError(msg)
        stored = element.attrs["shape"] if self.is_sparse else element.shape
        self.stored_shape = (int(stored[0]), int(stored[1]))

    @property
    def shape(self) -> tuple[int, int]:
        """Cells, and columns that are taken."""
        return self.stored_shape[0], self.stored_shape[1] if self.columns is None else len(self.columns)

    def __getitem__(self, rows: slice) -> Rows:
        """Read consecutive rows."""
        start, stop, _ = rows.indices(self.shape[0])
        read = self._read_sparse(start, stop) if self.is_sparse else np.asarray(self.element[start:stop])
        return read if self.columns is None else read[:, self.columns]

    def read(self, rows: np.ndarray) -> Rows:
        """Read rows, whose numbers ascend."""
        parts = [self._select(part) for part in runs_of(rows)]
        return parts[0] if len(parts) == 1 else stacked(parts)

    @property
    def rows_per_chunk(self) -> float:
        """How many rows one part has in which the file is stored, about; 0 if it is not stored in parts."""
        array = self.element["data"] if self.is_sparse else self.element
        per_chunk = (getattr(array, "shards", None) or array.chunks or (0,))[0]
        return per_chunk * self.shape[0] / max(array.shape[0], 1)

    def _select(self, rows: np.ndarray) -> Rows:
        read = self[int(rows[0]) : int(rows[-1]) + 1]
        return read if read.shape[0] == len(rows) else read[rows - rows[0]]

    def _read_sparse(self, start: int, stop: int) -> sp.csr_matrix:
        ends = np.asarray(self.element["indptr"][start : stop + 1]).astype(np.int64)
        low, high = int(ends[0]), int(ends[-1])
        data, indices = (np.asarray(self.element[name][low:high]) for name in ("data", "indices"))
        return sp.csr_matrix((data, indices, ends - low), shape=(stop - start, self.stored_shape[1]))


class JoinedMatrix:
    """Several matrices, one below the other, as one.

    Parameters
    ----------
    parts
        Matrices with the same columns.
    """

    def __init__(self, parts: Sequence[FileMatrix]) -> None:
        self.parts = list(parts)
        self.ends = np.cumsum([part.shape[0] for part in parts])

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and columns."""
        return int(self.ends[-1]), self.parts[0].shape[1]

    def read(self, rows: np.ndarray) -> Rows:
        """Read rows, whose numbers ascend."""
        bounds = [0, *np.searchsorted(rows, self.ends)]
        starts = [0, *self.ends[:-1]]
        read = [
            part.read(rows[low:high] - start)
            for part, start, low, high in zip(self.parts, starts, bounds[:-1], bounds[1:], strict=True)
            if high > low
        ]
        return read[0] if len(read) == 1 else stacked(read)


def stacked(parts: Sequence[Rows]) -> Rows:
    """Put rows below each other; they are sparse if any of them is."""
    if any(sp.issparse(part) for part in parts):
        return sp.vstack(parts, format="csr")
    return np.concatenate(parts)


def dense(rows: Rows) -> np.ndarray:
    """Return rows as an array of float32."""
    if isinstance(rows, np.ndarray):
        return rows.astype(np.float32, copy=False)
    return rows.astype(np.float32, copy=False).toarray()


def runs_of(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Part ascending row numbers where there is a gap that is better skipped than read."""
    yield from np.split(rows, np.flatnonzero(np.diff(rows) > NEAR) + 1)
