"""``generate_to`` and ``predict_perturbation_to``: cells streamed to a file, by processes that may be killed.

A hidden folder beside the goal holds the request and the finished parts. Everything is written under a temporary name
and renamed when complete, so nobody reads an unfinished file. Processes share only this folder. Each makes its own
parts, and the one that finds all parts joins them. If two join at the same time, they put the same file in place twice,
which does no harm.
"""

from __future__ import annotations

import errno
import glob
import json
import logging
import uuid
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvi import settings
from tqdm.auto import tqdm

from scgen_diffusion._arguments import check_count, list_first
from scgen_diffusion._files import explain_failed_write, parts_folder, remove, sync
from scgen_diffusion.data import join_parts, part_of, read_record
from scgen_diffusion.generation import differences

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from anndata import AnnData

    from scgen_diffusion.data import ValueSummary

    from ._counterfactual import Prediction
    from ._generation import Generation

logger = logging.getLogger(__name__)

SHARD_SIZE = "shard_size"
explain_failed_part = partial(
    explain_failed_write, kept="Finished parts are kept. ", again=" and run the same call again to resume"
)

SUFFIXES = (".zarr", ".h5ad")
VALUES_PER_PART = 2**25  # entries of a part's matrix, zeros included: 128 MiB if it is dense
CELLS_PER_PART = 2**16  # limit for few genes
REQUEST = "request.json"
NAMES_IN_ZARR = {"zarr.json", "X", "layers", "obs", "obsm", "obsp", "raw", "uns", "var", "varm", "varp"}


