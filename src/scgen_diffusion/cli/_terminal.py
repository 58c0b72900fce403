"""Output of the commands: messages on stderr, results on stdout, and errors as one line and an exit code."""

from __future__ import annotations

import errno
import inspect
import logging
import os
import re
import sys
import traceback
import warnings
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

Spelling: TypeAlias = "str | Callable[[re.Match[str]], str]"

PROGRAM = "scgen-diffusion"
PACKAGE = __name__.partition(".")[0]
FOLDER = str(Path(__file__).parents[1])
TALKATIVE = ("lightning", "lightning.pytorch", "lightning.fabric", "scvi", "mudata", "anndata", "fontTools")
OF_REQUESTS = (ValueError, KeyError, TypeError, FileNotFoundError, FileExistsError)
OF_SYSTEM = (OSError, MemoryError, RuntimeError)  # device errors of PyTorch are RuntimeErrors
FIRST_EQUALS = "In KEY=VALUE, the key ends at the first '='; rename a column that has one."

SPELLINGS: dict[str, Spelling] = {  # advice of Python, as patterns, and what to do on the command line
    r"set overwrite=True": "give --overwrite",
    r"set uns\['log1p'\] = \{\}": "give --values log1p",
    r"(If `adata\.raw` has the counts): `adata = (.*?)`": r"\1, write them to a file (`\2` in Python)",
    r"with `genes='shared'`, or choose some with `genes=\[\.\.\.\]`": "with --shared-genes",
    r"`likelihood='gaussian'`": "--set likelihood=gaussian",
    r"(as|with) `layer=\.\.\.`": "by --layer",
    r"method='inversion'": "--method inversion",
    r"Call `prepare_query_anndata` to": "Write a file with them first; `prepare_query_anndata` in Python can",
    r" and keeps its weights, or those of the best round": "",
    r"model\.train\w*\(\)( and model\.train\w*\(\))*": "train again",
    r"; `train_\w+` trains another|(?<=\.) `train_\w+` trains it( alone)?\.": "",
    r" in `setup_anndata`": "",
    r"Compare the common genes: real\[.*?\], \w+\[.*?\]": "To compare the common genes, give --shared-genes",
    r"`real_test\b": "`REAL",
    r"`Guidance\((\w+)=\.\.\.\)`": r"--guidance-\1",
    r"`condition_strategy='additive'`": "--set condition_strategy=additive",
    r"`modalities\['([^']*)'\]`": r"--modality \1=...",
    r"`plan_kwargs`: the (autoencoder|prior) has": r"--\1: the \1 has",
    r"`plan_kwargs`: the diffusion has": "--recipe: the diffusion has",
    r"`indices`": "--where",
    r"call (model\.)?train\w*\(\) first": "run `scgen-diffusion train` first",
    r"(control value .*) in obs\['([^']*)'\]\. Give the text '([^'\\]*)'": (
        r"""\1 in \2. Give text: --control '\2="\3"'"""
    ),
    r"scgen_diffusion\.metrics\.evaluate": "`scgen-diffusion evaluate`",
    r"((?<!value )'([^']+)'.*Known, closest first: .*'\2=.*)": rf"\1 {FIRST_EQUALS}",  # the name was cut
}


def in_shell(message: str) -> str:
    """Return a message of Python with advice for the command line, where arguments are options of the command."""
    for pattern, advice in SPELLINGS.items():
        message = re.sub(pattern, advice, message, flags=re.DOTALL)
    context = click.get_current_context(silent=True)
    params, given = (context.command.params, context.params) if context is not None else ((), {})
    options = {param.name: param.opts[0] for param in params if isinstance(param, click.Option)}
    for name, of_table in {"condition": "condition_table", "library_size": "library_size_column"}.items():
        if given.get(of_table):
            options[name] = options[of_table]

    def as_option(found: re.Match[str]) -> str:
        names = (found[1], re.sub(r"(_key|_value)?s$", "", found[1]))
        return next((f"{options[name]}{found[2]}" for name in names if name in options), found[0])

    return re.sub(r"`(\w+)(?:=True)?((?:='[^']*')?)`", as_option, message)


class ExitCode(IntEnum):
    """Exit codes of the process."""

    DONE = 0
    FAILED = 1
    WRONG_REQUEST = 2
    NOT_GOOD_ENOUGH = 3
    INTERRUPTED = 130
    TERMINATED = 143


