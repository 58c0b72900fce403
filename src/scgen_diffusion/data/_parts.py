"""Files of streamed cells: parts in ``.h5ad``, joined to one ``.h5ad`` or sharded ``.zarr``.

``anndata.experimental.concat_on_disk`` would lose ``uns``, needs dask for dense values, and can neither compress
``.h5ad`` nor shard ``.zarr``. So the tables are stacked in memory, and the values are appended part by part.
"""

from __future__ import annotations

import io
import json
import warnings
from contextlib import nullcontext
from functools import reduce
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset, write_elem

from scgen_diffusion._files import explain_failed_read

from ._generated import drop_unused_categories

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import scipy.sparse as sp

RECORD = "scgen_diffusion_request"  # attribute of a finished file, with the request
CELLS_PER_CHUNK = 64  # minimum; random access, such as annbatch's, reads whole chunks
VALUES_PER_CHUNK = 2**16  # minimum
GZIP = {"compression": "gzip", "compression_opts": 1}
INT32_MAX = np.iinfo(np.int32).max


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
    merge: Callable[[Iterator[dict[str, Any]]], Mapping[str, Any]],
) -> None:
    """Join the cells of several parts in one file, with all tables and the values of one part in memory.

    Parameters
    ----------
    parts
        Files with the content that :func:`part_of` returned.
    path
        A new ``.h5ad`` file or ``.zarr`` folder.
    record
        The request, for :func:`read_record`; written last.
    merge
        Makes the ``uns`` of the file from those of the parts, which it gets one by one.
    """
    obs = _stack_tables(list(_read(parts, "obs")))
    arrays = list(_read(parts, "obsm"))
    obsm = {name: np.concatenate([own[name] for own in arrays]) for name in arrays[0]}
    cells = AnnData(obs=obs, var=next(_read(parts, "var")), uns=merge(_read(parts, "uns")), obsm=obsm)
    n_stored = sum(_n_stored(part) for part in parts)
    is_zarr = path.suffix == ".zarr"
    with nullcontext(zarr.open_group(path, mode="w-", zarr_format=3)) if is_zarr else h5py.File(path, "w-") as root:
        write_elem(root, "/", cells, dataset_kwargs={} if is_zarr else GZIP)
        for name in {"X", "raw"} & set(root):  # they are "none", which anndata's backed mode takes for a matrix
            del root[name]
        for x in _read(parts, "X"):
            if "X" not in root:
                write_elem(root, "X", x, dataset_kwargs=_layout(x, n_stored, is_zarr=is_zarr))
            elif isinstance(x, np.ndarray):
                root["X"].resize((root["X"].shape[0] + len(x), x.shape[1]))
                root["X"][-len(x) :] = x
            else:
                sparse_dataset(root["X"]).append(x)
        root.attrs[RECORD] = json.dumps(record)
        if is_zarr:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Consolidated metadata")
                zarr.consolidate_metadata(root.store)  # as anndata does; opening then reads one file


def _read(parts: Sequence[Path], name: str) -> Iterator[Any]:
    """Read one element of each part."""
    for part in parts:
        with explain_failed_read(f"{part} is damaged. Remove it and run the same call again"):
            with h5py.File(part, "r") as root:
                element = read_elem(root[name])
        yield element


def _n_stored(part: Path) -> int:
    with h5py.File(part, "r") as root:
        return root["X"]["data"].size if isinstance(root["X"], h5py.Group) else 0


def _stack_tables(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Stack tables of cells, whose categories may differ."""
    for name, dtype in tables[0].dtypes.items():
        if isinstance(dtype, pd.CategoricalDtype):
            categories = reduce(pd.Index.union, (table[name].cat.categories for table in tables))
            for table in tables:
                table[name] = table[name].cat.set_categories(categories)
    return drop_unused_categories(pd.concat(tables))


def _layout(x: sp.csr_matrix | np.ndarray, n_stored: int, *, is_zarr: bool) -> dict[str, Any]:
    """Return how to store a matrix of which these are the first rows: in compressed chunks, and in zarr in shards."""
    n_cells, n_genes = x.shape
    if isinstance(x, np.ndarray):
        chunk, n, rest = max(CELLS_PER_CHUNK, VALUES_PER_CHUNK // n_genes), n_cells, [n_genes]
        options: dict[str, Any] = {} if is_zarr else {"maxshape": (None, n_genes)}  # anndata sets it for sparse ones
    else:
        chunk, n, rest = max(CELLS_PER_CHUNK * x.nnz // n_cells, VALUES_PER_CHUNK), x.nnz, []
        options = {"indptr_dtype": "int32" if n_stored <= INT32_MAX else "int64"}
    options["chunks"] = (chunk, *rest)
    if is_zarr:
        return {**options, "shards": (chunk * max(-(-n // chunk), 1), *rest)}
    return {**options, **GZIP, "shuffle": True}


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the record that :func:`join_parts` wrote to a file, or None if it did not write the file."""
    try:
        if path.is_dir():
            return json.loads(zarr.open_group(path, mode="r").attrs[RECORD])
        with h5py.File(path, "r") as root:
            return json.loads(root.attrs[RECORD])
    except (OSError, KeyError, ValueError):  # another format, or no valid attribute
        return None
