"""Batches of cells in files: blocks of neighbours are read, and shuffled within a window that fits into memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from ._condition_setup import CONDITIONS
from ._matrices import dense

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from torch.utils.data import Sampler

    from ._matrices import JoinedMatrix, Rows

WINDOW_SIZE = 16_384


class WindowLoader:
    """Loader of batches of expression and conditions, by their names in the registry; a pass reads all cells.

    To shuffle, the loader puts blocks of neighbouring rows in random order, reads as many blocks as a window holds, and
    shuffles the cells of the window. The order depends only on the seed and the pass, so a resumed run continues it.
    Several processes get consecutive shares of the same order, padded to equal length from its start.

    Parameters
    ----------
    matrix
        Source of expression: ``read`` takes ascending row numbers, and ``block_size`` neighbours are read together.
    codes
        Conditions of all cells, ``(cells, columns)``.
    indices
        Row numbers, ``(cells,)``; distinct, and ascending if they are shuffled.
    batch_size
        Cells per batch.
    batches
        The :class:`~scgen_diffusion.train.EpochBatches` of a training stage, of which seed, pass, first batch, length
        and process are used; default: all cells in the given order.
    window_size
        Cells in memory together, rounded down to whole batches, at least one.
    """

    batch_sampler = None  # Lightning looks for it beside a sampler

    def __init__(
        self,
        matrix: JoinedMatrix,
        codes: np.ndarray,
        indices: np.ndarray,
        batch_size: int,
        batches: Sampler | None = None,
        *,
        window_size: int = WINDOW_SIZE,
    ) -> None:
        self.matrix, self.codes, self.indices = matrix, codes, indices
        self.batch_size, self.window_size = batch_size, max(window_size // batch_size, 1) * batch_size
        self.sampler = batches  # Lightning sets the epoch of an attribute with this name

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size) if self.sampler is None else len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield batches; the next window is read in the background."""
        with ThreadPoolExecutor(1, thread_name_prefix="cells") as reader:
            windows = ((rows, batches, reader.submit(self.matrix.read, rows)) for rows, batches in self.windows())
            ahead = next(windows, None)
            while ahead is not None:
                rows, batches, reading = ahead
                x = reading.result()
                ahead = next(windows, None)
                yield from (batch_of(x[batch], self.codes[rows[batch]]) for batch in batches)

    def windows(self) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Yield the ascending rows of each window of the epoch, and its batches as positions among them."""
        order, rng = self._order()
        first_batch, n_left = 0 if self.sampler is None else self.sampler.first_batch, len(self)
        for start in range(0, len(order), self.window_size):
            rows, positions = np.unique(order[start : start + self.window_size], return_inverse=True)
            positions = positions if rng is None else rng.permutation(positions)
            batches = [positions[i : i + self.batch_size] for i in range(0, len(positions), self.batch_size)]
            batches = batches[max(first_batch - start // self.batch_size, 0) :][:n_left]
            n_left -= len(batches)
            if batches:
                yield rows, batches
            if not n_left:
                return

    def _order(self) -> tuple[np.ndarray, np.random.Generator | None]:
        """Return this process's rows of the pass, block by block, and what shuffles each window, if anything does."""
        order, sampler, rng = self.indices, self.sampler, None
        if sampler is None or not len(order):
            return order, None
        share = -(-len(order) // sampler.n_processes)
        fills_epoch = len(self) <= -(-share // self.batch_size)
        size = share if fills_epoch else len(self) * self.batch_size  # few cells are read again, in other orders
        if sampler.seed is not None:
            rng = np.random.default_rng([sampler.seed, sampler.pass_number])
            # blocks begin at fixed rows, whichever cells are chosen, so that they fit the chunks of a file
            size_of_block = self.matrix.block_size
            limits = np.searchsorted(order, np.arange(size_of_block, order[-1] + 1, size_of_block))
            blocks = [block for block in np.split(order, limits) if len(block)]
            orders = [[blocks[number] for number in rng.permutation(len(blocks))] for _ in range(-(-size // share))]
            order = np.concatenate([*chain.from_iterable(orders)])
        return np.resize(order, size * sampler.n_processes)[sampler.rank * size :][:size], rng


def batch_of(x: Rows, codes: np.ndarray) -> dict[str, Tensor]:
    """Return expression and conditions of cells by their names in the registry."""
    batch = {REGISTRY_KEYS.X_KEY: torch.from_numpy(dense(x))}
    return batch | {CONDITIONS: torch.from_numpy(codes.astype(np.float32))} if codes.shape[1] else batch
