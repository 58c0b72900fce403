"""The command line: ``scgen-diffusion train``, ``generate``, ``predict``, ``evaluate``, ``report`` and ``info``.

PyTorch is imported only when a command runs, so that help and completion are quick.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import click

from scgen_diffusion._compat import TERMINATED
from scgen_diffusion._version import VERSION

from ._judging import evaluate, report
from ._models import generate, info, predict, train
from ._terminal import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["cli", "main", "run"]


@click.group(
    PROGRAM,
    commands=[train, generate, predict, evaluate, report, info],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(VERSION, message="%(prog)s %(version)s")
def cli() -> None:
    """Conditional diffusion models of single cells: train on files, generate to files, and evaluate.

    \b
    Exit codes:
      0    done
      1    failed; --verbose shows where
      2    wrong options, files, names or values
      130  interrupted by Ctrl-C (143: by SIGTERM); run the same command again to resume

    Results go to files and stdout, messages to stderr.
    """  # noqa: D301  click looks for the character \b


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code.

    Parameters
    ----------
    arguments
        Arguments after the program's name; default: those of this process.
    """
    try:
        cli.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return 0


def run() -> None:
    """Run the command line and end the process.

    SIGTERM, which schedulers send, ends the work cleanly. Progress bars write a line to a log every 30 seconds.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    if not sys.stderr.isatty():
        for name in ("TQDM_MININTERVAL", "TQDM_MAXINTERVAL"):
            os.environ.setdefault(name, "30")
    sys.exit(main())
