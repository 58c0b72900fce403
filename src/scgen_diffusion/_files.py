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
def write_atomically(goal: Path) -> Iterator[Path]:
    """Yield a temporary path; what is written there gets the name ``goal`` at the end, or is removed after an error.

    An existing file or folder is replaced at the end, and kept if anything goes wrong.
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
