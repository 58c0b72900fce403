"""Matrices of cells, in memory or in files: read by rows, part by part, and checked as they are read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import h5py
import numpy as np
import scipy.sparse as sp
import zarr
from anndata.abc import CSCDataset, CSRDataset

from scgen_diffusion._files import explain_failed_read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Rows: TypeAlias = np.ndarray | sp.csr_matrix
CHUNK = 4096  # rows checked together, so that backed files are never read whole
BLOCK_SIZE, LARGEST_BLOCK = 128, 512  # a window of the usual size mixes at least 32 blocks
LARGEST_GAP = 16  # gaps of at most so many rows are read and dropped instead of skipped
VALUES = "The matrix of values"  # name of a matrix in errors that users do not know by another


def to_csr(expression: Any, name: str = "X") -> sp.csr_matrix:
    """Return expression as CSR, also of types that scipy lacks: half precision becomes single, byte orders native.

    Raises
    ------
    ValueError
        If the values are not numbers, or a sparse matrix is damaged.
    """
    if not isinstance(getattr(expression, "dtype", None), np.dtype):  # lists, tables and tensors
        expression = np.asarray(expression)
    if (dtype := expression.dtype).kind not in "biuf":
        msg = f"`{name}` holds values of type {dtype}, but numbers are needed."
        raise ValueError(msg)
    check_structure(expression, f"`{name}`")
    native = np.dtype(np.float32) if dtype.itemsize == 2 and dtype.kind == "f" else dtype.newbyteorder("=")
    return sp.csr_matrix(expression if native == dtype else expression.astype(native))


def check_storage(matrix: Any, where: str) -> None:
    """Raise for matrices that models misread, or read slowly: masked, or in a file of columns.

    Those that are sparse and in memory must not be damaged either.
    """
    check_structure(matrix, where)
    if isinstance(matrix, np.ma.MaskedArray):
        msg = f"{where} is a masked array, but every value is needed. Fill in those that are masked: `.filled(0)`."
        raise ValueError(msg)
    if isinstance(matrix, CSCDataset):
        msg = f"{where} is stored in a file by columns (CSC), which is slow to read. Write it by rows: `.tocsr()`."
        raise ValueError(msg)


def check_structure(matrix: Any, where: str) -> None:
    """Raise if rows or columns of a sparse matrix in memory point outside of it: SciPy trusts them, and crashes."""
    if sp.issparse(matrix) and matrix.format in ("csr", "csc"):
        with explain_failed_read(f"{where} is damaged"):
            matrix.check_format()
            if (np.diff(matrix.indptr) < 0).any():  # which SciPy does not see if the last one is zero
                msg = "its `indptr` decreases"
                raise ValueError(msg)


def row_sums(matrix: Any, where: str) -> np.ndarray:
    """Return the row sums of a matrix, ``(cells,)``, reading it part by part."""
    return np.concatenate([chunk_sums(chunk) for chunk in chunks(matrix, where)])


def exceeds_one(matrix: Any, where: str) -> bool:
    """Return whether any value of a matrix is above 1; it is read part by part until one is."""
    return any(chunk.size and chunk.max() > 1 for chunk in chunks(matrix, where))


def chunks(matrix: Any, where: str) -> Iterator[np.ndarray | sp.csr_matrix]:
    """Yield consecutive rows, sparse ones with one value per place."""
    check_storage(matrix, where)
    matrix = FileMatrix(matrix, where) if is_in_file(matrix) else matrix
    for start in range(0, matrix.shape[0], CHUNK):
        chunk = matrix[start : start + CHUNK]
        if not sp.issparse(chunk):
            yield np.asarray(chunk)
            continue
        rows = chunk.tocsr()
        if not rows.has_canonical_format:
            rows = rows.copy()  # a slice shares the values of its matrix
            rows.sum_duplicates()
        yield rows


def chunk_sums(chunk: np.ndarray | sp.spmatrix) -> np.ndarray:
    """Sum float32 values in double precision; the result does not depend on how values are stored."""
    return np.asarray(chunk.astype(np.float32, copy=False).sum(axis=1, dtype=np.float64)).ravel()


def is_in_file(matrix: Any) -> bool:
    """Return whether the matrix of an AnnData stays in its file."""
    return isinstance(matrix, h5py.Dataset | zarr.Array | CSRDataset)


@dataclass(frozen=True)
class FileMatrix:
    """A matrix in a file, read by rows.

    Parameters
    ----------
    matrix
        The array, or anndata's reader of a sparse matrix.
    name
        Its name in error messages.
    columns
        Columns to read, in order; None for all.
    """

    matrix: h5py.Dataset | zarr.Array | CSRDataset
    name: str
    columns: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and of columns read."""
        n_cells, n_columns = self.matrix.shape
        return n_cells, n_columns if self.columns is None else len(self.columns)

    def __getitem__(self, rows: slice) -> Rows:
        """Read consecutive rows."""
        with explain_failed_read(f"{self.name} is damaged, or its file was closed"):
            read = self._read_sparse(rows) if isinstance(self.matrix, CSRDataset) else self.matrix[rows]
        check_structure(read, self.name)
        return read if self.columns is None else read[:, self.columns]

    @cached_property
    def _arrays(self) -> tuple[Any, Any, np.ndarray]:
        """Values and columns of a sparse matrix, opened once, and the ends of its rows in memory."""
        group = self.matrix.group
        return group["data"], group["indices"], group["indptr"][:]

    def _read_sparse(self, rows: slice) -> sp.csr_matrix:
        """Read consecutive rows; anndata's own reader takes thirty times as long for a block of an HDF5 file."""
        start, stop, _ = rows.indices(self.shape[0])
        data, indices, ends = self._arrays
        ends = ends[start : stop + 1]
        stored = slice(int(ends[0]), int(ends[-1]))
        return sp.csr_matrix((data[stored], indices[stored], ends - ends[0]), (stop - start, self.matrix.shape[1]))

    @property
    def rows_per_chunk(self) -> float:
        """Approximate number of rows in a chunk of the file; 0 if it is not chunked."""
        array = self.matrix.group["data"] if isinstance(self.matrix, CSRDataset) else self.matrix
        per_chunk = (getattr(array, "shards", None) or array.chunks or (0,))[0]
        return per_chunk * self.shape[0] / max(array.shape[0], 1)


