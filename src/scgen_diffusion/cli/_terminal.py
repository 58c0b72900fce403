"""Messages of the commands on stderr, results on stdout, and errors as one line and an exit code."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scgen_diffusion._compat import TERMINATED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

PROGRAM = "scgen-diffusion"
PACKAGE = __name__.partition(".")[0]
FOLDER = str(Path(__file__).parents[1])
FAILED, WRONG_REQUEST, INTERRUPTED = 1, 2, 130  # exit codes
OF_REQUESTS = (ValueError, KeyError, TypeError, FileNotFoundError, FileExistsError)
TALKATIVE = ("lightning", "lightning.pytorch", "lightning.fabric", "scvi", "mudata", "anndata", "fontTools")


class Stop(click.ClickException):
    """Ends a command with a message and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click's own exceptions do so, too


def end_of(error: Exception) -> Stop:
    """Return how an error ends a command: what our own checks refuse is a wrong request, all else a failure."""
    frames = traceback.extract_tb(error.__traceback__)
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    is_check = frames[-1].filename.startswith(FOLDER) and (frames[-1].line or "").startswith("raise")
    is_check |= isinstance(error, TypeError) and "unexpected keyword argument" in message  # Python's own check
    if not is_check:
        first = message.splitlines()[0] if message else "no reason is given"
        message = f"{type(error).__name__}: {first} (--verbose shows where)"
    return Stop(message, WRONG_REQUEST if is_check and isinstance(error, OF_REQUESTS) else FAILED)


class Terminal:
    """Writes messages, unless it is quiet; with ``verbose`` those of libraries and tracebacks, too."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose, self.on_interrupt = quiet, verbose, ""

    def say(self, message: str) -> None:
        """Write a message."""
        if not self.quiet:
            click.echo(message, err=True)

    def libraries(self) -> ModuleType:
        """Import the slow libraries and silence their messages."""
        if self.quiet:
            os.environ["TQDM_DISABLE"] = "1"  # which tqdm reads when it is imported
        if "scvi" not in sys.modules:
            self.say("Loading PyTorch and scvi-tools")
        import scvi  # noqa: F401  it sets levels of loggers, which are changed below

        import scgen_diffusion.model

        for name in () if self.verbose else TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        return scgen_diffusion

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Show our own log and warnings, and turn any exception into a :class:`Stop`."""
        logger, handler = logging.getLogger(PACKAGE), logging.Handler()
        handler.emit = self._show_record  # type: ignore[method-assign]
        before = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if self.verbose else logging.INFO)
        logger.propagate = False
        try:
            with warnings.catch_warnings():
                warnings.showwarning = self._show_warning  # type: ignore[assignment]  # same arguments
                yield
        except (KeyboardInterrupt, SystemExit, Exception) as error:
            if self.verbose:
                traceback.print_exception(error)
            if isinstance(error, click.ClickException):
                raise
            if isinstance(error, Exception):
                raise end_of(error) from error
            if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
                raise self.stopped() from error  # Lightning makes an exit of an interrupt
            if error.code == TERMINATED:
                raise self.stopped(TERMINATED) from error
            raise
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before[0])
            logger.propagate = before[1]

    def stopped(self, exit_code: int = INTERRUPTED) -> Stop:
        """Return the end of a command that a signal stopped."""
        how = "Interrupted" if exit_code == INTERRUPTED else "Terminated"
        return Stop(f"{how}. {self.on_interrupt}".strip(), exit_code)

    def _show_record(self, record: logging.LogRecord) -> None:
        prefix = f"{PROGRAM}: warning: " if record.levelno >= logging.WARNING else ""
        self.say(prefix + record.getMessage())

    def _show_warning(self, message: Warning | str, category: type[Warning], filename: str, line: int, *_: Any) -> None:
        frames = (found.frame.f_globals.get("__name__", "") for found in inspect.stack(context=0)[1:])
        source = next(name for name in frames if name not in ("warnings", "_py_warnings"))
        if self.verbose or source.startswith(PACKAGE):
            self.say(f"{PROGRAM}: warning: {message}")
