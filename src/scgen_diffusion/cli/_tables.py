"""Reading files of cells and tables, and checking where to write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from scgen_diffusion._arguments import as_list, known_names
from scgen_diffusion._files import explain_failed_read

from ._options import value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd

CELLS, MUDATA = (".h5ad", ".zarr", ".h5mu"), ".h5mu"


def check_place(path: Path, *suffixes: str, overwrite: bool = True) -> None:
    """Raise, before any work, if a file or, without suffixes, the folder of a model cannot be written."""
    msg = ""
    if suffixes and path.suffix not in suffixes:
        msg = f"{path}: the name must end in {' or '.join(suffixes)}."
    elif not path.absolute().parent.is_dir():
        msg = f"There is no folder {path.absolute().parent} for {path.name}; create it first."
    elif path.exists() and not overwrite:
        msg = f"{path} already exists; choose another name, or give --overwrite."
    elif path.is_file() and not suffixes:
        msg = f"{path} is a file; name a folder for the model."
    if msg:
        raise click.UsageError(msg)


def read_cells(path: Path, *, backed: bool = False) -> Any:
    """Read the AnnData or MuData of a file by its suffix; ``backed`` leaves the values of ``.h5ad`` in the file."""
    import anndata
    import mudata

    if path.suffix not in CELLS:
        msg = f"{path}: the name must end in {', '.join(CELLS)}."
        raise click.UsageError(msg)
    with explain_failed_read(f"{path} cannot be read; it is damaged, or has the wrong suffix"):
        if path.suffix == ".h5ad":
            return anndata.read_h5ad(path, backed="r" if backed else None)
        return anndata.read_zarr(path) if path.suffix == ".zarr" else mudata.read_h5mu(path)


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

    with explain_failed_read(f"{path} cannot be read as a table"):
        table = pd.read_csv(path, sep="	" if path.suffix == ".tsv" else ",", **options)
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
        known = set(labels.dropna())
        wanted = [text if text in known else as_label(value(text)) for text in as_list(texts)]  # 1 for 1.0
        if unknown := [label for label in wanted if label not in known]:
            msg = f"--where: no cell has {unknown[0]!r} in {name!r}. {known_names(unknown[0], list(known))}"
            raise click.UsageError(msg)
        is_chosen &= labels.isin(wanted).to_numpy()
    if not is_chosen.any():
        msg = f"--where: no cell has all of {dict(where)}."
        raise click.UsageError(msg)
    return is_chosen
