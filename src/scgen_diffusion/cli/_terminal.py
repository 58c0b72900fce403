"""What the user sees: messages on stderr, results on stdout, and errors as one line and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
import warnings
from contextlib import contextmanager
from dis import opmap
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._signals import Signals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType, TracebackType

PROGRAM = "scgen-diffusion"
PACKAGE = __name__.partition(".")[0]
FOLDER = str(Path(__file__).parents[1])
TALKATIVE = ("lightning", "lightning.pytorch", "lightning.fabric", "scvi", "mudata", "anndata", "fontTools")
WIDTH = 120  # of wrapped text at most
COLOURS = {"[warning]": "red", "[note]": "yellow", "[ok]": "green"}
OF_REQUESTS = (ValueError, LookupError, TypeError, FileNotFoundError, FileExistsError)


class ExitCode(IntEnum):
    """What the process tells the script that called it."""

    DONE = 0
    FAILED = 1
    WRONG_REQUEST = 2
    BELOW_THRESHOLD = 3
    INTERRUPTED = 130
    TERMINATED = 143


class Stop(click.ClickException):
    """The end of a command, with a message and an exit code."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = int(code)  # type: ignore[misc]  # click's own exceptions do so, too


class Terminal:
    """Where a command speaks.

    Parameters
    ----------
    quiet
        Whether to keep back everything but errors.
    verbose
        Whether to show the messages of libraries, and tracebacks.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self.signals = Signals()
        self.on_interrupt = ""

    @classmethod
    def of(cls, *, quiet: bool, verbose: bool) -> Terminal:
        """Make a terminal, unless the wishes contradict each other."""
        if quiet and verbose:
            msg = "--quiet and --verbose exclude each other."
            raise click.UsageError(msg)
        return cls(quiet=quiet, verbose=verbose)

    @property
    def has_bars(self) -> bool:
        """Whether progress is shown as bars; elsewhere it is told in lines."""
        return not self.quiet and sys.stderr.isatty()

    def say(self, message: str) -> None:
        """Tell the user something; once, where Lightning starts this very command for each device."""
        if not self.quiet and os.environ.get("LOCAL_RANK", "0") == "0":
            click.echo(message, err=True)

    def say_wrapped(self, message: str, label: str = "") -> None:
        """Tell something long, wrapped where a person reads it; ``label`` stands before it, coloured."""
        if self.has_bars:
            indent = " " * (len(label) + bool(label))
            message = click.wrap_text(message, min(shutil.get_terminal_size().columns, WIDTH), indent, indent).lstrip()
        self.say(f"{click.style(label, fg=COLOURS.get(label))} {message}" if label else message)

    def result(self, line: str | Path) -> None:
        """Write one line for the script that called."""
        click.echo(str(line))

    def libraries(self) -> ModuleType:
        """Import what takes seconds, and silence what talks."""
        if self.has_bars:
            click.echo("Loading PyTorch and scvi-tools ...", err=True, nl=False)
        import scvi  # noqa: F401  sets levels of loggers, which are set again below

        import scgen_diffusion.model

        if self.has_bars:
            click.echo("\r\x1b[K", err=True, nl=False)
        if not self.verbose:
            for name in TALKATIVE:
                logging.getLogger(name).setLevel(logging.ERROR)  # libraries set their own when they are imported
        return scgen_diffusion

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Show messages, heed signals, and turn errors into :class:`Stop`."""
        with self._showing_messages(), self.signals.heeded():
            try:
                yield
            except (click.ClickException, click.exceptions.Exit):
                raise
            except (KeyboardInterrupt, SystemExit) as error:
                self._note_exit(error)
                raise self.interrupted() from error
            except Exception as error:
                raise Stop(describe(error), code_of(error)) from error

    def _note_exit(self, error: BaseException) -> None:
        """Pass on an exit that has nothing to do with a signal; another process of the run may have got it."""
        if isinstance(error, SystemExit):
            self.signals.terminated = self.signals.terminated or error.code == ExitCode.TERMINATED
            if not self.signals.received and not self.signals.terminated:
                raise error

    def interrupted(self) -> Stop:
        """Return the end of a command that a signal stopped."""
        code = ExitCode.TERMINATED if self.signals.terminated else ExitCode.INTERRUPTED
        what = "Terminated" if self.signals.terminated else "Interrupted"
        return Stop(f"{what}. {self.on_interrupt}".strip(), code)

    @contextmanager
    def _showing_messages(self) -> Iterator[None]:
        logger, handler = logging.getLogger(PACKAGE), _Handler(self)
        levels = {name: logging.getLogger(name).level for name in (PACKAGE, *TALKATIVE)}
        propagates, logger.propagate = logger.propagate, False
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if self.verbose else logging.INFO)
        with warnings.catch_warnings():
            warnings.showwarning = self._show_warning  # type: ignore[assignment]  # takes what that takes
            try:
                yield
            finally:
                logger.removeHandler(handler)
                logger.propagate = propagates
                for name, level in levels.items():
                    logging.getLogger(name).setLevel(level)

    def _show_warning(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any
    ) -> None:
        """Show our warnings; those of libraries are not the user's to mend."""
        if self.verbose:
            self.say(warnings.formatwarning(message, category, filename, lineno).strip())
        elif filename.startswith(FOLDER):
            self.say(f"{PROGRAM}: warning: {message}")


class _Handler(logging.Handler):
    """Hands the package's log to a terminal."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self.terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """Say one record."""
        prefix = f"{PROGRAM}: warning: " if record.levelno >= logging.WARNING else ""
        self.terminal.say(prefix + record.getMessage())


def code_of(error: Exception) -> ExitCode:
    """Tell a request that cannot be met, which our own checks found, from work that failed."""
    is_request = isinstance(error, OF_REQUESTS) and " " in str(error) and _raised_by_us(error.__traceback__)
    return ExitCode.WRONG_REQUEST if is_request else ExitCode.FAILED


def describe(error: Exception) -> str:
    """Say in one line what went wrong: our messages as they are, those of others with their kind."""
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        is_bare = error.strerror == os.strerror(errno.ENOSPC)  # our own errors say more
        advice = " Make room, and give the same command again." if is_bare else ""
        return f"{where}{error.strerror.splitlines()[0].rstrip('.')}.{advice}"
    written = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if _raised_by_us(error.__traceback__):
        return written.replace("set overwrite=True", "give --overwrite")
    first = next(iter(written.strip().splitlines()), "")
    kind = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
    return f"{kind}: {first} (--verbose shows where)" if first else f"{kind} (--verbose shows where)"


def _raised_by_us(traceback: TracebackType | None) -> bool:
    """Tell errors that a ``raise`` of ours made from those that Python found in our code, which are faults of ours."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None or not traceback.tb_frame.f_globals.get("__name__", "").startswith(PACKAGE):
        return False
    return traceback.tb_frame.f_code.co_code[traceback.tb_lasti] == opmap["RAISE_VARARGS"]
