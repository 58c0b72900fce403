"""``generate_to``: cells streamed to a file, part by part, by processes that may be killed at any moment.

A hidden folder beside the goal holds what was asked and the finished parts. Everything is written under another name and renamed when it is
whole, so that nobody ever sees anything half. Processes share the folder, and nothing else: each makes its parts, and whoever finds all of
them joins them. Should two do so at the same time, the same file is put in place twice, which does no harm.
"""

from __future__ import annotations

import errno
import glob
import json
import logging
import os
import shutil
import uuid
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scgen_diffusion._arguments import check_count
from scgen_diffusion._files import remove, sync
from scgen_diffusion.data import is_generated, join_parts, part_of, read_record
from scgen_diffusion.generation import differences

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from anndata import AnnData

    from scgen_diffusion.data import ValueSummary

logger = logging.getLogger(__name__)

SUFFIXES = (".zarr", ".h5ad")
VALUES_PER_PART = 2**25  # entries of a part's matrix, zeros included: 128 MiB if it is dense
CELLS_PER_PART = 2**16  # at most
REQUEST = "request.json"


@dataclass(frozen=True)
class Stream:
    """A request on its way to a file.

    Parameters
    ----------
    goal
        The file.
    identity
        What tells the request from others.
    n_parts
        How many parts it is made in.
    """

    goal: Path
    identity: Mapping[str, Any]
    n_parts: int

    @property
    def folder(self) -> Path:
        """Where finished parts lie; it never exists without what was asked."""
        return self.goal.with_name(f".{self.goal.name}.parts")

    def is_joined(self, *, overwrite: bool) -> bool:
        """Tell whether the cells lie at the goal.

        Raises
        ------
        FileExistsError
            If others do, which may not be overwritten, or anything else, which never is.
        """
        if not self.goal.exists():
            return False
        record = read_record(self.goal)
        differing = ["what it holds"] if record is None else differences(record, self.identity)
        if differing and not is_generated(self.goal):
            msg = (
                f"{self.goal} exists already, and holds something other than cells that scgen-diffusion generated, which is never replaced. "
                "Choose another path, or move it away yourself."
            )
            raise FileExistsError(msg)
        if differing and not overwrite:
            msg = (
                f"{self.goal} exists already, and is not what was asked for now. What differs: {'; '.join(differing)}. "
                "Choose another path, or set overwrite=True."
            )
            raise FileExistsError(msg)
        return not differing

    def begin(self, seed: int, *, give_up_others: bool) -> int:
        """Make the folder for parts, unless it is there; return the seed of whoever made it.

        Raises
        ------
        ValueError
            If it holds parts of another request, which may not be given up.
        """
        while True:
            try:
                begun = self._begun()
            except FileNotFoundError:
                self._make_folder({"identity": dict(self.identity), "seed": seed})
                continue
            differing = differences(begun["identity"], self.identity)
            if not differing:
                return begun["seed"]
            if not give_up_others:
                msg = (
                    f"{self.goal} was begun with other arguments and is not finished. What differs: {'; '.join(differing)}. Call "
                    f"again with those to go on, or remove {self.folder} to begin anew (a single process also with overwrite=True)."
                )
                raise ValueError(msg)
            self.clean()

    def _begun(self) -> dict[str, Any]:
        return json.loads((self.folder / REQUEST).read_text())

    def _make_folder(self, asked: Mapping[str, Any]) -> None:
        """Make the folder with what is asked in it, unless another process is quicker."""
        if self.folder.exists() and not (self.folder / REQUEST).exists():
            self.clean()  # left by a process that was killed when others had finished
        beside = self._away()
        with _explained("Making a folder for finished cells", self.goal, 0):
            try:
                beside.mkdir()
                (beside / REQUEST).write_text(json.dumps(asked, indent=1))
                sync(beside)
                beside.rename(self.folder)
            except OSError as error:
                remove(beside)
                was_cleaned = error.errno == errno.ENOENT and self.goal.parent.exists()
                if not (was_cleaned or self.folder.exists()):
                    raise

    def clean(self) -> None:
        """Remove the parts, and whatever those who were killed left half removed."""
        with suppress(OSError):  # another process does it, or there are none
            self.folder.rename(self._away())
        for left in self.goal.parent.glob(f"{glob.escape(self.folder.name)}-*"):
            remove(left)

    @property
    def parts(self) -> dict[int, Path]:
        """Parts that are there, by their numbers."""
        return {int(path.name.split("-")[1]): path for path in self.folder.glob("part-*.h5ad")}

    def write(self, number: int, cells: AnnData) -> None:
        """Write a part, at once or not at all; by the checksum in its name one is known that never reached the disk."""
        content, beside = part_of(cells), self.folder / f".part-{number}-{_token()}"
        n_left = self.n_parts - number
        with _explained(f"Writing part {number + 1} of {self.n_parts}", self.goal, len(content) * n_left):
            try:
                beside.write_bytes(content)
                beside.replace(self.folder / f"part-{number:06d}-{zlib.crc32(content):08x}.h5ad")
            finally:
                remove(beside)

    def discard_damaged(self) -> list[int]:
        """Remove parts that are not what was written, and return their numbers."""
        damaged = {number: path for number, path in self.parts.items() if _checksum(path) not in path.name}
        for path in damaged.values():
            remove(path)
        return list(damaged)

    @contextmanager
    def joining(self, *, wait: bool) -> Iterator[bool]:
        """Tell whether this process shall join the parts: they are all there, and no other process has begun.

        The lock saves work, no more: where there are none, several processes may join the same parts.
        """
        n_missing = self.n_parts - len(self.parts)
        if n_missing:
            logger.info("%d of %d parts of %s are still to be made.", n_missing, self.n_parts, self.goal)
            yield False
            return
        with (self.folder / REQUEST).open() as file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("Another process is joining the parts of %s.", self.goal)
                yield False
                return
            except (ImportError, OSError):  # no locks: on Windows, on some network file systems
                pass
            yield True

    def join(self) -> ValueSummary:
        """Join all parts beside the goal, give what is whole the goal's name, and return what values it holds."""
        parts = [path for _, path in sorted(self.parts.items())]
        beside = self.folder / f"whole-{_token()}{self.goal.suffix}"
        with _explained(f"Writing {self.goal.name}", self.goal, sum(part.stat().st_size for part in parts)):
            try:
                values = join_parts(parts, beside, self.identity)
                sync(beside)
                if differences(self._begun()["identity"], self.identity):
                    raise FileNotFoundError(errno.ENOENT, "the parts were given up for another request")
                if self.goal.is_dir() and not self.is_joined(overwrite=True):
                    self.goal.rename(self.folder / f"replaced-{_token()}")
                beside.replace(self.goal)
            finally:
                remove(beside)
        return values

    def _away(self) -> Path:
        """Return another name for the folder, under which nobody looks for parts."""
        return self.folder.with_name(f"{self.folder.name}-{_token()}")


