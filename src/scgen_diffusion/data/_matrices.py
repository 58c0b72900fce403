"""Matrices of cells, in memory or in files: read by rows, part by part, and checked as they are read."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import h5py
import numpy as np
import scipy.sparse as sp
from anndata.abc import CSCDataset, CSRDataset

from scgen_diffusion._files import explain_failed_read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

Rows: TypeAlias = np.ndarray | sp.csr_matrix
CHUNK = 4096  # rows checked together, so that backed files are never read whole
LARGEST_GAP = 16  # gaps of at most so many rows are read and dropped instead of skipped


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
        msg = f"{where} is backed by a file that stores it by columns (CSC). Read it into memory: `adata.to_memory()`."
        raise ValueError(msg)


def check_structure(matrix: Any, where: str) -> None:
    """Raise if rows or columns of a sparse matrix in memory point outside of it: SciPy trusts them, and crashes."""
    if sp.issparse(matrix) and matrix.format in ("csr", "csc"):
        checked_sparse(type(matrix), (matrix.data, matrix.indices, matrix.indptr), matrix.shape, where)


def checked_sparse(kind: Any, arrays: tuple[Any, Any, Any], shape: tuple[int, int], where: str) -> Any:
    """Build a sparse matrix of data, indices and ends of rows; raise unless these fit each other and the shape."""
    try:
        matrix = kind(arrays, shape=shape)
        matrix.check_format()
        error = "the ends of its rows fall" if (np.diff(arrays[2]) < 0).any() else ""  # unseen if the last one is zero
    except ValueError as found:
        error = str(found)
    if error:
        msg = f"{where} is damaged: {error}."
        raise ValueError(msg)
    return matrix


def row_sums(matrix: Any, where: str) -> np.ndarray:
    """Return the row sums of a matrix, ``(cells,)``, reading it part by part."""
    return np.concatenate([chunk_sums(chunk) for chunk in chunks(matrix, where)])


def exceeds_one(matrix: Any, where: str) -> bool:
    """Return whether any value of a matrix is above 1; it is read part by part until one is."""
    return any(chunk.size and chunk.max() > 1 for chunk in chunks(matrix, where))


def chunks(matrix: Any, where: str) -> Iterator[np.ndarray | sp.csr_matrix]:
    """Yield consecutive rows, sparse ones with one value per place."""
    check_storage(matrix, where)
    matrix = in_file(matrix, where) or matrix
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


def in_file(matrix: Any, name: str) -> FileMatrix | None:
    """Return a reader of the matrix of an AnnData if it is backed by a file."""
    if isinstance(matrix, h5py.Dataset):
        return FileMatrix(matrix, name)
    return FileMatrix(matrix.group, name) if isinstance(matrix, CSRDataset) else None


def naming_file(element: Any) -> AbstractContextManager[None]:
    """Name the file in an error of reading one of its elements."""
    path = (
        element.file.filename if isinstance(element, h5py.Group | h5py.Dataset) else getattr(element, "store_path", "")
    )
    return explain_failed_read(path, f"{path} cannot be read, as {getattr(element, 'name', 'it')} is damaged")


def read_part(array: Any, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Read consecutive entries of an array in a file."""
    with naming_file(array):
        return np.asarray(array[start:stop])


