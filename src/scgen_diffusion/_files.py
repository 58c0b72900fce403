"""Write files and folders that get their names only once they are complete."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def write_atomically(destination: Path) -> Iterator[Path]:
    """Yield a temporary path, which gets the name ``destination`` at the end, or is removed after an error.

    An existing file or folder is replaced at the end, and kept if anything goes wrong.
    """
    partial, old = (destination.with_name(f".{destination.name}.{os.getpid()}.{kind}") for kind in ("part", "old"))
    try:
        yield partial
        sync(partial)
        if destination.is_dir():
            destination.rename(old)  # a folder with files cannot be replaced in one step
        partial.replace(destination)
    finally:
        if os.path.lexists(old) and not destination.exists():
            old.rename(destination)
        remove(partial)
        remove(old)


def sync(path: Path) -> None:
    """Wait until a file, or every file of a folder, is on disk."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def parts_folder(path: Path) -> Path:
    """Return the folder of the parts of a file that is generated part by part; it is removed once they are joined."""
    return path.with_name(f".{path.name}.parts")
