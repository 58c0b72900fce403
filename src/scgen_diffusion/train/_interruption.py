"""Ctrl-C and SIGTERM end training between two steps, in all processes at once, and keep what was learned."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ._distributed import is_distributed, largest_of_processes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    import lightning.pytorch as pl

logger = logging.getLogger(__name__)

STEPS_BETWEEN_QUESTIONS = 16
EXIT_CODE_OF_SIGTERM = 143


class StoppedByUserError(Exception):
    """The user pressed Ctrl-C; all processes know it, and training ends between two steps."""


@dataclass
class Interruption:
    """Whether the user asked to stop, or the system told the process to terminate."""

    requested: bool = False
    terminated: bool = False

    def agree(self) -> None:
        """Take for one's own what any of the processes was told."""
        if is_distributed():
            self.requested, self.terminated = map(bool, largest_of_processes([self.requested, self.terminated]))


class AgreedStop(Callback):
    """End all processes of a distributed run before the same step when any of them was interrupted or told to terminate.

    Lightning's own handler of SIGTERM talks to the other processes whatever these are doing; it is replaced during training.
    """

    def __init__(self, interruption: Interruption) -> None:
        self.interruption = interruption

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take note of SIGTERM; Lightning puts back what was there before training."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminate)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ask the others every few steps.

        Raises
        ------
        SIGTERMException
            If one of the processes was told to terminate.
        StoppedByUserError
            If the user stopped one of the processes. Lightning's own ``should_stop`` would take the epoch for a whole one.
        """
        if is_distributed() and batch_idx % STEPS_BETWEEN_QUESTIONS:
            return
        self.interruption.agree()
        if self.interruption.terminated:
            raise SIGTERMException
        if self.interruption.requested:
            raise StoppedByUserError

    def _terminate(self, signal_number: int, frame: FrameType | None) -> None:
        logger.warning(
            "Told to terminate: training ends after this step. With a `checkpoint_dir`, the same call goes on."
        )
        self.interruption.terminated = True


@contextmanager
def stop_on_interrupt(interruption: Interruption) -> Iterator[None]:
    """Take note of the first Ctrl-C, upon which training ends before the next step; a second one interrupts at once.

    Signals reach Python's main thread only; in other threads nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    previous = signal.getsignal(signal.SIGINT)

    def stop(signal_number: int, frame: FrameType | None) -> None:
        logger.warning("Interrupted: training stops after this step and keeps its weights. Press again to abort.")
        interruption.requested = True
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def failing_when_terminated() -> Iterator[None]:
    """Let a process that SIGTERM ends say so to its shell, for which Lightning's exit looks like a success."""
    try:
        yield
    except SIGTERMException as end:
        raise SystemExit(EXIT_CODE_OF_SIGTERM) from end
