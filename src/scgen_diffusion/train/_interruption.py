"""Ctrl-C ends training after the step at hand, and keeps what was learned."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

from ._distributed import any_process, is_distributed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    import lightning.pytorch as pl

logger = logging.getLogger(__name__)

STEPS_BETWEEN_QUESTIONS = 16


@dataclass
class Interruption:
    """Whether the user asked to stop."""

    requested: bool = False


class AgreedStop(Callback):
    """Stop all processes of a distributed run after the same step when any of them was interrupted."""

    def __init__(self, interruption: Interruption) -> None:
        self.interruption = interruption

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask the others every few steps, and before they validate."""
        asks = is_distributed() and (trainer.is_last_batch or batch_idx % STEPS_BETWEEN_QUESTIONS == 0)
        if asks and any_process(self.interruption.requested, pl_module.device):
            self.interruption.requested = trainer.should_stop = True


@contextmanager
def stop_on_interrupt(trainer: pl.Trainer, interruption: Interruption) -> Iterator[None]:
    """Turn the first Ctrl-C into an orderly stop of ``trainer``, and take note of it; a second one interrupts at once.

    Signals reach Python's main thread only; in other threads nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    previous = signal.getsignal(signal.SIGINT)

    def stop(signal_number: int, frame: FrameType | None) -> None:
        logger.warning("Interrupted: training stops after this step and keeps its weights. Press again to abort.")
        interruption.requested = True
        if not is_distributed():  # several processes agree first
            trainer.should_stop = True
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
