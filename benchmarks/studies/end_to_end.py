"""From files of many cells to a report, by the command line as users type it: minutes, memory and quality of each step.

    python -m benchmarks.studies.end_to_end FOLDER                     # 200,000 cells; hours
    python -m benchmarks.studies.end_to_end FOLDER --cells 1000000 --processes 2

``benchmarks.studies.world`` writes the cells. Then ``scgen-diffusion`` trains SCLDM on the files, generates as many
cells, compares them with fresh ones and writes a report. Training and generation are stopped on the way, by the signal
that schedulers send, and the same command is run again. The study itself resumes in the same way. Every process has one
thread. Adds to ``results/end_to_end.csv``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.quality.methods import write_cells
from benchmarks.quality.report import IN_SHORT
from benchmarks.runner import options, run, start
from benchmarks.studies.world import HELD_OUT, N_GENES, World
from benchmarks.tables import REAL, markdown_table, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("benchmarks.end_to_end")

PART = 10_000  # cells per file
N_JUDGED = 5_000
#: Seconds after which a command is stopped, once or more; then it is run again.
STOPS = {"train": (120, 600), "generate": (60,)}
STEPS = {
    "train": "train",
    "generate": "generate as many cells",
    "evaluate": "compare with fresh cells",
    "report": "write the report",
}
COSTS = {"wall_minutes": "minutes", "cpu_minutes": "processor minutes", "peak_memory_gib": "peak GiB"}
STOPPED = 143  # exit code after SIGTERM
GENERATED = "generated cells"
SIDES = (REAL, GENERATED)


def run_stopped(command: list[str], record: Path, stops: tuple[int, ...] = ()) -> dict[str, float]:
    """Run a command, stop it after each of these seconds and run it again; return what it cost in all.

    Costs are kept in the file ``record``: if this study is stopped and called again, they add up. Peak memory is that
    of the first process.
    """
    logger.info("$ %s", shlex.join(command[2:]))
    costs = json.loads(record.read_text()) if record.exists() else dict.fromkeys([*COSTS, "n_stopped"], 0)
    code = STOPPED
    while code == STOPPED:
        due = next(iter(stops[costs["n_stopped"] :]), math.inf)
        started, before = time.perf_counter(), processor_seconds()
        process = subprocess.Popen([sys.executable, *command], env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            while process.poll() is None:
                costs["peak_memory_gib"] = max(costs["peak_memory_gib"], peak_memory(process.pid))
                if time.perf_counter() - started > due:
                    process.terminate()
                    due = math.inf
                time.sleep(0.2)
        finally:
            process.terminate()  # does nothing if it has ended
            code = process.wait()
            costs["wall_minutes"] += (time.perf_counter() - started) / 60
            costs["cpu_minutes"] += (processor_seconds() - before) / 60
            costs["n_stopped"] += code == STOPPED
            write_text(record, json.dumps(costs))
    if code:
        raise subprocess.CalledProcessError(code, command)
    return costs


def processor_seconds() -> float:
    """Return the processor time of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def peak_memory(process: int) -> float:
    """Return the peak of a process's resident memory so far, GiB; 0 once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    kib = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(kib[0]) / 2**20 if kib else 0.0


def write_files(folder: Path, n_cells: int, n_genes: int) -> None:
    """Write the training cells in parts, and fresh cells to compare with."""
    world = World.fit(n_genes=n_genes)
    world.write(folder / "train", n_cells, part=PART)
    write_cells(world.draw(N_JUDGED, HELD_OUT), folder / "held_out.h5ad")


def commands(folder: Path, n_cells: int, n_processes: int) -> dict[str, list[str]]:
    """Return the commands in order, as a user would type them."""
    model, synthetic, held_out = (str(folder / name) for name in ("model", "synthetic.h5ad", "held_out.h5ad"))
    parts = [str(path) for path in sorted((folder / "train").glob("*.h5ad"))]
    several = ["--devices", str(n_processes), "--strategy", "ddp"] if n_processes > 1 else []
    judged = [*chain.from_iterable(("--train", part) for part in parts), "--groupby", "cell_type", "--backed"]
    table, page = str(folder / "table.csv"), str(folder / "report.html")
    steps = {
        "train": ["train", *parts, "--condition", "cell_type", "--out", model, *several],
        "generate": ["generate", model, synthetic, "--n-cells", str(n_cells)],
        "evaluate": ["evaluate", held_out, synthetic, *judged, "--out", table],
        "report": ["report", held_out, synthetic, *judged, "--table", table, "--model", model, "--out", page],
    }
    return {name: ["-m", "scgen_diffusion", *arguments] for name, arguments in steps.items()}


def measure(folder: Path, cells: int, genes: int, processes: int, step: str) -> pd.DataFrame:
    """Run a step, or read how good the cells are; return a row."""
    if not (folder / "held_out.h5ad").exists():
        write_files(folder, cells, genes)
    if step in STEPS:
        return pd.DataFrame(
            [run_stopped(commands(folder, cells, processes)[step], folder / f"{step}.json", STOPS.get(step, ()))]
        )
    table = pd.read_csv(folder / "table.csv")
    table = table[table["group"] == "all"].set_index("metric").reindex(IN_SHORT).dropna(how="all")
    return pd.DataFrame([table["real" if step == REAL else "value"].to_dict()])


def costs_of(table: pd.DataFrame, sizes: Sequence[int]) -> str:
    """Write what the steps cost with each number of cells."""
    costs, columns = table.set_index(["cells", "step"]), ("wall_minutes", "peak_memory_gib")
    header = ["step", *(f"{cells:,} cells: {COSTS[column]}" for cells in sizes for column in columns)]
    lines = [
        [name, *(f"{costs.loc[(cells, step), column]:.1f}" for cells in sizes for column in columns)]
        for step, name in STEPS.items()
    ]
    return markdown_table(header, lines)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("files", type=Path, help="folder for the files; 1 GB per 100,000 cells")
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=N_GENES)
    parser.add_argument("--processes", type=int, default=1, help="of training")
    chosen = start(parser)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the running command, too
    size = {"cells": chosen.cells, "genes": chosen.genes, "processes": chosen.processes}
    cases = [{**size, "step": step} for step in (*STEPS, *SIDES)]
    run(chosen.results / "end_to_end.csv", cases, partial(measure, chosen.files))


if __name__ == "__main__":
    main()
