"""Checkpoints of a stage: whole or absent, and resumed from by the same call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    from pathlib import Path

    import lightning.pytorch as pl


class StageCheckpoint(Callback):
    """Write one checkpoint over and over, beside its goal first, so that an interruption never leaves half a file.

    Parameters
    ----------
    path
        The checkpoint.
    every_n_epochs
        How often it is written; the last epoch, and one that was stopped, are written too.
    """

    def __init__(self, path: Path, every_n_epochs: int) -> None:
        self.path = path
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint if it is due."""
        n_done = trainer.current_epoch + 1
        if n_done % self.every_n_epochs == 0 or n_done == trainer.max_epochs or trainer.should_stop:
            part = self.path.with_name(self.path.name + ".part")
            part.parent.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                part.replace(self.path)
