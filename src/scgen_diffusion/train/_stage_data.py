"""What the data modules of all stages share: batches that follow from the stage's seed and position."""

from __future__ import annotations

from typing import Any, TypeVar

import lightning.pytorch as pl

from ._sharing import Share, SharedBatches, StageBatches

BatchesT = TypeVar("BatchesT", bound=StageBatches)


class StageDataModule(pl.LightningDataModule):
    """Loaders of a stage.

    Which batches come next follows from the stage that trains: its seed, and where a checkpoint left off.
    """

    def __init__(self) -> None:
        super().__init__()
        self._batches: dict[bool, StageBatches] = {}

    def share(self, number: int, *, training: bool) -> Share | None:
        """Return which rows of a batch this process has; None if that cannot be told, as for a loader of one's own."""
        batches = self._batches.get(training)
        return None if batches is None else batches.share(number)

    @property
    def order_depends_on(self) -> dict[str, Any]:
        """What decides the order of an epoch's training cells besides seed, epoch and batch size; known once the loader is there."""
        batches = self._batches.get(True)
        return {} if batches is None else batches.order_depends_on

    def _shuffled(self, n_rows: int, batch_size: int, n_draws: int | None = None) -> SharedBatches:
        """Draw training batches."""
        return self._following_stage(SharedBatches(n_rows, batch_size, seed=self.seed, n_draws=n_draws))

    def _in_order(self, n_rows: int, batch_size: int) -> SharedBatches:
        """Go through validation cells."""
        self._batches[False] = batches = SharedBatches(n_rows, batch_size)
        return batches

    def _following_stage(self, batches: BatchesT) -> BatchesT:
        """Start where the stage that trains is."""
        if self.trainer is not None:
            batches.resume(*self.trainer.lightning_module.position)
        self._batches[True] = batches
        return batches

    @property
    def seed(self) -> int:
        """Seed of the stage that trains."""
        return 0 if self.trainer is None else self.trainer.lightning_module.seed
