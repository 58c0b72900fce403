"""Parts of a stream of cells on disk, which outlive the process that made them.

A folder beside the goal holds finished parts and what was asked. All changes are single atomic steps of the file system (make a
folder, rename), so that processes on several machines can share it without locks, and one that is killed leaves nothing half.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import uuid
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from ._writers import sync

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

REQUEST = "request"
CLAIM = "claim"
PATIENCE = 60.0  # seconds without a sign of life after which another machine's process is taken for dead
DAMAGE = (zipfile.BadZipFile, EOFError, KeyError, ValueError)


class DamagedPartError(Exception):
    """A part that is not what was written; ``number`` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(f"Part {number} is damaged.")
        self.number = number


@dataclass(frozen=True)
class Part:
    """Finished cells.

    Parameters
    ----------
    x
        Their values ``(cells, genes)``.
    codes
        Their condition codes ``(cells, columns)``.
    """

    x: sp.csr_matrix | np.ndarray
    codes: np.ndarray

    @property
    def n_bytes(self) -> int:
        """Size of its file in bytes."""
        return sum(array.nbytes for array in _arrays(self).values())


@dataclass(frozen=True)
class PartFolder:
    """A folder of parts.

    Parameters
    ----------
    path
        Where it is.
    manifest
        What was asked of those who made the parts.
    """

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def join(cls, path: Path, manifest: Mapping[str, Any]) -> PartFolder:
        """Open the folder, with the manifest of whoever was first, or make it with the given one."""
        path.mkdir(exist_ok=True)
        beside = path / f".{REQUEST}-{_token()}"
        beside.mkdir()
        (beside / "manifest.json").write_text(json.dumps(manifest, indent=1))
        sync(beside)
        try:
            beside.rename(path / REQUEST)
        except OSError:  # somebody was first
            shutil.rmtree(beside, ignore_errors=True)
        return cls(path, read_manifest(path) or manifest)

    @property
    def finished(self) -> set[int]:
        """Numbers of the parts that are there."""
        return {int(file.stem.removeprefix("part-")) for file in self.path.glob("part-*.npz")}

    def write(self, number: int, part: Part) -> None:
        """Write a part, at once or not at all."""
        beside = self.path / f".part-{number}-{_token()}"
        try:
            with beside.open("wb") as file:
                np.savez(file, **_arrays(part))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._file(number))
        finally:
            beside.unlink(missing_ok=True)

    def read(self, number: int) -> Part:
        """Read a part.

        Raises
        ------
        DamagedPartError
            If it is cut off or its checksums are wrong.
        """
        try:
            with np.load(self._file(number)) as arrays:
                return _part(arrays)
        except DAMAGE as error:
            raise DamagedPartError(number) from error

    def summary(self, number: int) -> tuple[int, np.ndarray]:
        """Return a part's number of stored values, and its codes.

        Raises
        ------
        DamagedPartError
            If it is cut off or the checksum of the codes is wrong.
        """
        try:
            with np.load(self._file(number)) as arrays:
                return int(arrays["n_stored"]), arrays["codes"]
        except DAMAGE as error:
            raise DamagedPartError(number) from error

    def discard(self, number: int) -> None:
        """Remove a part."""
        self._file(number).unlink(missing_ok=True)

    def size(self, number: int) -> int:
        """Return the size of a part in bytes."""
        return self._file(number).stat().st_size

    def remove(self) -> None:
        """Remove the folder, what was asked last, so that a folder half removed is known for what it is."""
        remove_parts(self.path)

    def _file(self, number: int) -> Path:
        return self.path / f"part-{number:06d}.npz"

    # --- whose turn it is to put the parts together ------------------------------------------------------------------

    def claim(self, *, wait: bool) -> bool:
        """Take on putting the parts together, unless another process is at it.

        Parameters
        ----------
        wait
            Whether to look on, if one is, and to take over if it is dead; or else to leave at once.

        Returns
        -------
        bool
            Whether it is this process' turn.
        """
        watch = _Watch(self.path / CLAIM)
        while True:
            try:
                (self.path / CLAIM).mkdir()
            except FileExistsError:
                if not wait and not watch.owner_is_dead():
                    return False
            except FileNotFoundError:  # all is done, and the folder is gone
                return False
            else:
                (self.path / CLAIM / "owner.json").write_text(json.dumps([socket.gethostname(), os.getpid()]))
                return True
            if watch.owner_is_dead() or watch.seconds_without_sign() > PATIENCE:
                self._take_away_claim()
            else:
                time.sleep(0.1)

    def show_life(self) -> None:
        """Tell those who look on that putting the parts together goes on."""
        os.utime(self.path / CLAIM)

    def release(self) -> None:
        """Leave putting the parts together to others."""
        self._take_away_claim()

    def _take_away_claim(self) -> None:
        away = self.path / f".{CLAIM}-{_token()}"
        try:
            (self.path / CLAIM).rename(away)
        except FileNotFoundError:  # another one was quicker
            return
        shutil.rmtree(away, ignore_errors=True)

    def place_for_whole(self, suffix: str) -> Path:
        """Return a new place where parts can be put together, and remove what those who were killed left of theirs."""
        for old in self.path.glob("whole-*"):
            remove(old)
        return self.path / f"whole-{_token()}{suffix}"


