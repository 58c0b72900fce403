"""Cells from files."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ._terminal import Stop, code_of, describe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anndata import AnnData
    from mudata import MuData

ANNDATA, MUDATA = (".h5ad", ".zarr"), (".h5mu",)


def read_cells(path: Path, *, backed: bool = False) -> AnnData | MuData:
    """Read the cells of a file by its suffix; ``backed`` leaves the values of an ``.h5ad`` in the file.

    Raises
    ------
    click.UsageError
        For another suffix, and for a file that cannot be read.
    """
    if path.suffix not in (*ANNDATA, *MUDATA):
        msg = f"{path}: cells are read from {', '.join([*ANNDATA, *MUDATA])}, but the name ends in {path.suffix!r}."
        raise click.UsageError(msg)
    if not path.exists():
        msg = f"There is no file {path}."
        raise click.UsageError(msg)
    try:
        return _read(path, backed=backed)
    except MemoryError:
        raise
    except Exception as error:  # whichever of the libraries below finds the fault
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        msg = f"{path} cannot be read; it is damaged, or not what its name says: {reason}"
        raise click.UsageError(msg) from error


def _read(path: Path, *, backed: bool) -> AnnData | MuData:
    import anndata
    import mudata

    if path.suffix == ".h5mu":
        return mudata.read_h5mu(path)
    if path.suffix == ".zarr":
        return anndata.read_zarr(path)
    return anndata.read_h5ad(path, backed="r" if backed else None)


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Name the file in what is said of its cells."""
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:
        msg = f"{path}: {describe(error)}"
        raise Stop(msg, code_of(error)) from error


def are_paired(path: Path) -> bool:
    """Tell whether a file holds several modalities."""
    return path.suffix in MUDATA
