"""Write files and folders that get their names once they are complete, and say why one cannot be written or read."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
OLD = "old"  # what is being replaced, beside what replaces it


@contextmanager
def explain_failed_write(doing: str, folder: Path, advice: str = "") -> Iterator[None]:
    """Raise OSError if the body cannot write, with what it does, where, and some advice."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause and getattr(cause, "errno", None) not in NOT_WRITABLE:  # torch hides the OSError behind its own
            cause = cause.__context__
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        msg = f"{doing} in {folder} failed: {os.strerror(cause.errno)}. Make room or choose another folder. {advice}"
        raise OSError(cause.errno, msg.rstrip()) from error


@contextmanager
def write_atomically(goal: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path, which gets the name ``goal`` at the end, or is removed after an error.

    An existing file, folder or link (not what it points to) is replaced at the end, and kept if anything goes wrong.
    The path is in a hidden folder beside the goal. What a killed process left there is removed.

    Raises
    ------
    FileExistsError
        Without ``overwrite``, if there is something at the end.
    """
    beside = goal.with_name(f".{goal.name}.part")
    new, old = beside / goal.name, beside / OLD
    with explain_failed_write(f"Writing {goal.name}", goal.absolute().parent):
        _clear(beside, goal)
        beside.mkdir()
        try:
            yield new
            sync(new)
            if not overwrite and os.path.lexists(goal):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(goal))
            if goal.is_dir():
                goal.rename(old)  # a folder with files cannot be replaced in one step
            new.replace(goal)
        finally:
            _clear(beside, goal)


def _clear(beside: Path, goal: Path) -> None:
    """Remove a temporary folder; put back what was to be replaced."""
    if os.path.lexists(beside / OLD) and not os.path.lexists(goal):
        (beside / OLD).rename(goal)
    remove(beside)


@contextmanager
def explain_failed_read(verdict: str) -> Iterator[None]:
    """Raise ValueError with a verdict and the reason if the body cannot read a file.

    Errors that tell of memory, rights or the disk stay as they are: the file may be good.
    """
    try:
        yield
    except Exception as error:
        of_contents = (None, errno.EINVAL)  # torch seeks before the start of a file that was cut
        if isinstance(error, MemoryError | ImportError) or getattr(error, "errno", None) not in of_contents:
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        msg = f"{verdict}: {reason}"
        raise ValueError(msg) from error


def read_torch(path: Path) -> Any:
    """Read plain values and tensors that torch saved.

    Raises
    ------
    ValueError
        If there are Python objects in the file, or a part was changed, which torch itself does not see.
    """
    import torch  # slow, and most commands import it later

    with zipfile.ZipFile(path) as archive:
        if changed := archive.testzip():
            msg = f"the checksum of {changed} is wrong"
            raise ValueError(msg)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        msg = "it has Python objects, which could execute code, so it was not loaded"
        raise ValueError(msg) from None  # torch would advise to execute the code


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
