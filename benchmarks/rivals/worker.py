"""The rival's side of the exchange. It runs in the rival's own environment, which lacks this package."""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anndata as ad
import numpy as np
import torch

from benchmarks.tables import describe_source

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from numpy.typing import NDArray

#: Keys of ``uns``: the cells to draw, what the drawn values are, and what they cost.
REQUESTED, VALUES, COSTS = "requested", "values", "costs"
#: The ``shift`` of a requested row whose control cell is decoded as it is.
NO_SHIFT = "none"


@dataclass(frozen=True)
class Task:
    """What a rival is asked to do, in an empty folder.

    `repository` is a clone of the rival's repository, if it needs one. Training cells have counts in `X` and labels in
    ``obs["label"]``. `requested` has one row per cell to draw: its ``label``, and the ``total`` counts of a random
    training cell with this label. For predictions of a perturbation, it has one row per training cell to move, by its
    name: to which condition, in ``shift``, and to which ``dose``, if there are doses. The training ends after `minutes`
    on one core, or `length` times the published training.
    """

    repository: Path | None
    train: ad.AnnData
    requested: pd.DataFrame
    minutes: float
    length: float
    seed: int
    folder: Path


@dataclass(frozen=True)
class Drawn:
    """Cells of a rival ``(requested cells, genes)``, `time.process_time()` when training ended, and its settings."""

    values: NDArray
    trained: float
    values_are: Literal["counts", "log-normalised"]
    settings: dict[str, Any] = field(default_factory=dict)


def peak_memory_gib() -> float:
    """Return this process's peak of resident memory. On Linux, `ru_maxrss` would start at that of the parent."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+)", status.read_text())):
        return int(found[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def work(draw: Callable[[Task], Drawn], *packages: str) -> None:
    """Read a task from the command line, draw its cells, and write them with their costs and versions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repository", type=Path)
    for name in ("split", "drawn"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name, kind in (("minutes", float), ("length", float), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    train, folder = ad.read_h5ad(given.split), given.drawn.parent / "scratch"
    folder.mkdir()
    requested = train.uns.pop(REQUESTED)

    started, started_cpu = time.perf_counter(), time.process_time()
    drawn = draw(Task(given.repository, train, requested, given.minutes, given.length, given.seed, folder))
    cells = ad.AnnData(np.asarray(drawn.values, dtype=np.float32), uns={VALUES: drawn.values_are})
    limits = {"minutes": given.minutes, "length": given.length}
    if given.repository:
        command = ["git", "-C", given.repository, "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False)
        limits = {"commit": commit.stdout.strip()} | limits
    cells.uns[COSTS] = {
        "wall_minutes": (time.perf_counter() - started) / 60,
        "cpu_minutes": (time.process_time() - started_cpu) / 60,
        "train_minutes": (drawn.trained - started_cpu) / 60,
        "peak_memory_gib": peak_memory_gib(),
        "settings": json.dumps(limits | drawn.settings),
        **describe_source("torch", *packages),
    }
    cells.write_h5ad(given.drawn)