def _token() -> str:
    return uuid.uuid4().hex[:12]


def _checksum(path: Path) -> str:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}"


def check_rank(rank: int, n_ranks: int) -> None:
    """Raise unless ``rank`` is the number of one of the processes."""
    check_count("rank", rank, least=0, most=check_count("n_ranks", n_ranks) - 1)


def check_goal(path: str | os.PathLike[str]) -> Path:
    """Return the path, unless no file of cells can be there."""
    goal = Path(path)
    if goal.suffix not in SUFFIXES:
        msg = f"`path` must end in {' or '.join(SUFFIXES)}, but found {str(path)!r}."
        raise ValueError(msg)
    if not goal.parent.exists():
        msg = f"The folder {goal.parent} of `path` does not exist; make it first."
        raise FileNotFoundError(errno.ENOENT, msg)
    if not goal.parent.is_dir():
        msg = f"{goal.parent}, in which `path` shall lie, is not a folder."
        raise NotADirectoryError(errno.ENOTDIR, msg)
    return goal


@contextmanager
def _explained(doing: str, goal: Path, n_bytes: float) -> Iterator[None]:
    """Say, if the file system refuses, what was being done and where, how much space that needs and how much there is."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        free = shutil.disk_usage(goal.parent).free
        msg = (
            f"{doing} in {goal.parent} failed: {reason}. About {n_bytes / 1e9:.2g} GB are needed there, {free / 1e9:.2g} GB are free. "
            "What is finished is kept there: make room, or choose another folder, and call again with the same arguments to go on."
        )
        raise OSError(error.errno or errno.EIO, msg) from error
