"""Checkpoints of a stage: whole or absent, and resumed from by the same call."""

from __future__ import annotations

import logging
import os
import pickle
import time
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from scgen_diffusion._compat import dump_checkpoint

from ._distributed import from_all_processes, from_first_process
from ._interruption import StoppedByUserError

if TYPE_CHECKING:
    from pathlib import Path

    import lightning.pytorch as pl

    from ._stage_plan import StagePlan

logger = logging.getLogger(__name__)


class StageCheckpoint(Callback):
    """Write one checkpoint over and over, beside its goal first, so that an interruption never leaves half a file.

    It is written at ends of epochs, in the middle of long epochs, and when the user or the system stops training. The first process writes.
    A state that is no number any more is not written, so that the last good one stays.

    Parameters
    ----------
    path
        The checkpoint.
    every_n_epochs
        How often it is written at the end of an epoch; the end of training is written too.
    minutes
        Longest time between two checkpoints, as far as steps take equally long.
    """

    def __init__(self, path: Path, every_n_epochs: int, minutes: float = float("inf")) -> None:
        self.path = path
        self.every_n_epochs = every_n_epochs
        self.timer = StepTimer(60 * minutes)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that all processes see the same file, or none; otherwise they would wait for each other forever."""
        check_seen_by_all(self.path)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.timer.start(trainer.global_step)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: StagePlan, batch: Any, batch_idx: int) -> None:
        """Write the checkpoint if it is due; a step's last work, such as averaging weights, is done when the next one starts."""
        pl_module.position = (trainer.current_epoch, batch_idx)
        if batch_idx and self.timer.is_due(trainer.global_step):
            pl_module.means["train"].pool()
            self._write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Write the checkpoint if it is due."""
        pl_module.position = (trainer.current_epoch + 1, 0)
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Write the last state of a stage that ended by itself."""
        pl_module.is_finished = True
        self._write(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: StagePlan, exception: BaseException) -> None:
        """Write the checkpoint where training stops because the user or the system said so, which the processes agreed on."""
        if isinstance(exception, SIGTERMException | StoppedByUserError):
            n_done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            pl_module.position = (trainer.current_epoch, n_done)
            pl_module.means["train"].pool()
            self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Let the first process write, without waiting for others, which may be gone."""
        if trainer.is_global_zero and not pl_module.is_finite:
            logger.warning("%s is not written: losses or weights are NaN or infinite.", self.path)
        elif trainer.is_global_zero:  # `trainer.save_checkpoint` would have all processes come together
            write_whole(dump_checkpoint(trainer), self.path)
        self.timer.start(trainer.global_step)


class StepTimer:
    """Tell at which steps something is due that should happen every so many seconds.

    In a distributed run the first process's clock decides. The others ask it at a few steps only, which follow from how long steps took.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._began = time.monotonic()
        self._first_step = self._next_question = 0

    def start(self, step: int) -> None:
        """Start anew at a step."""
        self._began, self._first_step, self._next_question = time.monotonic(), step, step + 1

    def is_due(self, step: int) -> bool:
        """Tell whether it is time, in all processes alike."""
        if step < self._next_question or self.seconds == float("inf"):
            return False
        n_steps, elapsed = step - self._first_step, time.monotonic() - self._began
        left = (self.seconds - elapsed) * n_steps / max(elapsed, 1e-6)  # in steps as long as these
        is_due, wait = from_first_process((elapsed >= self.seconds, int(min(max(left, 1), n_steps + 1))))
        self._next_question = step + wait
        return is_due


def write_whole(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that its name never stands for a part of it, even if the machine fails."""
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_seen_by_all(path: Path) -> None:
    """Raise unless all processes find the same checkpoint, or none.

    Raises
    ------
    FileNotFoundError
        If some processes see a file that others do not see.
    """
    sizes = from_all_processes(path.stat().st_size if path.exists() else None)
    if len(set(sizes)) > 1:
        msg = (
            f"`checkpoint_dir` must be a folder that all processes see, but {path} is not the same for all of them: put it on a file system "
            "that the machines share."
        )
        raise FileNotFoundError(msg)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises
    ------
    ValueError
        If the file is damaged, or holds more than plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError) as error:
        msg = f"The checkpoint {path} is damaged or holds more than plain values; remove it to start anew. ({error})"
        raise ValueError(msg) from error


def read_finished(path: Path | None, max_epochs: int) -> dict[str, Any] | None:
    """Return the checkpoint of a stage that ended by itself within ``max_epochs``.

    Raises
    ------
    ValueError
        If it went further than that.
    """
    if path is None or not path.exists():
        return None
    checkpoint = read_checkpoint(path)
    if checkpoint.get("is_finished") and checkpoint.get("max_epochs") == max_epochs:
        return checkpoint
    n_done = checkpoint.get("position", (0, 0))[0]
    if n_done > max_epochs:
        msg = f"The checkpoint {path} has {n_done} epochs behind it, more than the {max_epochs} that are asked for; remove it to start anew."
        raise ValueError(msg)
    return None