class _Watch:
    """Looks at the owner of a claim without asking any clock but its own."""

    def __init__(self, claim: Path) -> None:
        self._claim = claim
        self._seen: float | None = None
        self._since = time.monotonic()

    def owner_is_dead(self) -> bool:
        """Tell whether the owner is known to be dead: it ran on this machine, and runs no more."""
        try:
            host, process = json.loads((self._claim / "owner.json").read_text())
        except (OSError, ValueError):
            return False
        if host != socket.gethostname():
            return False
        return process == os.getpid() or not _runs(process)

    def seconds_without_sign(self) -> float:
        """Return for how long the owner was not seen to do anything."""
        try:
            seen = self._claim.stat().st_mtime
        except FileNotFoundError:
            seen = None
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        return time.monotonic() - self._since


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return what was asked of those who made the parts in a folder; None if there are none."""
    try:
        return json.loads((path / REQUEST / "manifest.json").read_text())
    except (FileNotFoundError, ValueError):
        return None


def remove_parts(path: Path) -> None:
    """Remove a folder of parts, what was asked last."""
    if not path.is_dir():
        return
    for entry in path.iterdir():
        if entry.name != REQUEST:
            remove(entry)
    shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if os.name == "nt":  # where the question would be an order
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _token() -> str:
    return uuid.uuid4().hex[:12]


def _arrays(part: Part) -> dict[str, Any]:
    if isinstance(part.x, np.ndarray):
        return {"x": part.x, "codes": part.codes, "n_stored": np.array(part.x.size)}
    return {
        "data": _narrow(part.x.data),
        "indices": _narrow(part.x.indices),
        "indptr": part.x.indptr,
        "shape": np.array(part.x.shape),
        "codes": part.codes,
        "n_stored": np.array(part.x.nnz),
    }


def _part(arrays: Mapping[str, np.ndarray]) -> Part:
    if "x" in arrays:
        return Part(arrays["x"], arrays["codes"])
    data, indices = arrays["data"].astype(np.float32), arrays["indices"].astype(np.int32)
    x = sp.csr_matrix((data, indices, arrays["indptr"]), shape=tuple(arrays["shape"]))
    return Part(x, arrays["codes"])


def _narrow(values: np.ndarray) -> np.ndarray:
    """Return whole numbers below 65 536 in two bytes, and others as they are."""
    if not values.size or values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        return values
    narrow = values.astype(np.uint16)
    return narrow if (narrow == values).all() else values
