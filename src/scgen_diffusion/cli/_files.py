"""Reading files of cells and tables, and checking where to write."""

from __future__ import annotations

import fnmatch
import zipfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from scgen_diffusion._arguments import known_names, list_first
from scgen_diffusion._files import LEFTOVER, check_filters, explain_failed_read

from ._options import value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd

CELLS, MUDATA = (".h5ad", ".zarr", ".h5mu"), ".h5mu"
TABLES = {".csv": ",", ".tsv": "\t"}
FILES_OF_MODEL = {"model.pt", "adata.h5ad", "mdata.h5mu"}


def check_place(path: Path, *suffixes: str, overwrite: bool = True) -> None:
    """Raise, before any work, if a file or the folder of a model cannot be written."""
    msg = ""
    if suffixes and path.suffix not in suffixes:
        msg = f"{path}: the name must end in {' or '.join(suffixes)}."
    elif not path.absolute().parent.is_dir():
        msg = f"There is no folder {path.absolute().parent} for {path.name}; create it first."
    elif path.exists() and not overwrite:
        msg = f"{path} already exists; choose another name, or give --overwrite."
    if msg:
        raise click.UsageError(msg)


def check_replaced(folder: Path) -> None:
    """Raise unless a folder is missing, is empty, or holds nothing but a model of this package."""
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    names -= set(fnmatch.filter(names, f".*.{LEFTOVER}"))
    is_ours = False
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(folder / "model.pt") as archive:
        pickled = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        is_ours = any(b"scgen_diffusion-" in archive.open(name).read(100) for name in pickled)
    if folder.is_file() or (names and not (names <= FILES_OF_MODEL and is_ours)):
        msg = f"{folder} is not a model alone ({list_first(sorted(names))}), and never replaced; choose another name."
        raise click.UsageError(msg)


def read_cells(path: Path, *, backed: bool = False) -> Any:
    """Read the AnnData or MuData of a file by its suffix; ``backed`` leaves the values of ``.h5ad`` in the file."""
    import anndata
    import mudata

    if path.suffix not in CELLS:
        msg = f"{path}: the name must end in {', '.join(CELLS)}."
        raise click.UsageError(msg)
    if not path.exists():
        msg = f"There is no file {path}."
        raise click.UsageError(msg)
    if backed:
        check_filters(path)
    try:
        with explain_failed_read(path, f"{path} cannot be read; it is damaged, or has the wrong suffix"):
            if path.suffix == ".h5ad":
                return anndata.read_h5ad(path, backed="r" if backed else None)
            return anndata.read_zarr(path) if path.suffix == ".zarr" else mudata.read_h5mu(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def of_model(model: Any, cells: Any) -> Any:
    """Return cells of one modality with the genes of a model in its order, if they have all of them."""
    if model.modalities:
        return cells
    genes, names = model.var_.index, cells.var_names
    has_others = names.is_unique and genes.isin(names).all() and not names.equals(genes)
    return cells[:, genes].copy() if has_others else cells


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """Read a .csv or .tsv file, without the numbers of rows that pandas writes."""
    import pandas as pd

    if path.suffix not in TABLES:
        msg = f"{path}: the name of a table must end in {' or '.join(TABLES)}."
        raise click.UsageError(msg)
    try:
        table = pd.read_csv(path, sep=TABLES[path.suffix], **options)
    except ValueError as error:  # errors of pandas and Unicode are ValueErrors
        msg = f"{path} cannot be read as a table: {error}"
        raise click.UsageError(msg) from error
    if "index_col" not in options and not isinstance(table.index, pd.RangeIndex):
        msg = f"{path} cannot be read as a table: rows have more fields than the header, as with decimal commas."
        raise click.UsageError(msg)
    return table.drop(columns="Unnamed: 0", errors="ignore")


def select_rows(obs: pd.DataFrame, where: Mapping[str, Sequence[str] | str]) -> Any:
    """Return a mask of the cells that have one of the values in each column, as text or as numbers."""
    import numpy as np

    from scgen_diffusion.data import as_label, as_labels

    is_chosen = np.ones(len(obs), dtype=bool)
    for name, texts in where.items():
        if name not in obs:
            msg = f"--where: obs has no column {name!r}. {known_names(name, list(obs))}"
            raise click.UsageError(msg)
        labels = as_labels(obs[name]).where(obs[name].notna())
        are_text = any(isinstance(found, str) for found in obs[name].unique())
        texts = [texts] if isinstance(texts, str) else texts
        wanted = {text if are_text else as_label(value(text)) for text in texts}  # 1 for 1.0
        if unknown := sorted(wanted.difference(labels)):
            known = list(labels.dropna().unique())
            msg = f"--where: no cell has {unknown[0]!r} in {name!r}. {known_names(unknown[0], known)}"
            raise click.UsageError(msg)
        is_chosen &= labels.isin(wanted).to_numpy()
    if not is_chosen.any():
        msg = f"--where: no cell has all of {dict(where)}."
        raise click.UsageError(msg)
    return is_chosen
