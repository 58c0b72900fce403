"""Write files and folders that get their names only once they are complete, and say why one cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REMEDIES = {
    **dict.fromkeys(FULL, "Make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Allow writing there"),
    errno.EIO: "Check the disk",
}


class FailedWriteError(OSError):
    """A file could not be written; the message says which one, why, and what to do."""


@contextmanager
def explain_failed_write(
    doing: str, folder: Path, *, kept: str = "", again: str = "", n_bytes: float | None = None
) -> Iterator[None]:
    """Raise :class:`FailedWriteError` if the body cannot write.

    Parameters
    ----------
    doing
        What the body does.
    folder
        Where it does so.
    kept
        A sentence on what is left of the work.
    again
        What to do once writing works, continuing a sentence.
    n_bytes
        How much there is to write.
    """
    try:
        yield
    except FailedWriteError:
        raise
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause and getattr(cause, "errno", None) not in REMEDIES:  # torch hides the OSError behind its own error
            cause = cause.__context__
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        space = ""
        if cause.errno in FULL:
            there = next(found for found in (folder, *folder.absolute().parents) if found.exists())
            needed = "" if n_bytes is None else f"About {n_bytes / 1e9:.2g} GB are needed, "
            space = f"{needed}{shutil.disk_usage(there).free / 1e9:.2g} GB are free. "
        msg = (
            f"{doing} in {folder} failed: {os.strerror(cause.errno)}. {space}{kept}{REMEDIES[cause.errno]}{again}, "
            "or choose another folder."
        )
        raise FailedWriteError(cause.errno, msg) from error


def follow_link(path: Path) -> Path:
    """Return what a link points to, as renaming a file onto a link would replace the link; other paths as they are."""
    return path.resolve() if path.is_symlink() else path


@contextmanager
def write_atomically(destination: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path, which gets the name ``destination`` at the end, or is removed after an error.

    An existing file or folder is replaced at the end, and kept if anything goes wrong. Through a link, that is the file
    or folder that the link points to.

    Raises
    ------
    FileExistsError
        Without ``overwrite``, if there is a file or a folder that is not empty at the end; only for folders.
    """
    destination = follow_link(destination)
    partial, old = (destination.with_name(f".{destination.name}.{os.getpid()}.{kind}") for kind in ("part", "old"))
    try:
        with explain_failed_write(f"Writing {destination.name}", destination.absolute().parent):
            yield partial
            sync(partial)
            if overwrite and destination.is_dir():
                destination.rename(old)  # a folder with files cannot be replaced in one step
            try:
                partial.replace(destination)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(destination)) from error
    finally:
        if os.path.lexists(old) and not destination.exists():
            old.rename(destination)
        remove(partial)
        remove(old)


def read_torch(path: Path) -> Any:
    """Read plain values and tensors that torch saved; torch itself does not see that a part has changed since."""
    import torch  # slow, and most commands import it later

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if changed := archive.testzip():
                msg = f"the checksum of {changed} is wrong"
                raise ValueError(msg)
    return torch.load(path, map_location="cpu", weights_only=True)


def is_of_system(error: Exception) -> bool:
    """Return whether an error of reading a file tells of memory, rights or the disk, so that the file may be good."""
    of_contents = (None, errno.EINVAL)  # torch seeks before the start of a file that was cut
    return isinstance(error, MemoryError) or getattr(error, "errno", None) not in of_contents


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
