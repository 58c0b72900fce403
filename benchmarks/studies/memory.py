"""Does memory grow with the number of cells? Training from files and from memory, on 10 000 to 1 000 000 cells.

    python -m benchmarks.studies.memory                                  # all sizes; 2 GB of disk per million cells
    python -m benchmarks.studies.memory --cells 10000 --sources h5ad     # a part
    python -m benchmarks.studies.memory --systems SCRDIT

The cells are `datasets.pbmc3k` repeated, 2 000 genes, written in parts. Every measurement runs in its own process. It
opens the cells, trains a few steps of each stage (with everything that training reads from the cells before and after),
generates, and reports peak resident memory and cells per second of each step.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd

from benchmarks.rivals.worker import peak_memory_gib
from benchmarks.tables import (
    ROOT,
    describe_source,
    store_rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

logger = logging.getLogger("benchmarks.memory")

RESULTS = Path(__file__).parent / "results"
SIZES = (10_000, 100_000, 1_000_000)
SOURCES = ("memory", "backed", "h5ad", "zarr")
SYSTEMS = {"SCLDM": {"pooling": "factors"}, "SCRDIT": {}}
KEYS = ("system", "source", "cells", "stage")
N_STEPS = 20
CONDITIONS = ["cell_type", "sample"]


def write_cells(source: anndata.AnnData, path: Path, n_cells: int) -> None:
    """Write the cells of ``source`` repeatedly to ``.h5ad`` or ``.zarr``."""
    cells = anndata.concat([source] * -(-n_cells // source.n_obs))[:n_cells].copy()
    cells.obs_names = [f"cell{number}" for number in range(n_cells)]
    samples = [f"sample {number}" for number in range(8)]
    cells.obs["sample"] = pd.Categorical.from_codes(np.arange(n_cells) // source.n_obs % 8, samples)
    (cells.write_h5ad if path.suffix == ".h5ad" else cells.write_zarr)(path)


# --- one process ------------------------------------------------------------------------------------------------------


def measure(system: str, source: str, path: Path) -> list[dict[str, Any]]:
    """Train on the cells at a path, and return a row per stage."""
    import scvi
    import torch
    from scvi.dataloaders import AnnDataLoader

    import scgen_diffusion as scgd

    torch.set_num_threads(1)
    scvi.settings.seed = 0
    model_class = getattr(scgd.model, system)
    meter = Meter()
    with meter.stage("import"):
        pass
    with meter.stage("open and check"):
        cells = None if source in ("memory", "backed") else scgd.data.CellFiles(path, condition_keys=CONDITIONS)
        if cells is None:
            adata = anndata.read_h5ad(path, backed="r" if source == "backed" else None)
            model_class.setup_anndata(adata, condition_keys=CONDITIONS)
    n_cells = adata.n_obs if cells is None else cells.n_cells
    model = (
        model_class(adata, **SYSTEMS[system])
        if cells is None
        else model_class(registry=cells.registry, **SYSTEMS[system])
    )
    options = {"datamodule": cells, "accelerator": "cpu", "limit_train_batches": N_STEPS, "enable_progress_bar": False}
    stages = (
        {"train": model.train}
        if system != "SCLDM"
        else {"autoencoder": model.train_autoencoder, "prior": model.train_prior}
    )
    for name, train in stages.items():
        with meter.stage(name):
            train(1, **options)
    from benchmarks.speed.systems import read_shuffled  # here, because its imports would count above

    with meter.stage("read batches", 10_000):
        read_shuffled(model._cells, model.train_indices_, n_cells=10_000)
    if source == "backed":
        with meter.stage("read batches of random rows", 24 * 128):  # as scvi-tools' loader does
            batches = AnnDataLoader(model.adata_manager, model.train_indices_, 128, shuffle=True)
            for _ in islice(batches, 24):
                pass
    with meter.stage("generate", 256):
        model.generate(256, seed=0)
    return [{"system": system, "source": source, "cells": n_cells, **row} for row in meter.rows]


class Meter:
    """Seconds and peaks of memory, stage by stage."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def stage(self, name: str, n_cells: int | None = None) -> Iterator[None]:
        """Measure the code inside the block."""
        is_apart = _forget_peak()
        start, start_cpu = time.perf_counter(), time.process_time()
        yield
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        row = {
            "stage": name,
            "peak_mib": round(peak_memory_gib() * 1024),
            "is_apart": is_apart,
            "seconds": seconds,
            "cpu_seconds": cpu,
        }
        self.rows.append(row | {"cells_per_cpu_second": None if n_cells is None else round(n_cells / cpu)})


def _forget_peak() -> bool:
    """Reset the memory peak, so that each stage has its own (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


# --- all of them ------------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> None:
    """Measure what was requested, one process after the other, and store each result at once."""
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="memory-"))
    source = pbmc3k()
    for n_cells in arguments.cells:
        for kind in arguments.sources:
            path = folder / f"cells-{n_cells}.{'h5ad' if kind in ('memory', 'backed', 'h5ad') else 'zarr'}"
            if not path.exists():
                write_cells(source, path, n_cells)
            for system in arguments.systems:
                store(_in_own_process(system, kind, path), arguments.results)


def pbmc3k() -> anndata.AnnData:
    """Return the cells to repeat, with the 2 000 genes that vary most (by a robust ranking without dependencies)."""
    import scanpy as sc

    import scgen_diffusion as scgd

    adata = scgd.datasets.pbmc3k()
    sc.pp.highly_variable_genes(adata, n_top_genes=2000)
    adata = adata[:, adata.var["highly_variable"]]
    return anndata.AnnData(adata.layers["counts"].copy(), obs=adata.obs[["cell_type"]].copy(), var=adata.var[[]].copy())


def _in_own_process(system: str, source: str, path: Path) -> list[dict[str, Any]]:
    logger.info("%s from %s: %s", system, source, path.name)
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.studies.memory"]
    command += ["--measure", system, source, str(path.resolve())]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def store(rows: list[dict[str, Any]], folder: Path) -> None:
    """Add rows to the table, and replace older ones of the same measurement."""
    where = describe_source("scgen-diffusion", "torch", "scvi-tools", "anndata")
    store_rows(folder / "memory.csv", pd.DataFrame([row | where for row in rows]), KEYS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=["memory", "h5ad", "zarr"])
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--folder", help="folder of the files with cells")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        system, source, path = chosen.measure
        sys.stdout.write("\n" + json.dumps(measure(system, source, Path(path))) + "\n")
    else:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        run(chosen)


if __name__ == "__main__":
    main()
