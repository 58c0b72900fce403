"""AnnData in files, of which single elements and rows of matrices are read on demand."""

from __future__ import annotations

import re
from dataclasses import dataclass
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
from ._matrices import FileMatrix, check_storage

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

COLLECTION, PART = "annbatch-preshuffled", "dataset_"  # encoding type of an annbatch collection, names of its AnnData


@dataclass(frozen=True)
class AnnDataFile:
    """An AnnData in HDF5 or zarr.

    Parameters
    ----------
    root
        The open file, or the group in it that holds the AnnData.
    name
        Name of the file in error messages.
    """

    root: Any
    name: str

    def close(self) -> None:
        """Close an HDF5 file, which AnnData in one file share; zarr holds no files open."""
        if isinstance(self.root, h5py.Group):
            self.root.file.close()

    def keys(self, part: str) -> Sequence[str]:
        """Return the names of the columns of ``obs``, or of the elements of another part."""
        return list(self.root["obs"].attrs["column-order"]) if part == "obs" else list(self.root.get(part, ()))

    def read(self, part: str, name: str = "") -> Any:
        """Read a part of the AnnData, or one element of it."""
        with explain_failed_read(f"{part} of {self.name} cannot be read"):
            return anndata.io.read_elem(self.root[part][name] if name else self.root[part])

    def column(self, name: str) -> pd.Series:
        """Read a column of ``obs``."""
        return widen(pd.Series(self.read("obs", name)))

    @property
    def names(self) -> pd.Index:
        """Names of the cells."""
        return pd.Index(np.asarray(self.read("obs", self.root["obs"].attrs["_index"]), dtype=object))

    def matrix(self, layer: str | None) -> FileMatrix:
        """Return a layer, or X, whose rows are read on demand. Generated cells that lack the layer have it in X.

        Raises
        ------
        KeyError
            If there is no such layer.
        ValueError
            If it is stored by columns.
        """
        layers = self.keys("layers")
        if layer not in layers and PROVENANCE_KEY in self.keys("uns"):
            layer = None
        if layer not in layers and (layer is not None or "X" not in self.root):
            msg = f"`layer` {layer or 'X'!r} is not in {self.name}. {known_names(layer or 'X', layers)}"
            raise KeyError(msg)
        where = f"{'X' if layer is None else f'layers[{layer!r}]'} of {self.name}"
        element = self.root["X"] if layer is None else self.root["layers"][layer]
        matrix = element if hasattr(element, "dtype") else anndata.io.sparse_dataset(element)
        check_storage(matrix, where)
        return FileMatrix(matrix, where)


def open_anndata_files(path: str | os.PathLike[str]) -> list[AnnDataFile]:
    """Open an AnnData in ``.h5ad`` or ``.zarr``, or all AnnData of an annbatch collection.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not an AnnData.
    """
    path = Path(path).expanduser()
    if not path.exists():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    with explain_failed_read(f"{path} is no {path.suffix or '.h5ad'} file, or is damaged"):
        root = zarr.open_group(str(path), mode="r") if path.is_dir() else h5py.File(path, "r")
    files = [AnnDataFile(root, path.name)]
    if root.attrs.get("encoding-type") == COLLECTION:
        numbers = sorted(int(key.removeprefix(PART)) for key in root if re.fullmatch(rf"{PART}\d+", key))
        files = [AnnDataFile(root[f"{PART}{number}"], f"{path.name}/{PART}{number}") for number in numbers]
    if not files or any("obs" not in file.root or "var" not in file.root for file in files):
        msg = f"{path.name} holds no AnnData."
        raise ValueError(msg)
    return files
