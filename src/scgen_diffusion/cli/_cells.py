"""Cells from files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from mudata import MuData

ANNDATA, MUDATA = (".h5ad", ".zarr"), (".h5mu",)


def read_cells(path: Path, *, backed: bool = False) -> AnnData | MuData:
    """Read the cells of a file by its suffix; ``backed`` leaves the values of an ``.h5ad`` in the file.

    Raises
    ------
    click.UsageError
        For another suffix.
    """
    match path.suffix:
        case ".h5ad":
            import anndata

            return anndata.read_h5ad(path, backed="r" if backed else None)
        case ".zarr":
            import anndata

            return anndata.read_zarr(path)
        case ".h5mu":
            import mudata

            return mudata.read_h5mu(path)
    msg = f"{path}: cells are read from {', '.join([*ANNDATA, *MUDATA])}, but the name ends in {path.suffix!r}."
    raise click.UsageError(msg)


def are_paired(path: Path) -> bool:
    """Tell whether a file holds several modalities."""
    return path.suffix in MUDATA
