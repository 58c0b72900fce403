"""Ctrl-C ends training after the step at hand, and keeps what was learned."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    import lightning.pytorch as pl

logger = logging.getLogger(__name__)


@dataclass
class Interruption:
    """Whether the user asked to stop."""

    requested: bool = False


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
        interruption.requested = trainer.should_stop = True
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
