"""Batches of cells that stay in files: blocks of neighbours are read, and mixed within a window that fits in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from ._anndata_file import dense
from ._condition_setup import CONDITIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ._anndata_file import Rows

WINDOW_SIZE = 16_384
BLOCK_SIZE = 128
LARGEST_BLOCK = WINDOW_SIZE // 32  # so that a window mixes cells of at least so many places


class ReadsRows(Protocol):
    """What can be read by ascending row numbers."""

    def read(self, rows: np.ndarray) -> Rows:
        """Read rows, whose numbers ascend."""


class Batches(Protocol):
    """What decides the order of a stage's cells and the share of this process."""

    seed: int | None
    epoch: int
    first_batch: int
    rank: int
    n_processes: int

    def __len__(self) -> int:
        """How many batches to read, from the first one of the pass ``epoch``."""


class Window(NamedTuple):
    """Cells that are in memory together: their row numbers, which ascend, and the batches, as positions among them."""

    rows: np.ndarray
    batches: list[np.ndarray]


class WindowLoader:
    """Batches of expression and conditions, by their names in the registry; every pass goes through all cells.

    To shuffle, blocks of neighbouring rows are put in random order, as many as a window holds are read together, and their cells are put in
    random order. The order of a pass depends on the seed and on the number of the pass alone, so that a run that was resumed goes on with
    it. Several processes get consecutive shares of the same order, filled up to the same length from its beginning.

    Parameters
    ----------
    matrix
        Where expression is read.
    codes
        Conditions of all cells, ``(cells, columns)``.
    indices
        Row numbers, ``(cells,)``; distinct, and in ascending order where they are shuffled.
    batch_size
        Cells per batch.
    batches
        Seed, pass and share of this process in a stage of training; default: all cells in the order that is given.
    block_size
        Neighbouring rows that are read together.
    window_size
        Cells in memory together, rounded to whole batches, of which there is at least one.
    """

    batch_sampler = None  # for Lightning, which looks for one beside a sampler

    def __init__(
        self,
        matrix: ReadsRows,
        codes: np.ndarray,
        indices: np.ndarray,
        batch_size: int,
        batches: Batches | None = None,
        *,
        block_size: int,
        window_size: int = WINDOW_SIZE,
    ) -> None:
        self.matrix, self.codes, self.indices = matrix, codes, indices
        self.batch_size, self.block_size = batch_size, block_size
        self.window_size = max(window_size // batch_size, 1) * batch_size
        self.sampler = batches  # Lightning tells what bears this name the number of the epoch

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size) if self.sampler is None else len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Read a window while the one before is used."""
        n_left, windows = len(self), self.windows()
        with ThreadPoolExecutor(1, thread_name_prefix="cells") as reader:

            def start() -> tuple | None:
                window = next(windows, None)
                return None if window is None else (window, reader.submit(self.matrix.read, window.rows))

            ahead = start()
            while ahead is not None and n_left > 0:
                window, reading = ahead
                x = reading.result()
                ahead = start() if n_left > len(window.batches) else None
                for batch in islice(window.batches, n_left):
                    n_left -= 1
                    tensors = {REGISTRY_KEYS.X_KEY: torch.from_numpy(dense(x[batch]))}
                    if self.codes.shape[1]:
                        conditions = self.codes[window.rows[batch]].astype(np.float32)
                        tensors[CONDITIONS] = torch.from_numpy(conditions)
                    yield tensors

    def windows(self) -> Iterator[Window]:
        """Return the windows of the pass at hand, from its first batch on."""
        order, first_batch, rng = self.indices, 0, None
        if self.sampler is not None and len(order):
            first_batch = self.sampler.first_batch
            if self.sampler.seed is not None:
                rng = np.random.default_rng([self.sampler.seed, self.sampler.epoch])
                # blocks begin at the same rows whichever cells are chosen, so that they fit the parts in which a file is stored
                limits = np.searchsorted(order, np.arange(self.block_size, order[-1] + 1, self.block_size))
                blocks = [block for block in np.split(order, limits) if len(block)]
                order = np.concatenate([blocks[number] for number in rng.permutation(len(blocks))])
            size = -(-len(order) // self.sampler.n_processes)
            order = np.resize(order, size * self.sampler.n_processes)[self.sampler.rank * size :][:size]
        for start in range(0, len(order), self.window_size):
            rows, positions = np.unique(order[start : start + self.window_size], return_inverse=True)
            positions = positions if rng is None else rng.permutation(positions)
            batches = [positions[i : i + self.batch_size] for i in range(0, len(positions), self.batch_size)]
            left = batches[max(first_batch - start // self.batch_size, 0) :]
            if left:
                yield Window(rows, left)


def suitable_block(rows_per_chunk: float) -> int:
    """Return a number of neighbouring rows that are read together from a file whose parts have so many rows."""
    return int(np.clip(np.ceil(rows_per_chunk), BLOCK_SIZE, LARGEST_BLOCK))