class FileMatrix:
    """A dense or CSR matrix in an HDF5 file or zarr store, read by rows.

    Parameters
    ----------
    element
        Element of the file: an array, or a group with ``data``, ``indices`` and ``indptr``.
    name
        Name of the matrix in error messages.
    check_unchanged
        Raises if the file was replaced.

    Attributes
    ----------
    columns
        Columns to read, in order; None for all.

    Raises
    ------
    ValueError
        For a matrix that is stored by columns.
    """

    def __init__(self, element: Any, name: str, check_unchanged: Callable[[], None] = lambda: None) -> None:
        self.element, self.name, self.check_unchanged = element, name, check_unchanged
        self.columns: np.ndarray | None = None
        self.is_sparse = not hasattr(element, "dtype")
        if self.is_sparse and element.attrs["encoding-type"] != "csr_matrix":
            kind = element.attrs["encoding-type"]
            msg = f"{name} is stored as {kind!r}, from which single cells cannot be read. Write it by rows: `.tocsr()`."
            raise ValueError(msg)
        stored = element.attrs["shape"] if self.is_sparse else element.shape
        self.stored_shape = (int(stored[0]), int(stored[1]))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and of columns read."""
        return self.stored_shape[0], self.stored_shape[1] if self.columns is None else len(self.columns)

    def __getitem__(self, rows: slice) -> Rows:
        """Read consecutive rows."""
        start, stop, _ = rows.indices(self.shape[0])
        read = self._read_sparse(start, stop) if self.is_sparse else read_part(self.element, start, stop)
        return read if self.columns is None else read[:, self.columns]

    def read(self, rows: np.ndarray) -> Rows:
        """Read rows in ascending order."""
        parts = np.split(rows, np.flatnonzero(np.diff(rows) > LARGEST_GAP) + 1)
        try:
            return stack_rows([self._select(part) for part in parts])
        finally:
            self.check_unchanged()  # also if the new file cannot be read

    @property
    def rows_per_chunk(self) -> float:
        """Approximate number of rows in a chunk of the file; 0 if it is not chunked."""
        array = self.element["data"] if self.is_sparse else self.element
        per_chunk = (getattr(array, "shards", None) or array.chunks or (0,))[0]
        return per_chunk * self.shape[0] / max(array.shape[0], 1)

    @cached_property
    def _arrays(self) -> tuple[Any, Any, np.ndarray]:
        """Values and columns of a sparse matrix, opened once, and the ends of its rows in memory (8 bytes per row)."""
        data, indices, ends = (self.element[name] for name in ("data", "indices", "indptr"))
        return data, indices, read_part(ends).astype(np.int64)

    def _select(self, rows: np.ndarray) -> Rows:
        read = self[int(rows[0]) : int(rows[-1]) + 1]
        return read if read.shape[0] == len(rows) else read[rows - rows[0]]

    def _read_sparse(self, start: int, stop: int) -> sp.csr_matrix:
        data, indices, ends = self._arrays
        ends = ends[start : stop + 1]
        low, high = int(ends[0]) if start else 0, int(ends[-1])
        data, indices = (read_part(array, low, high) for array in (data, indices))
        shape = (stop - start, self.stored_shape[1])
        return checked_sparse(sp.csr_matrix, (data, indices, ends - low), shape, self.name)


class JoinedMatrix:
    """Several matrices, stacked by rows.

    Parameters
    ----------
    parts
        Matrices with the same columns: a :class:`FileMatrix` of each file, or its modalities side by side.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)
        self.ends = np.cumsum([part.shape[0] for part in parts])

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and columns."""
        return int(self.ends[-1]), self.parts[0].shape[1]

    def read(self, rows: np.ndarray) -> Rows:
        """Read rows in ascending order."""
        return stack_rows([part.read(own) for part, own in zip(self.parts, self.split(rows), strict=True) if len(own)])

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """Split ascending row numbers into those of each part, counted within it."""
        starts = [0, *self.ends[:-1]]
        of_parts = np.split(rows, np.searchsorted(rows, self.ends[:-1]))
        return [own - start for own, start in zip(of_parts, starts, strict=True)]


def stack_rows(parts: Sequence[Rows]) -> Rows:
    """Stack rows; the result is sparse if any part is. A single part is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    if any(sp.issparse(part) for part in parts):
        return sp.vstack(parts, format="csr")
    return np.concatenate(parts)


def dense(rows: Rows) -> np.ndarray:
    """Return rows as an array of float32."""
    if isinstance(rows, np.ndarray):
        return rows.astype(np.float32, copy=False)
    if not sp.issparse(rows):  # such as an array of dask
        return np.asarray(rows, dtype=np.float32)
    return rows.astype(np.float32, copy=False).toarray()
