"""Files and folders that bear their names only when they are whole."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def write_atomically(goal: Path) -> Iterator[Path]:
    """Yield a path beside the goal; the file or folder that is written there gets the goal's name at the end, or is removed after an error.

    What bore the name before is replaced, or, whatever goes wrong, still there.
    """
    beside, old = (goal.with_name(f".{goal.name}.{os.getpid()}.{kind}") for kind in ("part", "old"))
    try:
        yield beside
        sync(beside)
        if goal.is_dir():
            goal.rename(old)  # a folder with files cannot be replaced in one step
        beside.replace(goal)
    finally:
        if os.path.lexists(old) and not goal.exists():
            old.rename(goal)
        remove(beside)
        remove(old)


def sync(path: Path) -> None:
    """Wait until a file, or all files of a folder, are on the disk."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
