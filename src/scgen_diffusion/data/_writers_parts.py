"""Parts of a stream of cells on disk, which outlive the process that made them.

A folder beside the goal holds finished parts and what was asked. All changes are single atomic steps of the file system (make a
folder, rename), so that processes on several machines can share it without locks, and one that is killed leaves nothing half.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from ._value_summary import ValueSummary
from ._writers import sync
from ._writers_claim import Turn, take_turn, token

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

REQUEST = "request"
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
        with suppress(FileExistsError):
            path.mkdir()
        try:
            _make_manifest(path, manifest)
        except FileNotFoundError:  # whoever finished the work has removed the folder just now
            return cls.join(path, manifest)
        return cls(path, read_manifest(path) or manifest)

    @property
    def finished(self) -> set[int]:
        """Numbers of the parts that are there."""
        return {int(file.stem.removeprefix("part-")) for file in self.path.glob("part-*.npz")}

    def write(self, number: int, part: Part) -> None:
        """Write a part, at once or not at all."""
        beside = self.path / f".part-{number}-{token()}"
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

    def summary(self, number: int) -> tuple[ValueSummary, np.ndarray]:
        """Return what is known of a part's values, and its codes.

        Raises
        ------
        DamagedPartError
            If it is cut off, or the checksum of one of these is wrong.
        """
        try:
            with np.load(self._file(number)) as arrays:
                n_values, n_stored, n_nonzero, largest = arrays["summary"].tolist()
                return ValueSummary(int(n_values), int(n_stored), int(n_nonzero), largest), arrays["codes"]
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

    def take_turn(self, *, wait: bool) -> Turn | None:
        """Take on putting the parts together, see :func:`take_turn`."""
        return take_turn(self.path, wait=wait)

    def place_for_whole(self, suffix: str) -> Path:
        """Return a new place where parts can be put together, and remove what those who were killed left of theirs.

        Should one of them not be dead, its work is taken away in one step, lest it puts in place what is half removed.
        """
        for old in self.path.glob("whole-*"):
            away = self.path / f".removed-{token()}"
            with suppress(FileNotFoundError):  # put in place just now
                old.rename(away)
            remove(away)
        return self.path / f"whole-{token()}{suffix}"


def _make_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write down what is asked, unless somebody was first."""
    beside = path / f".{REQUEST}-{token()}"
    beside.mkdir()
    (beside / "manifest.json").write_text(json.dumps(manifest, indent=1))
    sync(beside)
    try:
        beside.rename(path / REQUEST)
    except FileNotFoundError:
        raise
    except OSError:  # somebody was first
        shutil.rmtree(beside, ignore_errors=True)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return what was asked of those who made the parts in a folder; None if there are none."""
    try:
        return json.loads((path / REQUEST / "manifest.json").read_text())
    except (FileNotFoundError, ValueError):
        return None


def remove_parts(path: Path) -> None:
    """Remove a folder of parts, what was asked last."""
    for entry in path.glob("*"):
        if entry.name != REQUEST:
            remove(entry)
    shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _arrays(part: Part) -> dict[str, Any]:
    known = {"codes": part.codes, "summary": np.array(ValueSummary.of(part.x))}
    if isinstance(part.x, np.ndarray):
        return {"x": part.x, **known}
    matrix = {"data": _narrow(part.x.data), "indices": _narrow(part.x.indices), "indptr": part.x.indptr}
    return {**matrix, "shape": np.array(part.x.shape), **known}


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
