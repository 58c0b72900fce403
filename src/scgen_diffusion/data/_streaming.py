"""Files of streamed cells: parts in ``.h5ad``, joined to one ``.h5ad``, sharded ``.zarr`` or ``.h5mu``.

``anndata.experimental.concat_on_disk`` would lose ``uns``, and can neither compress ``.h5ad`` nor shard ``.zarr``. So
``anndata.io.write_elem`` writes the first part, and the others are appended to it.
"""

from __future__ import annotations

import io
import json
import os
import re
import warnings
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset, write_elem

from scgen_diffusion._files import is_of_system
from scgen_diffusion._version import VERSION

from ._anndata import ValueSummary
from ._anndata_file import open_hdf5
from ._mudata import columns_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import scipy.sparse as sp

RECORD = "scgen_diffusion_request"  # attribute of a finished file, with the request
CELLS_PER_CHUNK = 64  # minimum; random access, such as annbatch's, reads whole chunks
VALUES_PER_CHUNK = 2**16  # minimum
OBS_PER_CHUNK = 2**14
OBS_PER_SHARD = 2**18
MUDATA_FORMAT = "0.1.0"
HEADER_SIZE = 512  # of .h5mu: readers look for "MuData" there
INT32_MAX = np.iinfo(np.int32).max


@contextmanager
def explain_unwritable(what: str) -> Iterator[None]:
    """Raise TypeError, with the reason and the place that anndata gives, for what it cannot write to a file."""
    try:
        yield
    except Exception as error:
        if is_of_system(error):
            raise
        where = re.sub(r" of <class.*?>", "", " ".join(getattr(error, "__notes__", ())))
        msg = f"{what} cannot be written to a file: {error} ({where}) Convert, rename or remove it."
        raise TypeError(msg) from error


def check_writable(obs: pd.DataFrame, *, to_zarr: bool = False) -> None:
    """Raise TypeError for columns that anndata cannot write, to .h5ad or also to .zarr, before any cells are made."""
    folders = [name for name in obs if to_zarr and "/" in str(name)]
    with explain_unwritable("obs"), h5py.File(io.BytesIO(), "w") as root:
        if folders:
            msg = f"the name of the column {folders[0]!r} would be a folder."
            raise ValueError(msg)
        write_elem(root, "obs", obs)


def part_of(cells: AnnData) -> memoryview:
    """Return the content of an ``.h5ad`` file of cells."""
    content = io.BytesIO()  # in memory, because HDF5 crashes if the disk is full
    with h5py.File(content, "w") as root:
        write_elem(root, "/", cells)
    return content.getbuffer()


def join_parts(
    parts: Sequence[Path],
    path: Path,
    record: Mapping[str, Any],
    merge: Callable[[Iterator[dict[str, Any]]], Mapping[str, Any]] = next,
    modalities: Mapping[str, pd.DataFrame] | None = None,
) -> ValueSummary:
    """Join the cells of several parts in one file, with one part in memory at a time.

    Parameters
    ----------
    parts
        Files with the content that :func:`part_of` returned.
    path
        A new ``.h5ad`` file or ``.zarr`` folder; with several modalities, a new ``.h5mu`` file.
    record
        The request, for :func:`read_record`; written last.
    merge
        Makes the ``uns`` of the file from those of the parts, which it gets one by one. Default: that of the first.
    modalities
        The ``var`` of each modality, whose features the parts have side by side.

    Returns
    -------
    ValueSummary
        Summary of all values.
    """
    n_stored, summaries = 0, []
    categories: dict[str, pd.Index] = {}
    used: dict[str, set[Any]] = {}  # without order, others are left out, as by `drop_unused_categories`
    for part in parts:
        with _open_part(part) as file:
            n_stored += file["X"]["data"].size if isinstance(file["X"], h5py.Group) else 0
            for name in file["obs"].attrs["column-order"]:
                if "categories" in file["obs"][name]:
                    found = pd.Index(read_elem(file["obs"][name]["categories"]))
                    categories[name] = categories.get(name, found).union(found)
                    codes = np.unique(file["obs"][name]["codes"][:])
                    used[name] = used.get(name, set()) | {*found[codes[codes >= 0]]}
    with _new_file(path) as (root, check):
        for number, part in enumerate(parts):
            with _open_part(part) as file:
                x, obs = read_elem(file["X"]), read_elem(file["obs"])
                obsm = read_elem(file["obsm"]) if "obsm" in file else {}
                if number == 0:
                    uns, places = merge(map(_read_uns, parts)), _places(modalities, read_elem(file["var"]))
            obs.index = obs.index.astype(object)  # the string type of pandas cannot be appended to
            for name, of_all in categories.items():
                is_kept = obs[name].cat.ordered | of_all.isin(used[name])
                obs[name] = obs[name].cat.set_categories(of_all[is_kept])
            for name, array in obsm.items():
                if isinstance(array, pd.DataFrame):
                    obsm[name] = array.set_axis(obs.index)
            for key, (columns, var) in places.items():
                own = x[:, columns]
                if number == 0:
                    _write_first(root, key, AnnData(var=var, uns=uns), obs, obsm, own, n_stored)
                else:
                    _append_cells(root[key], obs, obsm)
                    _append_matrix(root[key]["X"], own)
            if modalities is not None:
                (_write_cells if number == 0 else _append_cells)(root, obs, obsm)
            summaries.append(ValueSummary.of(x))
            check()
        if modalities is not None:
            _write_mudata(root, modalities, uns)
        root.attrs[RECORD] = json.dumps(record)
        if isinstance(root, zarr.Group):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Consolidated metadata")
                zarr.consolidate_metadata(root.store)  # as anndata does; opening then reads one file
    return reduce(ValueSummary.merge, summaries)


