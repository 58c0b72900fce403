"""Files of cells and tables, read and named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

ANNDATA, MUDATA = (".h5ad", ".zarr"), ".h5mu"
TABLES = {".csv": ",", ".tsv": "\t"}
COMMAND_FILE = "train.toml"
FILES_OF_MODEL = {"model.pt", "adata.h5ad", "mdata.h5mu", COMMAND_FILE}
N_NAMED = 5  # how many files an error names


def read_cells(path: Path, *, backed: bool = False) -> AnnData | MuData:
    """Read the cells of a file by its suffix; ``backed`` leaves the values of an ``.h5ad`` in the file.

    Raises
    ------
    click.UsageError
        For another suffix, and for a file that cannot be read.
    """
    import anndata
    import mudata

    if path.suffix not in (*ANNDATA, MUDATA):
        msg = f"{path}: cells are read from {', '.join([*ANNDATA, MUDATA])}, but the name ends in {path.suffix!r}."
        raise click.UsageError(msg)
    if not path.exists():
        msg = f"There is no file {path}."
        raise click.UsageError(msg)
    try:
        if path.suffix == MUDATA:
            return mudata.read_h5mu(path)
        if path.suffix == ".zarr":
            return anndata.read_zarr(path)
        return anndata.read_h5ad(path, backed="r" if backed else None)
    except MemoryError:
        raise
    except Exception as error:  # whichever of the libraries finds the fault
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        msg = f"{path} cannot be read; it is damaged, or not what its name says: {reason}"
        raise click.UsageError(msg) from error


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """Read a table of texts by its suffix.

    Raises
    ------
    click.UsageError
        For another suffix, and for a file that is no such table.
    """
    import pandas as pd

    if path.suffix not in TABLES:
        msg = f"{path}: tables are read from {' and '.join(TABLES)}."
        raise click.UsageError(msg)
    try:
        return pd.read_csv(path, sep=TABLES[path.suffix], **options)
    except (OSError, ValueError) as error:  # pandas' and Unicode's own are ValueErrors
        msg = f"{path} cannot be read as a table: {error}"
        raise click.UsageError(msg) from error


def check_place(
    path: Path, *, overwrite: bool = True, suffixes: Sequence[str] = (), inputs: Iterable[Path] = ()
) -> None:
    """Raise unless there is a place for a file or folder, where it takes nothing away from ``inputs``.

    Raises
    ------
    click.UsageError
        If it has another suffix than those allowed, has no folder to be in, or one that is closed to us; if it is or holds an input or the
        current folder; if it is there already and may not be overwritten.
    """
    folder, place, msg = path.absolute().parent, path.resolve(), ""
    if suffixes and path.suffix not in suffixes:
        msg = f"{path}: the name must end in {' or '.join(suffixes)}."
    elif not folder.is_dir():
        msg = f"There is no folder {folder} for {path.name}; make it first."
    elif not os.access(folder, os.W_OK | os.X_OK):
        msg = f"The folder {folder} cannot be written to."
    elif Path.cwd().is_relative_to(place):
        msg = f"{path} is the folder that you are in, or holds it; choose a name for a new one in it."
    elif held := [given for given in inputs if given.resolve().is_relative_to(place)]:
        msg = f"{path} is, or holds, {held[0]}, which is needed; choose another name."
    elif path.exists() and not overwrite:
        msg = f"{path} exists already; choose another name, or give --overwrite."
    if msg:
        raise click.UsageError(msg)


def check_replaced(folder: Path) -> None:
    """Raise unless what is replaced, if anything is, is an empty folder, or a model that ``train`` wrote and nothing else.

    Raises
    ------
    click.UsageError
        If something else is there.
    """
    names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    if names and not {COMMAND_FILE} <= names <= FILES_OF_MODEL:
        listed = ", ".join(sorted(names)[:N_NAMED]) + (", ..." if len(names) > N_NAMED else "")
        msg = (
            f"{folder} ({listed}) is not, or not only, a model that `train` wrote, and --overwrite replaces nothing else. Choose "
            "another name, or move it away yourself."
        )
        raise click.UsageError(msg)
