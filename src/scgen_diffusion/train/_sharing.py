"""How several processes share the cells of an epoch: as one process with batches as large as all of theirs together would take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import Sampler

from scgen_diffusion.diffusion import sample_seed

from ._distributed import process_count, process_rank

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Share:
    """Rows ``first`` to ``stop`` of a batch of ``n_rows``, which are those of one of ``n_processes`` processes.

    A last batch may have fewer rows than there are processes. Whoever has none reads a row all the same, which counts nothing: every process
    has to take part in every step.
    """

    first: int
    stop: int
    n_rows: int
    n_processes: int = 1

    @classmethod
    def of(cls, n_rows: int, rank: int, n_processes: int) -> Share:
        """Cut a batch into equal parts, as far as that goes."""
        return cls(rank * n_rows // n_processes, (rank + 1) * n_rows // n_processes, n_rows, n_processes)

    @property
    def is_whole(self) -> bool:
        """Whether one process has all rows."""
        return self.n_processes == 1

    @property
    def n_counted(self) -> int:
        """Rows that this process answers for."""
        return self.stop - self.first

    @property
    def rows(self) -> slice:
        """Rows that this process reads; at least one."""
        return slice(self.first, self.stop) if self.n_counted else slice(0, 1)

    @property
    def weight(self) -> float:
        """What to multiply this process's mean by, so that the mean over processes is the mean over the batch's rows."""
        return self.n_counted * self.n_processes / self.n_rows


class StageBatches(Protocol):
    """Batches of a stage's training, in an order that follows from its seed and the epoch."""

    def share(self, number: int) -> Share:
        """Return this process's share of a batch."""

    def resume(self, epoch: int, n_batches: int) -> None:
        """Start ``epoch`` after so many batches that were read before an interruption."""

    @property
    def order_depends_on(self) -> dict[str, Any]:
        """What decides the order besides seed, epoch and batch size."""


class EpochPosition:
    """Which epoch it is, and at which of its batches to start."""

    epoch: int = 0
    _resumed: tuple[int, int] = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, as Lightning does."""
        self.epoch = epoch

    def resume(self, epoch: int, n_batches: int) -> None:
        """Start ``epoch`` after so many batches that were read before an interruption."""
        self.epoch, self._resumed = epoch, (epoch, n_batches)

    @property
    def first_batch(self) -> int:
        """The batch to start with."""
        epoch, n_batches = self._resumed
        return n_batches if epoch == self.epoch else 0

    @property
    def order_depends_on(self) -> dict[str, Any]:
        """What decides the order besides seed, epoch and batch size: nothing."""
        return {}


class SharedBatches(EpochPosition, Sampler[np.ndarray]):
    """Batches of row numbers, of which each process draws its share; an epoch's order follows from the seed and the epoch alone.

    Parameters
    ----------
    n_rows
        Number of cells.
    batch_size
        Cells of a batch per process.
    seed
        Seed of the order; None for the given order.
    n_draws
        Cells of an epoch, each drawn again only when all were; default: each once.
    rank, n_processes
        Which process this is, of how many. Default: as torch.distributed says.

    Attributes
    ----------
    in_parts
        Whether each process reads consecutive rows of an epoch, rather than a part of each batch. Loaders of files set it: they read what lies
        together, in an order of their own.
    part_sizes
        What that order depends on further, by name, as plain values; such loaders set it, too.

    Examples
    --------
    >>> from scgen_diffusion.train import SharedBatches
    >>> [[batch.tolist() for batch in SharedBatches(6, 2, rank=rank, n_processes=2)] for rank in (0, 1)]
    [[[0, 1], [4]], [[2, 3], [5]]]
    """

    def __init__(
        self,
        n_rows: int,
        batch_size: int,
        *,
        seed: int | None = None,
        n_draws: int | None = None,
        rank: int | None = None,
        n_processes: int | None = None,
    ) -> None:
        self.n_rows = n_rows
        self.seed = seed
        self.n_draws = n_rows if n_draws is None else n_draws
        self.rank = process_rank() if rank is None else rank
        self.n_processes = process_count() if n_processes is None else n_processes
        self.batch_size = batch_size * self.n_processes
        self.in_parts = False
        self.part_sizes: dict[str, int] = {}

    def __len__(self) -> int:
        return -(-self.n_draws // self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        order = self.order(self.epoch)
        for number in range(self.first_batch, len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield batch[self.share(number).rows]

    @property
    def order_depends_on(self) -> dict[str, Any]:
        """What decides the order besides seed, epoch and batch size: for consecutive parts their number and sizes."""
        return {"in_parts": True, "n_processes": self.n_processes, **self.part_sizes} if self.in_parts else {}

    def order(self, epoch: int) -> np.ndarray:
        """Return the rows of an epoch of all processes in the order in which they are read."""
        if self.seed is None:
            return np.arange(self.n_rows)
        generator = epoch_generator(self.seed, epoch)
        rounds = -(-self.n_draws // max(self.n_rows, 1))
        return torch.cat([torch.randperm(self.n_rows, generator=generator) for _ in range(rounds)]).numpy()[
            : self.n_draws
        ]

    def share(self, number: int) -> Share:
        """Return this process's share of a batch."""
        if self.in_parts:
            return self._share_of_parts(number)
        n_rows = min(self.batch_size, self.n_draws - number * self.batch_size)
        return Share.of(n_rows, self.rank, self.n_processes)

    def _share_of_parts(self, number: int) -> Share:
        """Return which rows a process has of what all of them read at the same time."""
        size = self.batch_size // self.n_processes
        parts = [Share.of(self.n_draws, rank, self.n_processes).n_counted for rank in range(self.n_processes)]
        n_rows = [min(max(part - number * size, 0), size) for part in parts]
        first = sum(n_rows[: self.rank])
        return Share(first, first + n_rows[self.rank], sum(n_rows), self.n_processes)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the generator that decides an epoch's order."""
    return torch.Generator().manual_seed(sample_seed(seed, epoch))