class JoinedMatrix:
    """Matrices in files, stacked by rows.

    Parameters
    ----------
    parts
        Matrices with the same columns.
    """

    def __init__(self, parts: Sequence[FileMatrix]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.shape = int(self.starts[-1]), parts[0].shape[1]

    @property
    def block_size(self) -> int:
        """Number of neighbouring rows to read together, to match the chunks of the files."""
        rows_per_chunk = max(part.rows_per_chunk for part in self.parts)
        return int(np.clip(np.ceil(rows_per_chunk), BLOCK_SIZE, LARGEST_BLOCK))

    def read(self, rows: np.ndarray) -> Rows:
        """Read rows in ascending order."""
        read = []
        of_parts = np.split(rows, np.searchsorted(rows, self.starts[1:-1]))
        for part, start, own in zip(self.parts, self.starts[:-1], of_parts, strict=True):
            for run in np.split(own - start, np.flatnonzero(np.diff(own) > LARGEST_GAP) + 1):
                if len(run):
                    found = part[int(run[0]) : int(run[-1]) + 1]
                    read.append(found if found.shape[0] == len(run) else found[run - run[0]])
        return stack_rows(read)


def read_rows(matrix: Any, rows: np.ndarray) -> Rows:
    """Return rows of a matrix in memory, in a file, or in several joined ones, in the given order."""
    if is_in_file(matrix):
        matrix = JoinedMatrix([FileMatrix(matrix, VALUES)])
    if not isinstance(matrix, JoinedMatrix):
        return matrix[rows]
    distinct, positions = np.unique(rows, return_inverse=True)
    return matrix.read(distinct)[positions]


def stack_rows(parts: Sequence[Rows]) -> Rows:
    """Stack rows; the result is sparse if any part is. A single part is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    if any(sp.issparse(part) for part in parts):
        return sp.vstack(parts, format="csr")
    return np.concatenate(parts)


def dense(rows: Any) -> np.ndarray:
    """Return rows, also those of an array of dask, as an array of float32."""
    if sp.issparse(rows):
        return rows.astype(np.float32, copy=False).toarray()
    return np.asarray(rows, dtype=np.float32)
