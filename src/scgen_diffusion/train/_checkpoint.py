"""Checkpoints of a stage: whole or absent, and resumed from by the same call."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    from pathlib import Path

    import lightning.pytorch as pl

    from ._interruption import Interruption


class StageCheckpoint(Callback):
    """Write one checkpoint over and over, beside its goal first, so that an interruption never leaves half a file.

    Parameters
    ----------
    path
        The checkpoint.
    every_n_epochs
        How often it is written; the end of training is written too, however it came.
    interruption
        Whether the user asked to stop; a stage that ends otherwise is finished.
    """

    def __init__(self, path: Path, every_n_epochs: int, interruption: Interruption) -> None:
        self.path = path
        self.every_n_epochs = every_n_epochs
        self.interruption = interruption

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint if it is due."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last state."""
        pl_module.is_finished = not self.interruption.requested
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        part = self.path.with_name(self.path.name + ".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            part.replace(self.path)


def read_finished(path: Path | None, max_epochs: int) -> dict[str, Any] | None:
    """Return the checkpoint of a stage that ended by itself within ``max_epochs``; nothing in it is executed."""
    if path is None or not path.exists():
        return None
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError) as error:
        msg = f"The checkpoint {path} is damaged or holds more than plain values; remove it to start anew. ({error})"
        raise ValueError(msg) from error
    return checkpoint if checkpoint.get("is_finished") and checkpoint.get("max_epochs") == max_epochs else None
