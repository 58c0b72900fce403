"""Bars, which draw themselves anew in one line, as lines at intervals: for logs of batch jobs."""

from __future__ import annotations

import io
import sys
import time
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._terminal import Terminal

INTERVAL = 30.0  # seconds between two lines


class BarsAsLines(io.TextIOBase):
    """Pass text on, but of what begins with a carriage return, as bars do, now and then a line, and the last one.

    Parameters
    ----------
    stream
        Where to.
    interval
        Seconds between two lines.
    """

    def __init__(self, stream: TextIO, interval: float = INTERVAL) -> None:
        self.stream, self.interval = stream, interval
        self.told = time.monotonic()
        self.bar = ""

    def write(self, text: str) -> int:
        """Take text of a bar, or any other."""
        if text.startswith("\r"):
            self.bar = text.strip()
            if time.monotonic() - self.told >= self.interval:
                self._tell()
        elif text == "\n" and self.bar:
            self._tell()
        else:
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what was written."""
        self.stream.flush()

    def _tell(self) -> None:
        self.stream.write(f"{self.bar}\n")
        self.told, self.bar = time.monotonic(), ""


@contextmanager
def bars_as_lines(terminal: Terminal) -> Iterator[None]:
    """Turn bars into lines where there is no terminal to draw them on."""
    if terminal.has_bars:
        yield
        return
    with redirect_stderr(BarsAsLines(sys.stderr)):
        yield
