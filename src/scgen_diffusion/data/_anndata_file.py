"""AnnData in files: tables and matrices whose parts are read on demand."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from scgen_diffusion._arguments import known_names
from scgen_diffusion._files import explain_failed_read

from ._generated import PROVENANCE_KEY
from ._labels import widen
from ._matrices import FileMatrix, naming_file, read_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEXTS_AT_A_TIME = 65_536
COLLECTION = "annbatch-preshuffled"  # encoding type of an annbatch collection


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
        self._on_disk = self._find_on_disk()
        self._written = [(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, self._on_disk)]

    def _find_on_disk(self) -> list[Path]:
        """Return the file, or the files of a store that describe its tables and matrices."""
        if isinstance(self.root, h5py.Group):
            return [Path(self.root.file.filename).absolute()]
        folder = Path(self.root.store.root).absolute() / self.root.path
        tables = [name for table in ("obs", "var") for name in (table, f"{table}/{self.root[table].attrs['_index']}")]
        parts = ["", *tables, "X", *(f"layers/{name}" for name in self.layers)]
        described = [folder / part / name for part in parts for name in (".zgroup", ".zarray", "zarr.json")]
        return [path for path in described if path.exists()]

    def check_unchanged(self) -> None:
        """Raise if the file was replaced or removed: its cells would be read under the old names of genes and cells."""
        try:
            is_same = self._written == [(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, self._on_disk)]
        except OSError:
            is_same = False
        if not is_same:
            msg = f"{self.name} was replaced or removed after it was opened. Open it again."
            raise ValueError(msg)

    def close(self) -> None:
        """Close the file, which AnnData in one file share."""
        close_file(self.root)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self._n_rows("obs")

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
        """Read a column of ``obs``; text becomes categorical."""
        element = self.root["obs"][name]
        is_text = element.attrs["encoding-type"] == "string-array"
        return widen(pd.Series(_classes(element) if is_text else read_elem(element)))

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

    def names(self) -> Iterator[list[str]]:
        """Return an iterator over the cell names, part by part."""
        return _texts(_index_of(self.root["obs"]))

    def all_names(self) -> pd.Index:
        """Return the cell names."""
        return pd.Index(chain.from_iterable(self.names()))

    def names_of(self, rows: np.ndarray) -> list[str]:
        """Read the names of some cells with ascending row numbers."""
        array, names = _text_array(_index_of(self.root["obs"])), []
        for own in np.split(rows, np.flatnonzero(np.diff(rows // TEXTS_AT_A_TIME)) + 1):
            if len(own):
                texts = _decode(read_part(array, own[0], own[-1] + 1))
                names += [texts[row] for row in own - own[0]]
        return names

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
        if matrix.stored_shape != (expected := (self.n_cells, self._n_rows("var"))):
            msg = f"{self.where(layer)} is damaged: its shape is {matrix.stored_shape}, that of the tables {expected}."
            raise ValueError(msg)
        return matrix

    def _n_rows(self, table: str) -> int:
        return int(_text_array(_index_of(self.root[table])).shape[0])

    def where(self, layer: str | None) -> str:
        """Return the name of a matrix for messages."""
        layer = self._layer_or_x(layer)
        matrix = "X" if layer is None else f"layers[{layer!r}]"
        return f"{matrix} of {self.name}"

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
    files = open_tables(path)
    with closing_if_refused(files[0].close):
        if "mod" in files[0].root:
            msg = f"{files[0].name} is MuData, whose modalities are read into memory: `mudata.read_h5mu`."
            raise ValueError(msg)
    return files


def open_tables(path: str | os.PathLike[str]) -> list[AnnDataFile]:
    """Open files as :func:`open_anndata_files` does. Of a MuData (``.h5mu``), only `obs`, `var` and `uns` can be read.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is neither an AnnData nor a MuData.
    """
    path = Path(path)
    if not path.exists():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    root = _open_zarr(path) if path.is_dir() else open_hdf5(path, path.suffix or ".h5ad")
    with closing_if_refused(partial(close_file, root)):
        if root.attrs.get("encoding-type") != COLLECTION:
            return [AnnDataFile(root, path.name)]
        numbered = [key for key in root if re.fullmatch(r"dataset_\d+", key)]
        if not numbered:
            msg = f"{path.name} is an annbatch collection without any AnnData (dataset_0 ...); it is empty or damaged."
            raise ValueError(msg)
        parts = sorted(numbered, key=lambda key: int(key.split("_")[1]))
        return [AnnDataFile(root[key], f"{path.name}/{key}") for key in parts]


def open_hdf5(path: Path, suffix: str) -> h5py.File:
    """Open an HDF5 file for reading; raise ValueError for any other file."""
    with explain_failed_read(path, f"{path} is not an {suffix} file, or is damaged"):
        return h5py.File(path, "r")


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


def _open_zarr(path: Path) -> Any:
    import zarr

    with explain_failed_read(path, f"{path} is not a zarr store"):
        return zarr.open_group(str(path), mode="r")


def read_elem(element: Any) -> Any:
    """Read an element of a file; an error names the file."""
    with naming_file(element):
        return anndata.io.read_elem(element)


def _index_of(table: Any) -> Any:
    return table[table.attrs["_index"]]


def _text_array(element: Any) -> Any:
    """Return the array of text in an element: stored as it is, as categories, or beside a mask (nullable text)."""
    if hasattr(element, "dtype"):
        return element
    return np.asarray(read_elem(element)) if "codes" in element else element["values"]


def _texts(element: Any) -> Iterator[list[str]]:
    array = _text_array(element)
    for start in range(0, max(array.shape[0], 1), TEXTS_AT_A_TIME):
        yield _decode(read_part(array, start, start + TEXTS_AT_A_TIME))


def _decode(texts: np.ndarray) -> list[str]:
    return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]


def _classes(element: Any) -> pd.Categorical:
    """Read text part by part as categorical, which keeps one copy of each text."""
    return union_categoricals([pd.Categorical(texts) for texts in _texts(element)], sort_categories=True)
