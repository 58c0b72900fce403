"""Ctrl-C, and the SIGTERM by which schedulers end a job: both stop the work in order."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


class Signals:
    """Which signal came, if any. SIGTERM is passed on as an interrupt, which training turns into an orderly stop."""

    def __init__(self) -> None:
        self.received = False
        self.terminated = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Heed signals; Python hands them to its main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {signal.SIGINT: self._interrupt, signal.SIGTERM: self.terminate}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def terminate(self, *_: Any) -> None:
        """Take note of SIGTERM, and interrupt whatever heeds interrupts now."""
        self.received = self.terminated = True
        signal.raise_signal(signal.SIGINT)

    def noting(self, handler: Any, *, terminated: bool = False) -> Callable[[int, FrameType | None], None]:
        """Return a handler that takes note of the signal, and then does what another one does."""

        def note_and_handle(number: int, frame: FrameType | None) -> None:
            self.received = True
            self.terminated = self.terminated or terminated
            if callable(handler):
                handler(number, frame)

        return note_and_handle

    def _interrupt(self, *_: Any) -> None:
        self.received = True
        raise KeyboardInterrupt
