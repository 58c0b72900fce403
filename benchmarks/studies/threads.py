"""How many threads, how many processes? Training steps of several processes at once, each with some threads.

python -m benchmarks.studies.threads                          # results/threads.csv
OMP_WAIT_POLICY=passive python -m benchmarks.studies.threads  # OpenMP's settings are stored with the figures
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import torch

from benchmarks.speed.measure import SYSTEMS, quieten
from benchmarks.speed.systems import Setting
from benchmarks.tables import describe_commit, describe_processor, describe_versions, store_rows, today

RESULTS = Path(__file__).parent / "results"
logger = logging.getLogger("benchmarks.threads")

STAGES = {"package": "autoencoder_step", "SCRDIT": "training_step"}
KEYS = ("system", "stage", "processes", "threads", "openmp", "processor", "commit")
VARIABLES = ("OMP_WAIT_POLICY", "OMP_PROC_BIND", "GOMP_SPINCOUNT")
N_WARM_UP = 3


def cells_per_second(system: str, stage: str, n_threads: int, seconds: float, barrier: object) -> float:
    """Take steps for this many seconds of wall time, starting when all processes are ready."""
    torch.set_num_threads(n_threads)
    built = SYSTEMS[system](Setting(n_genes=2000, n_expressed=720))
    step = getattr(built, stage)
    for _ in range(N_WARM_UP):
        step()
    barrier.wait()
    started, n_steps = time.perf_counter(), 0
    while time.perf_counter() < started + seconds:
        step()
        n_steps += 1
    return n_steps * built.n_cells(stage) / (time.perf_counter() - started)


def measure(system: str, n_processes: int, n_threads: int, seconds: float) -> dict[str, object]:
    """Return the cells per second of all processes together."""
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager, ProcessPoolExecutor(n_processes, mp_context=context) as pool:
        barrier = manager.Barrier(n_processes)
        work = (system, STAGES[system], n_threads, seconds, barrier)
        running = [pool.submit(cells_per_second, *work) for _ in range(n_processes)]
        speeds = [each.result() for each in running]
    return {
        "system": system,
        "stage": STAGES[system],
        "processes": n_processes,
        "threads": n_threads,
        "openmp": " ".join(f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ) or "defaults",
        "cells_per_second": sum(speeds),
        "processor": describe_processor(),
        "n_cores": len(os.sched_getaffinity(0)),
        "versions": describe_versions("torch", "scgen-diffusion"),
        "commit": describe_commit(),
        "date": today(),
    }


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quieten()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", nargs="+", default=["1x1", "1x2", "2x1", "2x2"], help="PROCESSESxTHREADS")
    parser.add_argument("--systems", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for system in arguments.systems:
        for mix in arguments.mixes:
            n_processes, n_threads = map(int, mix.split("x"))
            row = measure(system, n_processes, n_threads, arguments.seconds)
            logger.info(
                "%s: %d processes with %d threads: %.0f cells/s",
                system,
                n_processes,
                n_threads,
                row["cells_per_second"],
            )
            store_rows(arguments.results / "threads.csv", pd.DataFrame([row]), KEYS)
    logger.info("Run `python -m benchmarks.pages` to bring the figures to the user guide.")


if __name__ == "__main__":
    main()
