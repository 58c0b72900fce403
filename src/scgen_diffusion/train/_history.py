"""Metrics of every epoch, kept across interruptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from ._stage_plan import StagePlan


class HistoryRecorder(Callback):
    """Record each epoch's metrics; a checkpoint holds the record, so that a resumed run has the whole of it."""

    def __init__(self) -> None:
        self._metrics: dict[str, dict[int, float]] = {}
        self._validated = False

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take note that this epoch's validation figures are its own."""
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Add the epoch's metrics; those of a validation belong to the epoch that it closed."""
        pl_module.log_training()
        pl_module.check_loss(trainer.callback_metrics)  # before anybody keeps the epoch, or writes a checkpoint of it
        for name, value in trainer.callback_metrics.items():
            if self._validated or not name.endswith("_validation"):  # Lightning keeps those of the last validation
                self._metrics.setdefault(name, {})[trainer.current_epoch] = float(value)
        self._validated = False

    def state_dict(self) -> dict[str, Any]:
        """Return the record for a checkpoint."""
        return {"metrics": self._metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a checkpoint's record."""
        self._metrics = state_dict["metrics"]

    def as_frames(self) -> dict[str, pd.DataFrame]:
        """Return one table per metric, indexed by epoch, as scvi-tools does."""
        return {name: _frame(name, values) for name, values in self._metrics.items()}


def _frame(name: str, values: dict[int, float]) -> pd.DataFrame:
    return pd.DataFrame({name: list(values.values())}, index=pd.Index(list(values), name="epoch"))
