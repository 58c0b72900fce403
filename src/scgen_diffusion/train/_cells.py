"""Cells to train on, wherever they lie, and a stage's loaders over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import lightning.pytorch as pl

from ._distributed import is_distributed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    from torch import Tensor


class TrainingCells(Protocol):
    """What training asks of cells: those of an AnnData or MuData, of files, or of a class of one's own."""

    @property
    def n_cells(self) -> int:
        """How many cells there are."""

    @property
    def codes(self) -> np.ndarray:
        """Their conditions, ``(cells, columns)``."""

    @property
    def digest(self) -> str:
        """Tell these cells from others; checkpoints are resumed on the same cells only."""

    def check(self) -> None:
        """Raise if the cells are not what they were when they were registered."""

    def loader(
        self, indices: np.ndarray | None, batch_size: int, *, shuffle: bool = False, shared: bool = False
    ) -> Iterable[Mapping[str, Tensor]]:
        """Return batches of expression and conditions, by the names of the registry; it can be gone through again and again.

        Parameters
        ----------
        indices
            Which cells; None for all.
        batch_size
            Cells per batch.
        shuffle
            Whether each pass has another order; otherwise that of ``indices``.
        shared
            Whether each process of a distributed run reads its share.
        """


class CellDataModule(pl.LightningDataModule):
    """Loaders of a stage that trains on cells.

    Parameters
    ----------
    cells
        All cells of the model.
    train_indices, validation_indices
        Rows to train and to validate on.
    batch_size
        Cells per step.
    """

    def __init__(
        self, cells: TrainingCells, train_indices: np.ndarray, validation_indices: np.ndarray, batch_size: int
    ) -> None:
        super().__init__()
        self.cells = cells
        self.train_indices = train_indices
        self.validation_indices = validation_indices
        self.batch_size = batch_size

    def train_dataloader(self) -> Iterable[Mapping[str, Tensor]]:
        """Shuffle the training cells; in a distributed run each process reads its share."""
        return self.cells.loader(self.train_indices, self.batch_size, shuffle=True, shared=is_distributed())

    def val_dataloader(self) -> Iterable[Mapping[str, Tensor]]:
        """Read the validation cells in order; no loader if there are none."""
        if not len(self.validation_indices):
            return []
        return self.cells.loader(self.validation_indices, self.batch_size, shared=is_distributed())
