"""The file that a stream of cells ends in: whether it can be written, and what is said if not."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def checked_goal(path: str | os.PathLike[str], suffixes: Sequence[str]) -> Path:
    """Return the path, unless no such file can be made.

    Raises
    ------
    ValueError
        For another suffix.
    OSError
        If the folder is missing, is no folder, or cannot be written to.
    """
    goal = Path(path)
    if goal.suffix not in suffixes:
        msg = f"`path` must end in {' or '.join(suffixes)}, but found {str(path)!r}."
        raise ValueError(msg)
    folder = goal.parent
    if not folder.exists():
        msg = f"The folder {folder} of `path` does not exist; make it first."
        raise FileNotFoundError(errno.ENOENT, msg)
    if not folder.is_dir():
        msg = f"{folder}, in which `path` shall lie, is not a folder."
        raise NotADirectoryError(errno.ENOTDIR, msg)
    return goal


def check_writable(goal: Path) -> None:
    """Raise if nothing can be written beside the goal.

    Raises
    ------
    PermissionError
        If the folder does not admit it.
    """
    if not os.access(goal.parent, os.W_OK | os.X_OK):
        msg = f"The folder {goal.parent} of `path` cannot be written to; choose another, or change its permissions."
        raise PermissionError(errno.EACCES, msg)


@contextmanager
def told(doing: str, place: Path, needed: Callable[[], float], advice: str) -> Iterator[None]:
    """Say, if the file system refuses, what was being done and where, how much space that needs and how much there is."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        msg = (
            f"{doing} in {place} failed: {reason}. About {_readable(needed())} are needed there, {_readable(_free(place))} are "
            f"free. {advice}"
        )
        raise OSError(error.errno or errno.EIO, msg) from error


def put_in_place(new: Path, goal: Path, away: Path) -> None:
    """Give what is finished the goal's name.

    A file is replaced in one step. A folder that is there already is moved to ``away`` before. If another process has put one
    there in that moment, it is finished as well, and stays.
    """
    if goal.is_dir():
        goal.rename(away)
    try:
        new.replace(goal)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _free(place: Path) -> int:
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _readable(size: float) -> str:
    """Write a number of bytes for people."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    for unit in units[:-1]:
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} {units[-1]}"
