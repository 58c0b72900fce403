"""In which order the cells of files are read: blocks of neighbours, mixed within a window that fits in memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Window:
    """Cells that are in memory together.

    Parameters
    ----------
    rows
        Their row numbers, in ascending order, as they are read.
    batches
        Positions in ``rows``, ``(cells of the batch,)`` each.
    """

    rows: np.ndarray
    batches: list[np.ndarray]


class WindowPlan:
    """The windows of each pass over some cells; every cell is in one batch of one window.

    To shuffle, blocks of neighbouring rows are put in random order, as many as a window holds are read together, and their cells are put in
    random order. The order of a pass depends on the seed and on the number of the pass alone, so that a run that was resumed goes on with
    it. Without shuffling the cells come in the order that is given.

    Parameters
    ----------
    indices
        Row numbers, ``(cells,)``; distinct, and in ascending order where they are shuffled.
    batch_size
        Cells per batch.
    block_size
        Neighbouring rows that are read together.
    window_size
        Cells in memory together, rounded to whole batches, of which there is at least one.
    shuffle
        Whether to shuffle.
    seed
        Of the order.
    rank, n_ranks
        Which share of the cells this process gets: consecutive ones of a pass. All have equally many batches; whose share has no cell left for
        the last one reads a cell that is another's.
    """

    def __init__(
        self,
        indices: np.ndarray,
        batch_size: int,
        *,
        block_size: int,
        window_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        self.indices = indices
        self.batch_size = batch_size
        self.block_size = block_size
        self.window_size = max(window_size // batch_size, 1) * batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.first = rank * len(indices) // n_ranks
        self.share = (rank + 1) * len(indices) // n_ranks - self.first
        self.n_batches = -(-len(indices) // (n_ranks * batch_size))
        """Batches of a pass."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass; Lightning calls this before each."""
        self.epoch = epoch

    def windows(self, first_batch: int = 0) -> Iterator[Window]:
        """Return the windows of this pass from a batch on; they may be gone through after another pass was chosen."""
        return self._windows(np.random.default_rng([self.seed, self.epoch]), first_batch)

    def _windows(self, rng: np.random.Generator, first_batch: int) -> Iterator[Window]:
        blocks = self._blocks(rng)
        ends = np.cumsum(blocks[:, 1] - blocks[:, 0])
        for start in range(0, self.share, self.window_size):
            size = min(self.window_size, self.share - start)
            window = self._window(self._pick(blocks, ends, self.first + start, size), rng)
            n_done = min(max(first_batch - start // self.batch_size, 0), len(window.batches))
            if n_done < len(window.batches):
                yield Window(window.rows, window.batches[n_done:])
        if self.share <= (self.n_batches - 1) * self.batch_size:  # the others have a cell more
            yield Window(self.indices[:1], [np.zeros(1, dtype=np.int64)])

    def _blocks(self, rng: np.random.Generator) -> np.ndarray:
        """Return the blocks in the order of this pass, as ``(start, stop)`` in the given rows, ``(blocks, 2)``."""
        n_rows = int(self.indices[-1]) + 1 if self.shuffle and len(self.indices) else len(self.indices)
        limits = np.arange(0, n_rows, self.block_size)
        if self.shuffle:  # blocks begin at the same rows whichever cells are chosen, so that they fit the parts in which a file is stored
            limits = np.unique(np.searchsorted(self.indices, limits))
        edges = np.append(limits, len(self.indices))
        blocks = np.array(list(pairwise(edges)), dtype=np.int64).reshape(-1, 2)
        return rng.permutation(blocks) if self.shuffle else blocks

    def _pick(self, blocks: np.ndarray, ends: np.ndarray, start: int, size: int) -> np.ndarray:
        """Return the rows from ``start`` on in the order of the blocks; after the last one the first follows."""
        picked: list[np.ndarray] = []
        position = start % len(self.indices)
        while size > 0:
            number = int(np.searchsorted(ends, position, side="right"))
            low, high = blocks[number]
            low = high - (ends[number] - position)
            part = self.indices[low : min(high, low + size)]
            picked.append(part)
            size, position = size - len(part), (position + len(part)) % len(self.indices)
        return np.concatenate(picked)

    def _window(self, rows: np.ndarray, rng: np.random.Generator) -> Window:
        distinct, positions = np.unique(rows, return_inverse=True)
        order = rng.permutation(positions) if self.shuffle else positions
        return Window(distinct, [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)])
