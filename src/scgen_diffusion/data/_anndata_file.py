"""AnnData in files: tables and matrices whose parts are read on demand."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import pandas as pd
import zarr

from scgen_diffusion._arguments import known_names
from scgen_diffusion._files import explain_failed_read

from ._generated import PROVENANCE_KEY
from ._labels import widen
from ._matrices import FileMatrix, naming_file, read_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES_AT_A_TIME = 65_536
COLLECTION, PART = "annbatch-preshuffled", "dataset_"  # encoding type of an annbatch collection, names of its AnnData


class AnnDataFile:
    """An AnnData in HDF5 or zarr, whose genes, names, columns and matrices are read on demand.

    Parameters
    ----------
    root
        The open file, or the group in it that holds the AnnData.
    name
        Name of the file in error messages.

    Raises
    ------
    ValueError
        If it was not written by anndata.
    """

    def __init__(self, root: Any, name: str) -> None:
        self.root = root
        self.name = name
        for part in ("obs", "var"):
            is_table = part in root and "_index" in root[part].attrs
            if not is_table or "encoding-type" not in _index_of(root[part]).attrs:
                msg = f"{name} is not an AnnData file of anndata 0.8 or later: it has no such table {part!r}."
                raise ValueError(msg)
        self._path = Path(root.file.filename if isinstance(root, h5py.Group) else root.store.root).absolute()
        self._written = self._stats()

    def _stats(self) -> list[tuple[int, int]]:
        """Return size and time of the file, or of the files that describe a store."""
        if isinstance(self.root, h5py.Group):
            paths = [self._path]
        else:
            paths = sorted(path for path in (self._path / self.root.path).iterdir() if path.is_file())
        return [(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, paths)]

    def check_unchanged(self) -> None:
        """Raise if the file was replaced or removed: its cells would be read under the old names of genes and cells."""
        with suppress(OSError):
            if self._written == self._stats():
                return
        msg = f"{self.name} was replaced or removed after it was opened. Open it again."
        raise ValueError(msg)

    def close(self) -> None:
        """Close the file, which AnnData in one file share."""
        close_file(self.root)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self._names.shape[0])

    @property
    def var(self) -> pd.DataFrame:
        """The table of genes."""
        var = read_elem(self.root["var"])
        var.index = var.index.astype(str)
        return var

    @property
    def columns(self) -> list[str]:
        """Names of the columns of ``obs``."""
        return [str(name) for name in self.root["obs"].attrs["column-order"]]

    def column(self, name: str) -> pd.Series:
        """Read a column of ``obs``."""
        return widen(pd.Series(read_elem(self.root["obs"][name])))

    @property
    def layers(self) -> list[str]:
        """Names of the layers."""
        return list(self.root["layers"]) if "layers" in self.root else []

    @property
    def arrays(self) -> list[str]:
        """Names of the arrays of ``obsm``."""
        return list(self.root["obsm"]) if "obsm" in self.root else []

    def array(self, name: str) -> Any:
        """Read an array of ``obsm``."""
        return read_elem(self.root["obsm"][name])

    @cached_property
    def _names(self) -> Any:
        """The array of cell names, which may be stored as categories, or beside a mask."""
        return _texts_of(self.root["obs"])

    def names(self) -> Iterator[list[str]]:
        """Return an iterator over the cell names, part by part."""
        for start in range(0, max(self.n_cells, 1), NAMES_AT_A_TIME):
            yield _decoded(read_part(self._names, start, start + NAMES_AT_A_TIME))

    def all_names(self) -> pd.Index:
        """Return the cell names."""
        return pd.Index(chain.from_iterable(self.names()))

    def names_of(self, rows: np.ndarray) -> list[str]:
        """Read the names of some cells with ascending row numbers."""
        return _decoded(read_part(self._names, rows[0], rows[-1] + 1)[rows - rows[0]]) if len(rows) else []

    def matrix(self, layer: str | None) -> FileMatrix:
        """Return a layer, or X, whose rows are read on demand. Generated cells that lack the layer have it in X.

        Raises
        ------
        KeyError
            If there is no such layer.
        ValueError
            If it is stored by columns, or does not fit the tables of cells and genes.
        """
        if (layer := self._layer_or_x(layer)) is not None and layer not in self.layers:
            msg = f"`layer` {layer!r} is not in the layers of {self.name}. {known_names(layer, self.layers)}"
            raise KeyError(msg)
        if layer is None and "X" not in self.root:
            msg = f"{self.name} has no X; name a layer with `layer=...`. {known_names('X', self.layers)}"
            raise KeyError(msg)
        element = self.root["X"] if layer is None else self.root["layers"][layer]
        matrix = FileMatrix(element, self.where(layer), self.check_unchanged)
        if matrix.stored_shape != (expected := (self.n_cells, int(_texts_of(self.root["var"]).shape[0]))):
            msg = f"{self.where(layer)} is damaged: its shape is {matrix.stored_shape}, that of the tables {expected}."
            raise ValueError(msg)
        return matrix

    def where(self, layer: str | None) -> str:
        """Return the name of a matrix for messages."""
        layer = self._layer_or_x(layer)
        return f"{'X' if layer is None else f'layers[{layer!r}]'} of {self.name}"

    def _layer_or_x(self, layer: str | None) -> str | None:
        """Return where the values of a layer are: generated cells have them in X (None)."""
        return None if layer not in self.layers and PROVENANCE_KEY in self.root.get("uns", ()) else layer

    def unstructured(self, name: str) -> Any:
        """Read an entry of ``uns``; None if there is none."""
        return read_elem(self.root["uns"][name]) if "uns" in self.root and name in self.root["uns"] else None


def open_anndata_files(path: str | os.PathLike[str]) -> list[AnnDataFile]:
    """Open an AnnData in ``.h5ad`` or ``.zarr``, or all AnnData of an annbatch collection.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not an AnnData.
    """
    path = Path(path)
    if not path.exists():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    with explain_failed_read(path, f"{path} is no {path.suffix or '.h5ad'} file, or is damaged"):
        root = zarr.open_group(str(path), mode="r") if path.is_dir() else h5py.File(path, "r")
    with closing_if_refused(partial(close_file, root)):
        if "mod" in root:
            msg = f"{path.name} is MuData, whose modalities are read into memory: `mudata.read_h5mu`."
            raise ValueError(msg)
        if root.attrs.get("encoding-type") != COLLECTION:
            return [AnnDataFile(root, path.name)]
        numbers = sorted(int(key.removeprefix(PART)) for key in root if re.fullmatch(rf"{PART}\d+", key))
        if not numbers:
            msg = f"{path.name} is an annbatch collection without any AnnData ({PART}0 ...); it is empty or damaged."
            raise ValueError(msg)
        return [AnnDataFile(root[f"{PART}{number}"], f"{path.name}/{PART}{number}") for number in numbers]


def close_file(element: Any) -> None:
    """Close the HDF5 file of an element; zarr holds no files open."""
    if isinstance(element, h5py.Group):
        element.file.close()


@contextmanager
def closing_if_refused(close: Callable[[], None]) -> Iterator[None]:
    """Close files if the body raises. A notebook keeps the traceback, and with it open files, which none can mend."""
    try:
        yield
    except BaseException:
        close()
        raise


def read_elem(element: Any) -> Any:
    """Read an element of a file; an error names the file."""
    with naming_file(element):
        return anndata.io.read_elem(element)


def _texts_of(table: Any) -> Any:
    """Return the array of a table's names, which is only read if they are categories, or beside a mask."""
    index = _index_of(table)
    return index if hasattr(index, "dtype") else np.asarray(read_elem(index))


def _decoded(texts: np.ndarray) -> list[str]:
    return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]


def _index_of(table: Any) -> Any:
    return table[table.attrs["_index"]]