@dataclass(frozen=True)
class Stream:
    """The parts of a request that is written to a file.

    Parameters
    ----------
    goal
        Path of the file.
    identity
        Arguments that identify the request.
    rows
        Rows of each part.
    """

    goal: Path
    identity: Mapping[str, Any]
    rows: Sequence[range]

    @property
    def folder(self) -> Path:
        """Folder of finished parts; it always holds the request too."""
        return parts_folder(self.goal)

    def is_joined(self, *, overwrite: bool) -> bool:
        """Return whether the finished file is at the goal.

        Raises
        ------
        FileExistsError
            If other cells are there and ``overwrite`` is False, or anything else is there, also beside such cells.
        """
        if not self.goal.exists():
            return False
        record = read_record(self.goal)
        if record is None:
            msg = (
                f"{self.goal} already exists and was not written by `generate_to` or `predict_perturbation_to`; such a "
                "file is never replaced. Choose another path, or move it away."
            )
            raise FileExistsError(msg)
        differing = self._list_differences(record)
        names = {entry.name for entry in self.goal.iterdir()} if differing and self.goal.is_dir() else set()
        if others := names - NAMES_IN_ZARR:
            msg = (
                f"{self.goal} contains other files too ({list_first(sorted(others))}); such a folder is never "
                "replaced. Choose another path, or move them away."
            )
            raise FileExistsError(msg)
        if differing and not overwrite:
            msg = (
                f"{self.goal} already exists and holds cells of another request. What differs: {'; '.join(differing)}. "
                "Choose another path, or set overwrite=True."
            )
            raise FileExistsError(msg)
        return not differing

    def clean_if_joined(self, *, overwrite: bool) -> bool:
        """Return :meth:`is_joined`; if so, remove the parts, unless they are of another request."""
        if not self.is_joined(overwrite=overwrite):
            return False
        begun = self.identity
        with suppress(FileNotFoundError):
            begun = self._begun()["identity"]
        if not self._list_differences(begun):
            self.clean()
        return True

    def _list_differences(self, record: Mapping[str, Any]) -> list[str]:
        """List how the joined cells differ, which do not depend on the size of parts."""
        return differences(record, {**self.identity, SHARD_SIZE: record.get(SHARD_SIZE)})

    def start(self, seed: int, *, overwrite: bool, n_ranks: int) -> int | None:
        """Begin or resume, and return the seed to use; None if the file is finished."""
        if not self.is_joined(overwrite=overwrite):
            seed = self.begin(seed, discard_others=overwrite and n_ranks == 1)
        # another process may have joined the parts by now
        return None if self.clean_if_joined(overwrite=overwrite) else seed

    def begin(self, seed: int, *, discard_others: bool) -> int:
        """Make the folder for parts unless it exists; return the seed stored in it.

        Raises
        ------
        ValueError
            If it holds parts of another request and ``discard_others`` is False.
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
            if not discard_others:
                msg = (
                    f"{self.goal} was begun with other arguments and is not finished. What differs: "
                    f"{'; '.join(differing)}. Use the earlier arguments to resume, or remove {self.folder} to start "
                    "again (or, with one process, set overwrite=True)."
                )
                raise ValueError(msg)
            self.clean()

    def _begun(self) -> dict[str, Any]:
        return json.loads((self.folder / REQUEST).read_text())

    def _make_folder(self, request: Mapping[str, Any]) -> None:
        """Make the folder with the request in it, unless another process is quicker."""
        if self.folder.exists() and not (self.folder / REQUEST).exists():
            self.clean()  # left by a process that was killed after others had finished
        beside = self._away()
        with explain_failed_part("Making a folder for finished cells", self.goal.parent):
            beside.mkdir()
            try:
                (beside / REQUEST).write_text(json.dumps(request, indent=1))
                sync(beside)
                beside.rename(self.folder)
            except OSError as error:
                remove(beside)
                if error.errno != errno.ENOENT and not self.folder.exists():  # others may have cleaned, or made it
                    raise

    def complete(
        self,
        make: Callable[..., AnnData],
        bar: Mapping[str, Any],
        *,
        rank: int,
        n_ranks: int,
        overwrite: bool,
        **join_options: Any,
    ) -> ValueSummary | None:
        """Make and write the parts of this rank, and join all parts if they are there; return a summary of the values.

        ``make(rows, progress=progress)`` makes the cells of a part. ``bar`` are options of the progress bar.
        """
        mine, done, values = range(rank, len(self.rows), n_ranks), self.parts, None
        n_cells, n_done = (sum(len(self.rows[number]) for number in some) for some in (mine, {*mine} & {*done}))
        with tqdm(total=n_cells, initial=n_done, unit="cell", **bar) as progress:
            try:
                for number in mine:
                    if number not in done:
                        with warnings.catch_warnings(action="ignore"):  # a part may look odd; the caller checks all
                            cells = make(self.rows[number], progress=progress)
                        self.write(number, cells)
                with self.joining(wait=rank == 0) as is_mine:
                    if is_mine and not self.is_joined(overwrite=overwrite):
                        values = self.join(**join_options)
            except Exception:  # libraries raise anything if another process joined and removed the parts
                if not self.is_joined(overwrite=True):
                    raise
        self.clean_if_joined(overwrite=True)
        return values

    def clean(self) -> None:
        """Remove the parts, and what killed processes left half removed."""
        with suppress(OSError):  # another process does it, or there are none
            self.folder.rename(self._away())
        for left in self.goal.parent.glob(f"{glob.escape(self.folder.name)}-*"):
            remove(left)

    @property
    def parts(self) -> dict[int, Path]:
        """Finished parts, by number."""
        return {int(path.stem.split("-")[1]): path for path in self.folder.glob("part-*.h5ad")}

    def write(self, number: int, cells: AnnData) -> None:
        """Write a part atomically."""
        content, beside = part_of(cells), self.folder / f".part-{number}-{_token()}"
        n_parts = len(self.rows)
        what, n_bytes = f"Writing part {number + 1} of {n_parts}", len(content) * (n_parts - number)
        with explain_failed_part(what, self.goal.parent, n_bytes=n_bytes):
            try:
                beside.write_bytes(content)
                sync(beside)
                beside.replace(self.folder / f"part-{number:06d}.h5ad")
            finally:
                remove(beside)

    @contextmanager
    def joining(self, *, wait: bool) -> Iterator[bool]:
        """Yield whether this process joins the parts: all parts exist, and no other process is joining them.

        The lock only saves work: without locks, several processes may join the same parts.
        """
        if n_missing := len(self.rows) - len(self.parts):
            logger.info("%d of %d parts of %s are still missing.", n_missing, len(self.rows), self.goal)
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
            except (ImportError, OSError):  # no locks on Windows and on some network file systems
                pass
            yield True

    def join(self, **options: Any) -> ValueSummary:
        """Join all parts in a temporary file, rename it to the goal, and return a summary of its values.

        ``options`` are those of :func:`~scgen_diffusion.data.join_parts`.
        """
        parts = [path for _, path in sorted(self.parts.items())]
        beside = self.folder / f"whole-{_token()}{self.goal.suffix}"
        n_bytes = sum(part.stat().st_size for part in parts)
        with explain_failed_part(f"Writing {self.goal.name}", self.goal.parent, n_bytes=n_bytes):
            try:
                values = join_parts(parts, beside, self.identity, **options)
                sync(beside)
                if differences(self._begun()["identity"], self.identity):
                    msg = f"The parts of {self.goal} were given up for another request while they were joined."
                    raise ValueError(msg)
                if self.goal.is_dir() and not self.is_joined(overwrite=True):
                    self.goal.rename(self.folder / f"replaced-{_token()}")
                beside.replace(self.goal)
            finally:
                remove(beside)
        return values

    def _away(self) -> Path:
        """Return a new name for the folder, where nobody looks for parts."""
        return self.folder.with_name(f"{self.folder.name}-{_token()}")


def write_stream(
    goal: Path,
    job: Generation | Prediction,
    *,
    join_options: Mapping[str, Any],
    shard_size: int | None,
    batch_size: int | None,
    seed: int | None,
    show_progress: bool,
    rank: int,
    n_ranks: int,
    overwrite: bool,
) -> Path:
    """Make the cells of a job shard by shard, write them to a file, and return its path."""
    n_cells = job.n_cells
    if shard_size is None:
        shard_size = min(max(VALUES_PER_PART // job.engine.n_genes, 1), CELLS_PER_PART)
    size = job.engine.round_to_blocks(check_count(SHARD_SIZE, shard_size))
    rows = [range(start, min(start + size, n_cells)) for start in range(0, n_cells, size)]
    seed = settings.seed if seed is None else seed
    identity = {**job.identify(goal.suffix), "n_cells": n_cells, "seed": None if seed is None else int(seed)}
    stream = Stream(goal, {**identity, SHARD_SIZE: size}, rows)
    begun = stream.start(job.request.seed, overwrite=overwrite, n_ranks=n_ranks)
    if begun is not None:
        job = job.with_seed(begun).judged()
        make = partial(job.make_part, batch_size=batch_size)
        bar, join = {"desc": job.task, "disable": not show_progress}, {"merge": job.merge, **join_options}
        values = stream.complete(make, bar, rank=rank, n_ranks=n_ranks, overwrite=overwrite, **join)
        if values is not None:
            job.assembly.check(values, job.request.sampling.output)
    return goal


def _token() -> str:
    return uuid.uuid4().hex[:12]


def check_rank(rank: int, n_ranks: int) -> None:
    """Raise unless ``rank`` is from 0 to ``n_ranks - 1``."""
    check_count("rank", rank, least=0, most=check_count("n_ranks", n_ranks) - 1)


def check_goal(path: str | os.PathLike[str], suffixes: Sequence[str]) -> Path:
    """Return the path, or raise if no file of cells can be written there."""
    goal = Path(path).expanduser()
    if goal.suffix not in suffixes:
        msg = f"`path` must end in {' or '.join(suffixes)}, but found {str(goal)!r}."
        raise ValueError(msg)
    if not goal.parent.exists():
        msg = f"The folder {goal.parent} of `path` does not exist; create it first."
        raise FileNotFoundError(errno.ENOENT, msg)
    if not goal.parent.is_dir():
        msg = f"{goal.parent}, the parent of `path`, is not a folder."
        raise NotADirectoryError(errno.ENOTDIR, msg)
    return goal
