"""Batches of cells that stay in files, by way of windows that are read ahead."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from ._file_matrix import dense
from ._window_plan import WindowPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from ._file_matrix import Rows
    from ._window_plan import Window

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


class WindowLoader:
    """Batches of cells, as dictionaries of tensors; every pass goes through all of the plan's cells.

    Parameters
    ----------
    plan
        Which cells are read together, and in which order they come.
    read
        Turns windows into batches of rows and the cells' numbers.
    to_tensors
        Turns rows and numbers into what training takes.
    batches
        Says which pass it is and where to start; default: one pass after the other.
    """

    batch_sampler = None  # for Lightning, which looks for one beside a sampler

    def __init__(
        self,
        plan: WindowPlan,
        read: Callable[[Iterable[Window]], Iterator[tuple[Rows, np.ndarray]]],
        to_tensors: Callable[[Rows, np.ndarray], dict[str, Tensor]],
        batches: Batches | None = None,
    ) -> None:
        self.plan = plan
        self.batches = batches
        self.sampler = (
            plan if batches is None else batches
        )  # Lightning tells what bears this name the number of the epoch
        self.read = read
        self.to_tensors = to_tensors

    def __len__(self) -> int:
        return self.plan.n_batches if self.batches is None else len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for rows, numbers in islice(self.read(self._windows()), len(self)):
            yield self.to_tensors(rows, numbers)

    def _windows(self) -> Iterator[Window]:
        if self.batches is not None:
            self.plan.set_epoch(self.batches.epoch)
            return self.plan.windows(self.batches.first_batch)
        windows = self.plan.windows()
        self.plan.set_epoch(self.plan.epoch + 1)
        return windows


def read_windows(matrix: ReadsRows, windows: Iterable[Window]) -> Iterator[tuple[Rows, np.ndarray]]:
    """Yield batches of rows and the cells' numbers; while one window is used, the next one is read."""
    windows = iter(windows)
    with ThreadPoolExecutor(1, thread_name_prefix="cells") as reader:

        def start() -> tuple | None:
            window = next(windows, None)
            return None if window is None else (window, reader.submit(matrix.read, window.rows))

        ahead = start()
        while ahead is not None:
            window, reading = ahead
            rows = reading.result()
            ahead = start()
            for batch in window.batches:
                yield rows[batch], window.rows[batch]


class ToTensors:
    """Expression and conditions of a batch, by their names in the registry.

    Parameters
    ----------
    expression_key, conditions_key
        The names.
    codes
        Conditions of all cells, ``(cells, columns)``.
    """

    def __init__(self, expression_key: str, conditions_key: str, codes: np.ndarray) -> None:
        self.expression_key, self.conditions_key, self.codes = expression_key, conditions_key, codes

    def __call__(self, rows: Rows, numbers: np.ndarray) -> dict[str, Tensor]:
        """Make a batch dense, and look up the conditions of its cells."""
        tensors = {self.expression_key: torch.from_numpy(dense(rows))}
        if self.codes.shape[1]:
            tensors[self.conditions_key] = torch.from_numpy(self.codes[numbers].astype(np.float32))
        return tensors


def window_plan(
    indices: np.ndarray,
    batch_size: int,
    batches: Batches | None,
    *,
    block_size: int,
    window_size: int = WINDOW_SIZE,
) -> WindowPlan:
    """Plan the passes over some cells: in order, or as a stage's batches say."""
    if batches is None:
        return WindowPlan(indices, batch_size, block_size=block_size, window_size=window_size)
    return WindowPlan(
        indices,
        batch_size,
        block_size=block_size,
        window_size=window_size,
        shuffle=batches.seed is not None,
        seed=batches.seed or 0,
        rank=batches.rank,
        n_ranks=batches.n_processes,
    )


def suitable_block(rows_per_chunk: float) -> int:
    """Return a number of neighbouring rows that are read together from a file whose parts have so many rows."""
    return int(np.clip(np.ceil(rows_per_chunk), BLOCK_SIZE, LARGEST_BLOCK))
