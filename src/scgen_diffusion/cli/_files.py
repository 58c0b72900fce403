"""Reading files of cells and tables, and checking where to write."""

from __future__ import annotations

import fnmatch
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scgen_diffusion._arguments import list_first
from scgen_diffusion._files import check_filters, explain_failed_read

from ._terminal import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

ANNDATA, MUDATA = (".h5ad", ".zarr"), ".h5mu"
TABLES = {".csv": ",", ".tsv": "\t"}
UNNAMED = "Unnamed: 0"  # pandas' name of a first column without one
MODEL_FILE = "model.pt"
FILES_OF_MODEL = {MODEL_FILE, "adata.h5ad", "mdata.h5mu"}


def read_cells(path: Path, *, backed: bool = False) -> AnnData | MuData:
    """Read the cells of a file by its suffix; ``backed`` leaves values in the file.

    Raises
    ------
    click.UsageError
        For another suffix, and for a file that cannot be read.
    """
    import anndata
    import mudata

    if path.suffix not in (*ANNDATA, MUDATA):
        msg = f"{path}: the name must end in {', '.join(ANNDATA)} or {MUDATA}, but found {path.suffix!r}."
        raise click.UsageError(msg)
    if not path.exists():
        msg = f"There is no file {path}."
        raise click.UsageError(msg)
    if backed:
        check_filters(path)
    try:
        with explain_failed_read(path, f"{path} cannot be read; it is damaged, or has the wrong suffix"):
            if path.suffix == MUDATA:
                return mudata.read_h5mu(path, backed="r" if backed else None)
            if path.suffix == ".zarr":
                return _open_zarr(path) if backed else anndata.read_zarr(path)
            return anndata.read_h5ad(path, backed="r" if backed else None)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def read_cells_of(model: Any, path: Path) -> AnnData | MuData:
    """Read cells of a file. Of one modality, keep the genes of a model, in its order, if the cells have all of them."""
    cells = read_cells(path)
    if model.modalities:
        return cells
    genes, names = model.var_.index, cells.var_names
    has_others = names.is_unique and genes.isin(names).all() and not names.equals(genes)
    return cells[:, genes].copy() if has_others else cells


def _open_zarr(path: Path) -> AnnData:
    """Open an AnnData whose matrices stay in their arrays; anndata has no backed mode for ``.zarr``."""
    import zarr
    from anndata import AnnData
    from anndata.io import read_elem, sparse_dataset

    def matrix(element: Any) -> Any:
        return sparse_dataset(element) if isinstance(element, zarr.Group) else element

    root = zarr.open_group(path, mode="r")
    tables = {name: read_elem(root[name]) for name in ("obs", "var", "uns", "obsm") if name in root}
    layers = {name: matrix(element) for name, element in root["layers"].members()} if "layers" in root else {}
    return AnnData(matrix(root["X"]) if "X" in root else None, layers=layers, **tables)


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """Read a table by its suffix, without a first column that has no name, such as the index that pandas writes.

    Raises
    ------
    click.UsageError
        For another suffix, and for a file that is not such a table.
    """
    import pandas as pd

    if path.suffix not in TABLES:
        msg = f"{path}: the name of a table must end in {' or '.join(TABLES)}."
        raise click.UsageError(msg)
    try:
        table = pd.read_csv(path, sep=TABLES[path.suffix], **options)
        if "index_col" not in options and not isinstance(table.index, pd.RangeIndex):
            msg = "rows have more fields than the header, as with decimal commas, or R's row names (row.names=FALSE)."
            raise ValueError(msg)
    except (OSError, ValueError) as error:  # errors of pandas and Unicode are ValueErrors
        msg = f"{path} cannot be read as a table: {error}"
        raise click.UsageError(msg) from error
    return table.iloc[:, 1:] if [*table.columns[:1]] == [UNNAMED] and table.shape[1] > 1 else table


def check_place(
    path: Path, *, overwrite: bool = True, suffixes: Sequence[str] = (), inputs: Iterable[Path] = ()
) -> None:
    """Raise unless a file or folder can be written to a path without replacing any of ``inputs``.

    Raises
    ------
    click.UsageError
        For a wrong suffix; if the parent folder does not exist or is not writable; if the path is or contains an input
        or the current folder; if it exists and must not be overwritten.
    """
    folder, place, msg = path.absolute().parent, path.resolve(), ""
    if suffixes and path.suffix not in suffixes:
        msg = f"{path}: the name must end in {' or '.join(suffixes)}."
    elif not folder.is_dir():
        msg = f"There is no folder {folder} for {path.name}; create it first."
    elif not os.access(folder, os.W_OK | os.X_OK):
        msg = f"The folder {folder} cannot be written to."
    elif Path.cwd().is_relative_to(place):
        msg = f"{path} is or contains the current folder; choose a new folder in it."
    elif held := [given for given in inputs if given.resolve().is_relative_to(place)]:
        msg = f"{path} is or contains {held[0]}, which this command needs; choose another name."
    elif path.exists() and not overwrite:
        msg = f"{path} already exists; choose another name, or give --overwrite."
    if msg:
        raise click.UsageError(msg)


def check_replaced(folder: Path) -> None:
    """Raise unless a folder is missing, is empty, or contains only a model of this package.

    Raises
    ------
    click.UsageError
        If the folder contains anything else.
    """
    names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    names -= set(fnmatch.filter(names, ".*.????????.part"))  # left by a killed process
    if names and not (names <= FILES_OF_MODEL and _is_ours(folder / MODEL_FILE)):
        listed = list_first(sorted(names))
        msg = (
            f"{folder} contains other files than a model of {PROGRAM} ({listed}), and --overwrite never replaces "
            "them. Choose another name, or move the folder away."
        )
        raise click.UsageError(msg)


def _is_ours(path: Path) -> bool:
    """Return whether this package wrote a model file, which begins with its format; torch is slow to import."""
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        pickled = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        return any(b"scgen_diffusion-" in archive.open(name).read(100) for name in pickled)
    return False
