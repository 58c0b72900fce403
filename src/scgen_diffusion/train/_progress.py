"""One progress bar for each stage, which says in words what it does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from ._stage_plan import StagePlan

BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal, but a log


class StageProgress(ProgressBar):
    """Show the share of a stage's steps that is done, its epoch, its losses and the time that is left."""

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._bar: Any = None

    def disable(self) -> None:
        """Show nothing, as Lightning has it in all processes but the first."""
        self._is_enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Begin the bar, where a checkpoint left off."""
        self._bar = tqdm(
            desc=f"Training the {pl_module.name}",
            total=pl_module.n_steps,
            initial=trainer.global_step,
            bar_format=BAR,
            mininterval=0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES,
            disable=not self._is_enabled,
        )

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Count the step."""
        self._bar.update(trainer.global_step - self._bar.n)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: StagePlan) -> None:
        """Say the epoch and its losses."""
        losses = [
            f", {word} {float(trainer.callback_metrics[name]):.4g}"
            for subset, word in (("train", "loss"), ("validation", "validation loss"))
            if (name := f"{pl_module.name}_loss_{subset}") in trainer.callback_metrics
        ]
        epoch = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        self._bar.set_description_str(f"Training the {pl_module.name}: {epoch}{''.join(losses)}", refresh=False)

    def on_train_end(self, *_: Any) -> None:
        """Leave the last state where it is."""
        self._bar.close()

    def on_exception(self, *_: Any) -> None:
        """Leave the bar where training stopped."""
        if self._bar is not None:
            self._bar.close()
