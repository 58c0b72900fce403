"""Writing cells that are never in memory all at once: an AnnData of any length in ``.h5ad`` or sharded ``.zarr``.

anndata itself writes the form of the file, from cells of which there are none yet. Then the arrays that have one entry per cell
or per value are made anew in their full length, with what anndata wrote about them, and filled from the front.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata
import h5py
import numpy as np
import scipy.sparse as sp
import zarr

from ._anndata import PROVENANCE_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

RECORD = "scgen_diffusion_request"  # attribute of a finished file: what was asked
NAMES_IN_ZARR = {"X", "layers", "obs", "obsm", "obsp", "uns", "var", "varm", "varp"} | {
    "zarr.json",
    ".zattrs",
    ".zgroup",
    ".zmetadata",
}  # what anndata writes, in zarr's formats 3 and 2
CELLS_PER_CHUNK = 64  # at least; what random access, as of annbatch, reads at once
VALUES_PER_CHUNK = 2**16  # at least
OBS_PER_CHUNK = 2**14
OBS_PER_SHARD = 2**18
INT32_MAX = np.iinfo(np.int32).max


class Piece(NamedTuple):
    """Some cells: values ``(cells, genes)`` and their table."""

    x: sp.csr_matrix | np.ndarray
    obs: pd.DataFrame


class Extent(NamedTuple):
    """How much there will be: cells, stored values of a sparse matrix, and cells per shard of the values."""

    n_cells: int
    n_stored: int
    cells_per_shard: int

    def cut_of_values(self) -> tuple[int, int]:
        """Return how many stored values make a chunk and a shard, with as many chunks per shard as cells demand."""
        per_cell = max(self.n_stored / self.n_cells, 1)
        return self._cut(max(CELLS_PER_CHUNK * per_cell, VALUES_PER_CHUNK), self.cells_per_shard * per_cell)

    def cut_of_rows(self, n_genes: int) -> tuple[int, int]:
        """Return how many rows of a dense matrix make a chunk and a shard."""
        return self._cut(max(CELLS_PER_CHUNK, VALUES_PER_CHUNK / n_genes), self.cells_per_shard)

    @staticmethod
    def _cut(chunk: float, shard: float) -> tuple[int, int]:
        return int(chunk), int(chunk) * -(-int(shard) // int(chunk))


class Column:
    """One array of a file, filled from the front.

    Parameters
    ----------
    array
        An array of h5py or zarr in its full length.
    step
        How many rows are written at a time: a whole chunk, or in a sharded array a whole shard, which is read again to be
        written in parts.
    """

    def __init__(self, array: Any, step: int) -> None:
        self._array, self._step = array, step
        self._waiting: list[np.ndarray] = []
        self._n_waiting = self._n_written = 0

    def append(self, values: np.ndarray) -> None:
        """Take the next rows, and write as many as fill steps."""
        self._waiting.append(values)
        self._n_waiting += len(values)
        if self._n_waiting >= self._step:
            self._write(self._n_waiting // self._step * self._step)

    def close(self) -> None:
        """Write the rest."""
        self._write(self._n_waiting)
        if self._n_written != self._array.shape[0]:
            msg = f"{self._n_written} rows came for {self._array.name}, which has {self._array.shape[0]}."
            raise ValueError(msg)

    def _write(self, n: int) -> None:
        if n == 0:
            return
        values = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        self._array[self._n_written : self._n_written + n] = values[:n]
        self._n_written += n
        self._waiting = [values[n:].copy()]
        self._n_waiting -= n


class SparseColumns:
    """The three arrays of a CSR matrix."""

    def __init__(self, group: Any, extent: Extent) -> None:
        n_cells, n_stored, _ = extent
        group.attrs["shape"] = [n_cells, int(group.attrs["shape"][1])]
        cut = extent.cut_of_values()
        self._data = lengthened(group, "data", n_stored, cut)
        self._indices = lengthened(group, "indices", n_stored, cut)
        pointers = np.dtype(np.int32 if n_stored <= INT32_MAX else np.int64)
        self._pointers = lengthened(group, "indptr", n_cells + 1, dtype=pointers)
        self._pointers.append(np.zeros(1, pointers))
        self._n = 0

    def append(self, x: sp.csr_matrix) -> None:
        """Take the next rows."""
        self._data.append(x.data)
        self._indices.append(x.indices)
        self._pointers.append(x.indptr[1:].astype(np.int64) + self._n)
        self._n += x.nnz

    def close(self) -> None:
        """Write the rest."""
        for column in (self._data, self._indices, self._pointers):
            column.close()


class TableColumns:
    """The columns of a table and its index."""

    def __init__(self, group: Any, n_cells: int) -> None:
        self._index = lengthened(group, str(group.attrs["_index"]), n_cells)
        self._columns = {str(name): self._column(group, str(name), n_cells) for name in group.attrs["column-order"]}

    @staticmethod
    def _column(group: Any, name: str, n_cells: int) -> Column:
        is_categorical = group[name].attrs["encoding-type"] == "categorical"
        return lengthened(group[name], "codes", n_cells) if is_categorical else lengthened(group, name, n_cells)

    def append(self, obs: pd.DataFrame) -> None:
        """Take the next rows, whose categories are those of the file."""
        self._index.append(obs.index.to_numpy(dtype=object))
        for name, column in self._columns.items():
            values = obs[name]
            column.append((values.cat.codes if hasattr(values, "cat") else values).to_numpy())

    def close(self) -> None:
        """Write the rest."""
        for column in (self._index, *self._columns.values()):
            column.close()


def write_cells(path: Path, form: AnnData, pieces: Iterable[Piece], extent: Extent, record: Mapping[str, Any]) -> None:
    """Write pieces of cells below each other.

    Parameters
    ----------
    path
        A file ``.h5ad`` or folder ``.zarr`` that does not exist.
    form
        Cells of which there are none: genes, columns of ``obs`` with all their categories, and ``uns``.
    pieces
        The cells in their order.
    extent
        How much they are.
    record
        What is told of them in an attribute of the file, see :func:`read_record`; written last.
    """
    with _opened(path) as (root, check):
        _write_form(root, form)
        x = _value_columns(root, form, extent)
        obs = TableColumns(root["obs"], extent.n_cells)
        for piece in pieces:
            x.append(piece.x)
            obs.append(piece.obs)
            check()
        x.close()
        obs.close()
        root.attrs[RECORD] = json.dumps(record)
        if isinstance(root, zarr.Group):
            _consolidate(root)


def read_record(path: Path) -> dict[str, Any] | None:
    """Return what :func:`write_cells` was told of the cells of a file, or None for a file that it did not write."""
    try:
        with _opened_to_read(path) as root:
            return json.loads(root.attrs[RECORD])
    except (OSError, KeyError, ValueError):  # no such format, no such attribute, no such value
        return None


def is_generated(path: Path) -> bool:
    """Tell whether a file or folder holds cells that this package generated, and nothing else."""
    is_folder = path.suffix == ".zarr"
    if is_folder != path.is_dir() or (is_folder and {entry.name for entry in path.iterdir()} - NAMES_IN_ZARR):
        return False
    try:
        with _opened_to_read(path) as root:
            return RECORD in root.attrs or f"uns/{PROVENANCE_KEY}" in root
    except (OSError, ValueError):  # no such format
        return False


def lengthened(group: Any, name: str, length: int, cut: tuple[int, int] | None = None, dtype: Any = None) -> Column:
    """Make an array anew with another length, and return it to be filled.

    ``cut`` are rows per chunk and per shard; default: those for one entry per cell.
    """
    chunk, shard = cut or (OBS_PER_CHUNK, OBS_PER_SHARD)
    chunk = max(min(chunk, length), 1)
    shard = chunk * -(-min(shard, max(length, 1)) // chunk)
    old = group[name]
    attributes, shape = dict(old.attrs), (length, *old.shape[1:])
    make = _in_zarr if isinstance(group, zarr.Group) else _in_hdf5
    new = make(group, name, shape, (chunk, *shape[1:]), (shard, *shape[1:]), dtype)
    new.attrs.update(attributes)
    return Column(new, shard if isinstance(group, zarr.Group) else chunk)


def _in_zarr(
    group: zarr.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], shards: tuple[int, ...], dtype: Any
) -> zarr.Array:
    kind = dtype or group[name].metadata.data_type
    del group[name]
    return group.create_array(name, shape=shape, dtype=kind, chunks=chunks, shards=shards)


def _in_hdf5(
    group: h5py.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], _: tuple[int, ...], dtype: Any
) -> h5py.Dataset:
    kind = dtype or group[name].dtype
    del group[name]
    how = {} if h5py.check_string_dtype(kind) else {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    return group.create_dataset(name, shape, kind, chunks=chunks, maxshape=(None, *shape[1:]), **how)


def _value_columns(root: Any, form: AnnData, extent: Extent) -> SparseColumns | Column:
    if sp.issparse(form.X):
        return SparseColumns(root["X"], extent)
    return lengthened(root, "X", extent.n_cells, extent.cut_of_rows(form.n_vars))


class _PatientFile(io.FileIO):
    """A file that takes all that is written to it, and tells only when asked that the file system refused some.

    HDF5 crashes the process if it cannot write what it holds back when a file is closed.
    """

    refusal: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all, or act as if."""
        left = memoryview(data).cast("B")
        while len(left) and self.refusal is None:
            try:
                left = left[super().write(left) :]
            except OSError as error:
                self.refusal = error
        return memoryview(data).nbytes

    def check(self) -> None:
        """Raise what the file system said."""
        if self.refusal is not None:
            raise self.refusal


@contextmanager
def _opened_to_read(path: Path) -> Iterator[Any]:
    if path.is_dir():
        yield zarr.open_group(path, mode="r")
        return
    with h5py.File(path, "r") as file:
        yield file


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Yield the root of a new file, and a function that raises if writing has failed."""
    if path.suffix == ".zarr":
        yield zarr.open_group(path, mode="w-", zarr_format=3), lambda: None
        return
    with _PatientFile(path, "x+") as file:
        try:
            with h5py.File(file, "w") as root:
                yield root, file.check
        finally:
            file.check()


def _write_form(root: Any, form: AnnData) -> None:
    form.strings_to_categoricals()  # as AnnData.write_h5ad does
    options = {"shards": None} if isinstance(root, zarr.Group) else {}  # small arrays are not sharded
    anndata.io.write_elem(root, "/", form, dataset_kwargs=options)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    if "raw" in root:
        del root["raw"]


def _consolidate(root: zarr.Group) -> None:
    """Gather what describes the arrays in one file, as anndata does, so that opening needs to read no other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(root.store)


def sync(path: Path) -> None:
    """Wait until a file, or all files of a folder, are on the disk."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
