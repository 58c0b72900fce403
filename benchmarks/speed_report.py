"""All CPU figures of speed in one command: measured, stored, drawn, and written into the pages.

    python benchmarks/speed_report.py                # twenty minutes on two quiet cores
    python benchmarks/speed_report.py --write-only   # tables and pictures again, from what is stored
    python benchmarks/speed_report.py --quick        # a few small figures, to see that it runs

Stores ``results/speed.csv``, ``speed_scaling.csv`` and ``speed_threads.csv``; writes ``results/speed.md``, ``docs/_static/speed_*.png`` and what stands between
the marks ``<!-- speed... -->`` in ``docs/user_guide/speed.md`` and ``README.md``.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from history import compare, draw_history, tabulate_changes
from results import describe_processor, read_table, store_rows, write_block, write_text
from scaling import draw
from speed import RESULTS, parse_arguments, quieten, run
from speed_tables import IN_README, Figures, call_table, describe, step_table, thread_table

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("benchmarks.speed_report")

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGE = ROOT / "docs" / "user_guide" / "speed.md"
README = ROOT / "README.md"
PLOTS = ROOT / "docs" / "_static"


@dataclass(frozen=True)
class Part:
    """Systems that are measured together, and how."""

    systems: tuple[str, ...]
    options: tuple[str, ...]


TRAIN = ("--stages", "training_step")
SAMPLE = ("--stages", "generate", "generate_ddim")
TWO, ONE = ("--threads", "2"), ("--threads", "1")
PARTS = (
    Part(("published", "package"), (*TWO, "--seconds", "2")),
    Part(("package",), (*TWO, "--seconds", "1", "--batch", "512", "--stages", "prior_step", "transport_step")),
    Part(("published-scrdit", "SCRDIT-published-size"), (*TWO, *TRAIN, "--seconds", "1", "--batch", "16")),
    Part(("published-wbdit", "WBDIT-published-size"), (*TWO, *TRAIN, "--seconds", "1", "--batch", "16")),
    Part(("SCRDIT", "WBDIT"), (*TWO, *TRAIN, "--seconds", "1", "--batch", "16", "128")),
    Part(("published-scrdit", "SCRDIT", "published-wbdit", "WBDIT"), (*TWO, *SAMPLE, "--seconds", "1")),
    Part(("calls-SCLDM", "calls-SCRDIT", "calls-WBDIT"), (*TWO, "--seconds", "1")),
    Part(
        ("package", "SCRDIT", "WBDIT"), (*ONE, "--seconds", "1")
    ),  # what --check is compared with: the processor's time
)
QUICK = ("--genes", "200", "--cells", "256", "--seconds", "0.01", "--threads", "1")
QUICK_PARTS = (
    Part(("package",), ("--stages", "prior_step", *QUICK)),
    Part(("calls-SCLDM",), ("--stages", "setup", "transport_epochs", *QUICK)),
)


def measure(arguments: argparse.Namespace) -> None:
    """Measure and store all of it."""
    started = time.monotonic()
    for part in QUICK_PARTS if arguments.quick else PARTS:
        store_rows(arguments.results / "speed.csv", run(parse_arguments(["--systems", *part.systems, *part.options])))
        logger.info("%.0f s", time.monotonic() - started)
    common = ["--results", str(arguments.results)]
    quickly = ["--seconds", "0.01", "--systems", "package", "--mixes", "1x1"]
    _call("threads.py", *common, *(quickly if arguments.quick else ()))
    if not arguments.quick:
        _call("threads.py", *common, "--mixes", "2x2", environment={"OMP_WAIT_POLICY": "passive"})
    few = ["--largest", "1", "--seconds", "0.01", "--sweeps", "cells"] if arguments.quick else ["--seconds", "0.5"]
    _call("scaling.py", *common, *few, "--plots", str(arguments.plots))
    logger.info("%.0f s in all", time.monotonic() - started)


def _call(script: str, *options: str, environment: dict[str, str] | None = None) -> None:
    """Run another script in a process of its own: OpenMP reads the environment once."""
    subprocess.run(
        [sys.executable, str(HERE / script), *options], check=True, env={**os.environ, **(environment or {})}
    )


def write(arguments: argparse.Namespace) -> None:
    """Write tables and pictures of what is stored of this machine."""
    stored, threads = (read_table(arguments.results / name) for name in ("speed.csv", "speed_threads.csv"))
    here = stored[stored["processor"] == describe_processor()]
    shown = here[(here["threads"] == here["threads"].max()) & (here["genes"] == here["genes"].iloc[-1])]
    figures, where = Figures(shown), describe(shown)
    write_text(arguments.results / "speed.md", _summary(figures, where, threads, here))
    draw_history(stored, arguments.plots / "speed_history.png")
    draw(read_table(arguments.results / "speed_scaling.csv"), arguments.plots)
    write_block(arguments.page, "speed: steps", f"{step_table(figures)}\n\n{where}")
    write_block(arguments.page, "speed: calls", call_table(figures))
    write_block(arguments.page, "speed: threads", thread_table(threads))
    write_block(arguments.readme, "speed", f"{step_table(figures, IN_README)}\n\n{where}")


def _summary(figures: Figures, where: str, threads: pd.DataFrame, here: pd.DataFrame) -> str:
    """Write all tables, and what changed since the commit before."""
    commits = list(dict.fromkeys(here["commit"]))
    before = here[here["commit"] != commits[-1]]
    changes = tabulate_changes(compare(here[here["commit"] == commits[-1]], before))
    parts = [
        f"{where} Written by `python benchmarks/speed_report.py`.",
        "## Steps",
        step_table(figures),
        "## Calls",
        call_table(figures),
        "## Threads and processes: cells/s of a training step, all processes together",
        thread_table(threads),
        "## Changes",
        changes,
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quieten()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-only", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plots", type=Path, default=PLOTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--readme", type=Path, default=README)
    arguments = parser.parse_args()
    if not arguments.write_only:
        measure(arguments)
    write(arguments)


if __name__ == "__main__":
    main()
