"""The command, its subcommands, and its exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING

import click

from ._evaluate import evaluate, evaluate_perturbation
from ._generate import generate
from ._info import info
from ._report import report
from ._terminal import PROGRAM, ExitCode, Stop
from ._train import train

if TYPE_CHECKING:
    from collections.abc import Sequence

EPILOG = """\b
Exit codes:
  0    done
  1    the work failed; --verbose shows where
  2    what was asked for cannot be: options, files, names or values
  3    evaluate: the cells are not as good as was asked for
  130  interrupted by Ctrl-C; 143: by SIGTERM. The same command goes on.

Results go to files and stdout, messages to stderr."""


@click.group(
    PROGRAM,
    commands=[train, generate, evaluate, evaluate_perturbation, report, info],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
    no_args_is_help=True,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda *given: _show_version(*given),
    help="Show the version and exit.",
)
def cli() -> None:
    """Conditional diffusion models that generate single cells: train on files, generate into files, judge."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments
        What stands behind the program's name; default: that of this process.

    Returns
    -------
    The exit code: 0 done, 1 the work failed, 2 a wrong request, 3 cells below the threshold, 130 and 143 stopped by a signal.
    """
    try:
        cli.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.WRONG_REQUEST
    except click.ClickException as error:
        _show(error, is_verbose=_is_verbose(arguments))
        return error.exit_code
    except click.Abort:
        click.echo(f"{PROGRAM}: Interrupted.", err=True)
        return ExitCode.INTERRUPTED
    return ExitCode.DONE


def run() -> None:
    """Run the command line and end the process."""
    limit_numba_threads()
    sys.exit(main())


def limit_numba_threads() -> None:
    """Hold numba to ``OMP_NUM_THREADS``: scanpy computes by it, and where it starts, PyTorch takes its number of threads, all cores."""
    if threads := os.environ.get("OMP_NUM_THREADS"):
        os.environ.setdefault("NUMBA_NUM_THREADS", threads.split(",")[0])


def _is_verbose(arguments: Sequence[str] | None) -> bool:
    given = sys.argv[1:] if arguments is None else arguments
    return "--verbose" in given or "-v" in given


def _show(error: click.ClickException, *, is_verbose: bool) -> None:
    if is_verbose and error.__cause__ is not None:
        click.echo("".join(traceback.format_exception(error.__cause__)), err=True, nl=False)
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else PROGRAM
    word = "" if isinstance(error, Stop) and error.exit_code >= ExitCode.BELOW_THRESHOLD else "error: "
    click.echo(f"{where}: {word}{error.format_message()}", err=True)
    if isinstance(error, click.UsageError):
        click.echo(f"Try '{where} --help'.", err=True)


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        import scgen_diffusion

        click.echo(f"{PROGRAM} {scgen_diffusion.__version__}")
        ctx.exit()
