"""Files and folders under their names only when they are whole."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

COMMAND_FILE = "train.toml"
FILES_OF_MODEL = {"model.pt", "adata.h5ad", "mdata.h5mu", COMMAND_FILE}
N_NAMED = 5  # how many files an error names


def check_new(path: Path, *, overwrite: bool, suffixes: Sequence[str] = (), inputs: Iterable[Path] = ()) -> None:
    """Raise unless a file or folder can be written, before the work that it is for.

    Raises
    ------
    click.UsageError
        If it is there already, and for what :func:`check_place` finds.
    """
    check_place(path, suffixes=suffixes, inputs=inputs)
    if path.exists() and not overwrite:
        msg = f"{path} exists already; choose another name, or give --overwrite."
        raise click.UsageError(msg)


def check_place(path: Path, *, suffixes: Sequence[str] = (), inputs: Iterable[Path] = ()) -> None:
    """Raise unless there is a place for a file or folder, where it takes nothing away from ``inputs``.

    Raises
    ------
    click.UsageError
        If it has another suffix than those allowed, has no folder to be in, or one that is closed to us; if it is or holds an input or the
        current folder, or lies in a zarr store that is an input.
    """
    if suffixes and path.suffix not in suffixes:
        msg = f"{path}: the name must end in {' or '.join(suffixes)}."
        raise click.UsageError(msg)
    folder = path.absolute().parent
    if not folder.is_dir():
        msg = f"There is no folder {folder} for {path.name}; make it first."
        raise click.UsageError(msg)
    if not os.access(folder, os.W_OK | os.X_OK):
        msg = f"The folder {folder} cannot be written to."
        raise click.UsageError(msg)
    place = path.resolve()
    if Path.cwd().is_relative_to(place):
        msg = f"{path} is the folder that you are in, or holds it; choose a name for a new one in it."
        raise click.UsageError(msg)
    for given in inputs:
        source = given.resolve()
        if source.is_relative_to(place):
            msg = f"{path} is, or holds, {given}, which is needed; choose another name."
            raise click.UsageError(msg)
        if source.suffix == ".zarr" and place.is_relative_to(source):
            msg = f"{path} lies in {given}, which is an input; choose another folder."
            raise click.UsageError(msg)


def check_replaced(package: Any, folder: Path) -> None:
    """Raise unless what is replaced, if anything is, is an empty folder, or a model and nothing else.

    Raises
    ------
    click.UsageError
        If something else is there.
    """
    names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    if not names:
        return
    if names <= FILES_OF_MODEL:
        with suppress(OSError, ValueError):
            package.model.load(folder, adata=False, accelerator="cpu")
            return
    listed = ", ".join(sorted(names)[:N_NAMED]) + (", ..." if len(names) > N_NAMED else "")
    msg = (
        f"{folder} ({listed}) is not, or not only, a model that scgen-diffusion saved, and --overwrite replaces nothing else. Choose another "
        "name, or move it away yourself."
    )
    raise click.UsageError(msg)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path beside the goal, and give what is there the goal's name when all is done; a folder replaces a folder.

    Whatever goes wrong, what bore the name before is kept or replaced, not lost.
    """
    beside, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("part", "old"))
    try:
        yield beside
        if path.is_dir():
            path.rename(old)
        beside.replace(path)
    finally:
        if os.path.lexists(old) and not path.exists():
            old.rename(path)
        for leftover in (beside, old):
            remove(leftover)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