class Stop(click.ClickException):
    """Ends a command with a message and an exit code; a bug in this package is shown with its traceback."""

    def __init__(self, message: str, code: int, *, is_bug: bool = False) -> None:
        super().__init__(message)
        self.exit_code = int(code)  # type: ignore[misc]  # click's own exceptions do so, too
        self.is_bug = is_bug

    @classmethod
    def of(cls, error: Exception) -> Stop:
        """Classify an error as a wrong request, a failure, or a bug in this package."""
        frames = traceback.extract_tb(error.__traceback__)
        is_ours = bool(frames) and frames[-1].filename.startswith(FOLDER)
        is_check = is_ours and (frames[-1].line or "raise").startswith("raise")  # a message for users
        code = ExitCode.WRONG_REQUEST if is_check and isinstance(error, OF_REQUESTS) else ExitCode.FAILED
        if isinstance(error, OSError) and error.strerror:
            where = "" if error.filename is None else f"{error.filename}: "
            is_bare = error.strerror == os.strerror(errno.ENOSPC)  # our own errors say more
            advice = " Make room and run the same command again." if is_bare else ""
            return cls(f"{where}{error.strerror.splitlines()[0].rstrip('.')}.{advice}", code)
        if is_check:
            message = str(error.args[0]) if isinstance(error, KeyError) else str(error)
            return cls(in_shell(message), code)
        kind = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
        first = next(iter(str(error).strip().splitlines()), "")
        message = f"{kind}: {first}" if first else kind
        if is_ours and not isinstance(error, OF_SYSTEM):
            advice = f"This is a bug in {PROGRAM}; please report it with the lines above."
            return cls(f"{message}. {advice}", ExitCode.FAILED, is_bug=True)
        return cls(f"{message} (--verbose shows where)", ExitCode.FAILED)


class Terminal:
    """Writes the messages and results of a command.

    Parameters
    ----------
    quiet
        Whether to show only errors.
    verbose
        Whether to show messages of libraries, and tracebacks.

    Raises
    ------
    click.UsageError
        If both are True.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        if quiet and verbose:
            msg = "--quiet and --verbose exclude each other."
            raise click.UsageError(msg)
        self.quiet = quiet
        self.verbose = verbose
        self.on_interrupt = ""

    def say(self, message: str) -> None:
        """Write a message."""
        if not self.quiet:
            click.echo(message, err=True)

    def result(self, line: str | Path) -> None:
        """Write one line of results to stdout."""
        click.echo(str(line))

    def libraries(self) -> ModuleType:
        """Import the slow libraries and silence their messages."""
        if sys.stderr.isatty():
            self.say("Loading PyTorch and scvi-tools ...")
        import scvi  # noqa: F401  it sets levels of loggers, which are changed below

        import scgen_diffusion.model

        if not self.verbose:
            for name in TALKATIVE:
                logging.getLogger(name).setLevel(logging.ERROR)
        return scgen_diffusion

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Show messages, and turn any exception into a :class:`Stop`."""
        try:
            with self._showing_messages():
                yield
        except KeyboardInterrupt as error:
            raise self.stopped(ExitCode.INTERRUPTED) from error
        except SystemExit as error:
            if error.code == ExitCode.TERMINATED:
                raise self.stopped(ExitCode.TERMINATED) from error
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns it into an exit
                raise self.stopped(ExitCode.INTERRUPTED) from error
            raise
        except click.ClickException as error:
            if error.__cause__ is not None and self.verbose:
                click.echo("".join(traceback.format_exception(error.__cause__)), err=True, nl=False)
            raise
        except Exception as error:
            stop = Stop.of(error)
            if self.verbose or stop.is_bug:
                click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
            raise stop from error

    def stopped(self, code: ExitCode) -> Stop:
        """Return the end of a command that a signal stopped."""
        what = "Terminated" if code == ExitCode.TERMINATED else "Interrupted"
        return Stop(f"{what}. {self.on_interrupt}".strip(), code)

    @contextmanager
    def _showing_messages(self) -> Iterator[None]:
        logger, handler = logging.getLogger(PACKAGE), logging.Handler()
        handler.emit = self._show_record  # type: ignore[method-assign]
        levels = {name: logging.getLogger(name).level for name in (PACKAGE, *TALKATIVE)}
        propagates, logger.propagate = logger.propagate, False
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if self.verbose else logging.INFO)
        with warnings.catch_warnings():
            warnings.showwarning = self._show_warning  # type: ignore[assignment]  # same arguments
            try:
                yield
            finally:
                logger.removeHandler(handler)
                logger.propagate = propagates
                for name, level in levels.items():
                    logging.getLogger(name).setLevel(level)

    def _show_record(self, record: logging.LogRecord) -> None:
        prefix = f"{PROGRAM}: warning: " if record.levelno >= logging.WARNING else ""
        self.say(prefix + in_shell(record.getMessage()))

    def _show_warning(self, message: Warning | str, category: type[Warning], filename: str, line: int, *_: Any) -> None:
        """Show warnings of this package, and with ``verbose`` those of libraries too."""
        if self.verbose:
            self.say(warnings.formatwarning(message, category, filename, line).strip())
            return
        frames = (found.frame.f_globals.get("__name__", "") for found in inspect.stack(context=0)[1:])
        if next(name for name in frames if name not in ("warnings", "_py_warnings")).startswith(PACKAGE):
            self.say(f"{PROGRAM}: warning: {in_shell(str(message))}")