def _places(modalities: Mapping[str, pd.DataFrame] | None, var: pd.DataFrame) -> dict[str, tuple[slice, pd.DataFrame]]:
    """Return where in the file which columns of the parts go, and their ``var``."""
    if modalities is None:
        return {"/": (slice(None), var)}
    return {f"mod/{name}": (own, modalities[name]) for name, own in columns_of(modalities).items()}


def _open_part(part: Path) -> h5py.File:
    try:
        return open_hdf5(part, ".h5ad")
    except ValueError as error:
        msg = f"{error}. Remove it and run the same call again."
        raise ValueError(msg) from error


def _read_uns(part: Path) -> dict[str, Any]:
    with _open_part(part) as file:
        return read_elem(file["uns"])


def _write_first(
    root: Any,
    key: str,
    rest: AnnData,
    obs: pd.DataFrame,
    obsm: Mapping[str, np.ndarray | pd.DataFrame],
    x: sp.csr_matrix | np.ndarray,
    n_stored: int,
) -> None:
    """Write the first cells such that others can be appended, up to ``n_stored`` values of a sparse matrix.

    ``rest`` has everything but ``obs``, ``obsm`` and ``X``.
    """
    folder, _, name = key.rpartition("/")
    if folder:  # anndata 0.13 takes no paths
        root, key = root.require_group(folder), name
    write_elem(root, key, rest, dataset_kwargs={"shards": None} if isinstance(root, zarr.Group) else {})
    root = root[key]
    if "raw" in root:  # it is "none", which anndata's backed mode takes for a matrix
        del root["raw"]
    _write_cells(root, obs, obsm)
    n_cells, n_genes = x.shape
    if isinstance(x, np.ndarray):
        chunk = max(CELLS_PER_CHUNK, VALUES_PER_CHUNK // n_genes)
        options = _layout(root, chunk, n_cells, None, n_genes)
    else:
        chunk = max(CELLS_PER_CHUNK * x.nnz // n_cells, VALUES_PER_CHUNK)
        options = _layout(root, chunk, x.nnz) | {"indptr_dtype": "int32" if n_stored <= INT32_MAX else "int64"}
    write_elem(root, "X", x, dataset_kwargs=options)


def _write_cells(root: Any, obs: pd.DataFrame, obsm: Mapping[str, np.ndarray | pd.DataFrame]) -> None:
    """Write tables of the first cells such that others can be appended."""
    write_elem(root, "obs", obs, dataset_kwargs=_layout(root, OBS_PER_CHUNK, OBS_PER_SHARD, None))
    if "obsm" not in root:
        write_elem(root, "obsm", {})
    for name, array in obsm.items():
        rest = () if isinstance(array, pd.DataFrame) else array.shape[1:]  # anndata writes each column of a table
        options = _layout(root, OBS_PER_CHUNK, OBS_PER_SHARD, None, *rest)
        write_elem(root["obsm"], name, array, dataset_kwargs=options)


def _append_cells(root: Any, obs: pd.DataFrame, obsm: Mapping[str, np.ndarray | pd.DataFrame]) -> None:
    _append_table(root["obs"], obs)
    for name, array in obsm.items():
        append = _append_table if isinstance(array, pd.DataFrame) else _append
        append(root["obsm"][name], array)


def _write_mudata(root: h5py.Group, modalities: Mapping[str, pd.DataFrame], uns: Mapping[str, Any]) -> None:
    """Write what makes a MuData of modalities that all have all cells: which rows and columns are theirs."""
    n_cells = root["obs"][root["obs"].attrs["_index"]].shape[0]
    names = np.concatenate([var.index.to_numpy(dtype=object) for var in modalities.values()])
    tables: dict[str, dict[str, np.ndarray]] = {name: {} for name in ("obsmap", "varmap", "varm")}
    for name, own in columns_of(modalities).items():
        position = np.zeros(len(names), dtype=np.uint32)
        position[own] = np.arange(1, len(modalities[name]) + 1)
        tables["obsmap"][name] = np.arange(1, n_cells + 1, dtype=np.uint32)  # positions start at 1; 0 is "lacks it"
        tables["varmap"][name] = position
        tables["varm"][name] = position[:, None] > 0
        write_elem(root["obsm"], name, np.ones((n_cells, 1), dtype=bool))
    write_elem(root, "var", pd.DataFrame(index=pd.Index(names)))
    write_elem(root, "uns", dict(uns))
    for name, table in {**tables, "obsp": {}, "varp": {}}.items():
        write_elem(root, name, table)
    root["mod"].attrs["mod-order"] = list(modalities)
    encoder = {"encoder": "scgen-diffusion", "encoder-version": VERSION}
    root.attrs.update({"axis": 0, "encoding-type": "MuData", "encoding-version": MUDATA_FORMAT, **encoder})


def _layout(root: Any, chunk: int, shard: int, *maxshape: int | None) -> dict[str, Any]:
    """Return the layout of a growing array: chunks of ``chunk`` rows, and in zarr shards of at least ``shard`` rows."""
    rest = maxshape[1:]
    if isinstance(root, zarr.Group):
        return {"chunks": (chunk, *rest), "shards": (chunk * max(-(-shard // chunk), 1), *rest)}
    grows = {"maxshape": maxshape} if maxshape else {}  # anndata sets it for sparse matrices
    return {"chunks": (chunk, *rest), "compression": "gzip", "compression_opts": 1, "shuffle": True, **grows}


def _append_matrix(element: Any, x: sp.csr_matrix | np.ndarray) -> None:
    if isinstance(x, np.ndarray):
        _append(element, x)
    else:
        sparse_dataset(element).append(x)


def _append_table(group: Any, table: pd.DataFrame) -> None:
    _append(group[group.attrs["_index"]], table.index.to_numpy(dtype=object))
    for name in group.attrs["column-order"]:
        element, column = group[name], table[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            _append(element["codes"], column.cat.codes.to_numpy())
        elif hasattr(element, "shape"):
            _append(element, column.to_numpy())
        else:  # nullable values of pandas
            kind = column.dtype.type
            _append(element["mask"], column.isna().to_numpy())
            _append(element["values"], column.to_numpy(object if kind is str else kind, na_value=kind()))


def _append(array: Any, values: np.ndarray) -> None:
    n = array.shape[0]
    array.resize((n + len(values), *array.shape[1:]))
    array[n:] = values


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the record that :func:`join_parts` wrote to a file, or None if it did not write the file."""
    try:
        if path.is_dir():
            return json.loads(zarr.open_group(path, mode="r").attrs[RECORD])
        with h5py.File(path, "r") as root:
            return json.loads(root.attrs[RECORD])
    except (OSError, KeyError, ValueError):  # another format, or no valid attribute
        return None


class _DeferredErrorFile(io.FileIO):
    """A file that keeps in memory what the file system refuses to write, and raises the error only in :meth:`check`.

    HDF5 crashes the process if writing fails while a file is closed, or if it reads something else than it wrote.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "x+")
        self.refusal: OSError | None = None
        self._refused: list[tuple[int, bytes]] = []

    def write(self, data: Any) -> int:
        """Write what the file system accepts, and keep the rest in memory."""
        left = memoryview(data).cast("B")
        size = len(left)
        while len(left) and self.refusal is None:
            try:
                left = left[super().write(left) :]
            except OSError as error:
                self.refusal = error
        if len(left):
            self._refused.append((self.tell(), bytes(left)))
            self.seek(len(left), os.SEEK_CUR)
        return size

    def readinto(self, buffer: Any) -> int:
        """Read what was written, from the file or from memory."""
        start, view = self.tell(), memoryview(buffer).cast("B")
        super().readinto(view)
        for offset, data in self._refused:
            low, high = max(offset, start), min(offset + len(data), start + len(view))
            if low < high:
                view[low - start : high - start] = data[low - offset : high - offset]
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Change the size, if the file system allows it."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.refusal = self.refusal or error
            return size or 0

    def check(self) -> None:
        """Raise the first error of the file system."""
        if self.refusal is not None:
            raise self.refusal


@contextmanager
def _new_file(path: Path) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Yield the root of a new file, and a function that raises if writing has failed."""
    if path.suffix == ".zarr":
        yield zarr.open_group(path, mode="w-", zarr_format=3), lambda: None
        return
    is_mudata = path.suffix == ".h5mu"
    with _DeferredErrorFile(path) as file:
        try:
            with h5py.File(file, "w", userblock_size=HEADER_SIZE if is_mudata else 0) as root:
                yield root, file.check
            if is_mudata:
                file.seek(0)
                file.write(f"MuData (format-version={MUDATA_FORMAT};creator=scgen-diffusion)".encode())
        finally:
            file.check()
