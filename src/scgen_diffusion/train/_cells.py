"""Cells to train on, wherever they lie, and a stage's loaders over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from scvi import REGISTRY_KEYS
from torch.utils.data import DataLoader

from ._distributed import from_all_processes
from ._resident import ResidentCells, room_for_cells
from ._stage_data import StageDataModule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import pandas as pd
    from torch import Tensor

    from ._sharing import SharedBatches


ROWS_AT_A_TIME = 1024


class TrainingCells(Protocol):
    """What training asks of cells: those of an AnnData or MuData, of files, or of a class of one's own."""

    @property
    def registry(self) -> Mapping[str, Any]:
        """What a model is built from, as scvi-tools keeps it."""

    @property
    def var(self) -> pd.DataFrame:
        """The genes' columns."""

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
        self, indices: np.ndarray | None, batch_size: int, *, batches: SharedBatches | None = None
    ) -> Iterable[Mapping[str, Tensor]]:
        """Return batches of expression and conditions, by the names of the registry; it can be gone through again and again.

        Parameters
        ----------
        indices
            Which cells; None for all.
        batch_size
            Cells per batch.
        batches
            Which of ``indices`` are in each batch, as positions among them; default: all in order. What cannot read in any order fast takes from
            it the seed, the epoch and the share of this process, and sets ``in_parts`` and ``part_sizes``. The loader has it as its ``sampler``.
        """


class CellDataModule(StageDataModule):
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
        self._resident: ResidentCells | None = None

    def setup(self, stage: str) -> None:
        """Keep the training cells in the device's memory, if it is not the host's and they take a small part of it."""
        device = self.trainer.strategy.root_device
        if limit := min(from_all_processes(room_for_cells(device))):  # all in the same way: their batches differ
            batches = self.cells.loader(self.train_indices, ROWS_AT_A_TIME)
            n_cells = len(self.train_indices)
            self._resident = ResidentCells.of(batches, REGISTRY_KEYS.X_KEY, device, n_cells=n_cells, limit=limit)

    def teardown(self, stage: str) -> None:
        """Free the device's memory, also where the trainer, which the model keeps, still knows its loaders."""
        if self._resident is not None:
            self._resident.free()
            self._resident = None

    def train_dataloader(self) -> Iterable[Mapping[str, Tensor]]:
        """Shuffle the training cells; in a distributed run each process reads its share."""
        batches = self._shuffled(len(self.train_indices), self.batch_size)
        if self._resident is not None:
            return DataLoader(self._resident, sampler=batches, batch_size=None)
        return self.cells.loader(self.train_indices, self.batch_size, batches=batches)

    def val_dataloader(self) -> Iterable[Mapping[str, Tensor]]:
        """Read the validation cells in order, each process its share; no loader if there are none."""
        if not len(self.validation_indices):
            return []
        batches = self._in_order(len(self.validation_indices), self.batch_size)
        return self.cells.loader(self.validation_indices, self.batch_size, batches=batches)
