"""A request on its way to a file: where its parts lie, which process makes which, and whether all is done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scgen_diffusion.data import PartFolder, is_generated, is_whole_number, read_manifest, read_record, remove_parts
from scgen_diffusion.generation import differences

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scgen_diffusion.generation import CellRequest


@dataclass(frozen=True)
class Share:
    """The parts that one of several processes makes.

    Parameters
    ----------
    rank, n_ranks
        Which process of how many.
    """

    rank: int
    n_ranks: int

    def __post_init__(self) -> None:
        if not is_whole_number(self.n_ranks) or self.n_ranks < 1:
            msg = f"`n_ranks` must be a whole number of at least 1, but found {self.n_ranks!r}."
            raise ValueError(msg)
        if not is_whole_number(self.rank) or not 0 <= self.rank < self.n_ranks:
            msg = (
                f"`rank` must be a whole number from 0 to {self.n_ranks - 1} (`n_ranks` - 1), but found {self.rank!r}."
            )
            raise ValueError(msg)

    def of(self, n_parts: int) -> range:
        """Return the numbers of the parts."""
        return range(self.rank, n_parts, self.n_ranks)


@dataclass(frozen=True)
class Stream:
    """A request on its way to a file.

    Parameters
    ----------
    goal
        The file.
    request
        The cells.
    identity
        What tells the request from others, see :func:`identity_of`.
    cells_per_part
        How many cells are finished at once.
    overwrite
        Whether other generated cells may lie at the goal.
    """

    goal: Path
    request: CellRequest
    identity: Mapping[str, Any]
    cells_per_part: int
    overwrite: bool

    @property
    def folder(self) -> Path:
        """Where finished parts lie."""
        return self.goal.with_name(f".{self.goal.name}.parts")

    @property
    def n_parts(self) -> int:
        """Number of parts."""
        return -(-self.request.n_cells // self.cells_per_part)

    def rows(self, part: int) -> range:
        """Return the rows of a part."""
        start = part * self.cells_per_part
        return range(start, min(start + self.cells_per_part, self.request.n_cells))

    def is_finished(self) -> bool:
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
        if differing and not self.overwrite:
            msg = (
                f"{self.goal} exists already, and is not what was asked for now. What differs: {'; '.join(differing)}. "
                "Choose another path, or set overwrite=True."
            )
            raise FileExistsError(msg)
        return not differing

    def begin(self, *, alone: bool) -> tuple[Stream, PartFolder]:
        """Open the folder of parts, and take over the seed of whoever began.

        Raises
        ------
        ValueError
            If parts of another request are there, which may not be removed.
        """
        manifest = read_manifest(self.folder)
        if manifest and self.overwrite and alone and differences(manifest["identity"], self.identity):
            remove_parts(self.folder)
        asked = {"identity": dict(self.identity), "seed": self.request.seed, "n_parts": self.n_parts}
        folder = PartFolder.join(self.folder, asked)
        if differing := differences(folder.manifest["identity"], self.identity):
            msg = (
                f"{self.goal} was begun with other arguments and is not finished. What differs: {'; '.join(differing)}. Call "
                f"again with those to go on, or remove {self.folder} to begin anew (a single process also with overwrite=True)."
            )
            raise ValueError(msg)
        return replace(self, request=self.request.with_seed(folder.manifest["seed"])), folder
