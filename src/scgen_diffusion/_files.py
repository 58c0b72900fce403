"""Write files and folders that get their names once they are complete, and say why one cannot be written or read."""

from __future__ import annotations

import errno
import glob
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (*FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
LEFTOVER = "????????.part"  # end of the names of temporary folders, as `mkdtemp` makes them
NO_MEMORY = r"alloc|out of memory|not enough memory"  # PyTorch and HDF5 say so in errors without a type of their own
NO_FILTER = r"filter .* is not registered|can't open directory .*plugin"  # HDF5 looks for filters there


class FailedWriteError(OSError):
    """A file could not be written; the message says which one, why, and what to do."""


@contextmanager
def explain_failed_write(doing: str, folder: Path, advice: str = "") -> Iterator[None]:
    """Raise :class:`FailedWriteError` if the body cannot write, with what it does, where, and some advice."""
    try:
        yield
    except FailedWriteError:
        raise
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause and getattr(cause, "errno", None) not in NOT_WRITABLE:  # torch hides the OSError behind its own
            cause = cause.__context__
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        msg = f"{doing} in {folder} failed: {os.strerror(cause.errno)}. Make room or choose another folder. {advice}"
        raise FailedWriteError(cause.errno, msg.rstrip()) from error


@contextmanager
def write_atomically(goal: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path, which gets the name ``goal`` at the end, or is removed after an error.

    An existing file, folder or link (not what it points to) is replaced at the end, and kept if anything goes wrong.
    The path is in a folder beside the goal, which is locked while it is in use. What killed processes left is removed.

    Raises
    ------
    FileExistsError
        Without ``overwrite``, if there is something at the end.
    """
    with explain_failed_write(f"Writing {goal.name}", goal.absolute().parent):
        remove_leftovers(goal)
        beside, lock = _make_locked_folder(goal)
        new, old = beside / goal.name, beside / "old"
        try:
            yield new
            sync(new)
            if not overwrite and os.path.lexists(goal):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(goal))
            if goal.is_dir():
                goal.rename(old)  # a folder with files cannot be replaced in one step
            new.replace(goal)
        finally:
            _put_back(old, goal)
            remove(beside)
            if lock is not None:
                os.close(lock)


def remove_leftovers(goal: Path) -> None:
    """Remove what killed processes left that wrote to a path."""
    for left in goal.parent.glob(glob.escape(f".{goal.name}.") + LEFTOVER):
        if (lock := _lock(left, wait=False)) is not None:
            with suppress(OSError):
                _put_back(left / "old", goal)
                remove(left)
            os.close(lock)


def _make_locked_folder(goal: Path) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{goal.name}.", suffix=".part", dir=goal.parent))
        lock = _lock(folder, wait=True)
        if folder.exists():  # no other process took it for a leftover before it was locked
            return folder, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """Lock a folder until the returned file is closed; None if another process has locked it, or locks do not work."""
    try:
        import fcntl

        file = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows has no such locks
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def _put_back(old: Path, goal: Path) -> None:
    if os.path.lexists(old) and not os.path.lexists(goal):
        old.rename(goal)


@contextmanager
def explain_failed_read(path: str | os.PathLike[str], verdict: str) -> Iterator[None]:
    """Say which file the body could not read, and why.

    Parameters
    ----------
    path
        The file.
    verdict
        What is wrong with the file if its contents cannot be read; the reason is added.

    Raises
    ------
    MemoryError
        If there is not enough memory.
    OSError
        If the system does not let the file be read, another process has locked it, or HDF5 lacks a filter.
    ValueError
        With ``verdict``, for any other error.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError | OSError) and re.search(NO_MEMORY, str(error))
        ):
            msg = f"There is not enough memory to read {path}. {error}".rstrip()
            raise MemoryError(msg) from error
        if isinstance(error, BlockingIOError):
            msg = f"{path} is locked by another process, which may be writing it. Wait until that has closed it."
            raise BlockingIOError(error.errno, msg) from error
        if re.search(NO_FILTER, str(error)):
            msg = f"{path} is compressed by a filter that is not installed; try `import hdf5plugin` first. {error}"
            raise OSError(msg) from error
        if is_of_system(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        msg = f"{verdict}: {reason}"
        raise ValueError(msg) from error


def is_of_system(error: Exception) -> bool:
    """Return whether an error of reading a file tells of memory, rights or the disk, so that the file may be good."""
    of_contents = (None, errno.EINVAL)  # torch seeks before the start of a file that was cut
    return isinstance(error, MemoryError | ImportError) or getattr(error, "errno", None) not in of_contents


def read_torch(path: Path) -> Any:
    """Read plain values and tensors that torch saved; torch itself does not see that a part has changed since.

    Raises
    ------
    ValueError
        If there are Python objects in the file, a part was changed, or is compressed, as it could be larger than
        memory then, or if it is in the format before torch 1.6.
    """
    import torch  # slow, and most commands import it later

    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        is_compressed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
        if is_compressed or sum(part.file_size for part in parts) > path.stat().st_size:
            msg = "its parts are compressed, which torch never does"
            raise ValueError(msg)
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
