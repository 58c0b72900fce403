"""How much memory does it take to stream cells to a file, and how long?

    OMP_NUM_THREADS=1 python -m benchmarks.studies.streaming
    OMP_NUM_THREADS=1 python -m benchmarks.studies.streaming --cells 1000000 --ways zarr

Trains a small model on simulated counts. Fresh processes then generate with one Euler step. The network takes almost no
time, so the measurement covers the streaming. ``predictions`` streams control cells from a file to their treated
counterparts in another, with verdicts and mean changes. Peak memory is that of the whole process. Rows go to
``results/streaming.csv``.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks.rivals.worker import peak_memory_gib
from benchmarks.tables import describe_source, store_rows
from scgen_diffusion.data import CellFiles
from scgen_diffusion.model import SCLDM

logger = logging.getLogger("benchmarks.streaming")

RESULTS = Path(__file__).parent / "results"
KEYS = ("cells", "way", "genes")
WAYS = ("zarr", "h5ad", "in memory", "predictions")
CELLS = (10_000, 100_000, 1_000_000)
IN_MEMORY_UP_TO = 100_000
SHARD_SIZE = 8192
SMALL = {
    "n_latent_tokens": 2,
    "n_latent": 8,
    "width": 16,
    "n_layers": 1,
    "n_heads": 2,
    "n_heads_cross": 2,
    "pooling": "factors",
    "decoder_width": 16,
    "n_factors": 8,
    "prior_width": 16,
    "prior_n_layers": 1,
    "prior_n_heads": 2,
}


def train_small_model(folder: Path, n_genes: int) -> None:
    """Save a model of simulated cells that express a fifth of the genes."""
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.3, 0.8, n_genes)
    counts = sp.csr_matrix(rng.poisson(rates * rng.lognormal(0, 0.3, (1000, 1))).astype(np.float32))
    obs = pd.DataFrame({"label": rng.choice([f"type {number}" for number in range(10)], 1000)})
    if folder.name == "predictions":
        obs["drug"] = rng.choice(["no", "yes"], 1000)
    adata = ad.AnnData(counts, obs=obs.set_index(obs.index.astype(str)))
    control = {"control_values": {"drug": "no"}} if "drug" in obs else {}
    SCLDM.setup_anndata(adata, condition_keys=list(obs), **control)
    model = SCLDM(adata, **SMALL)
    model.train(5, accelerator="cpu", enable_progress_bar=False)
    model.save(folder)


def measure(folder: Path, n_cells: int, way: str) -> dict[str, object]:
    """Generate cells in this process, which must be fresh, and return time and memory."""
    model = SCLDM.load(folder / ("predictions" if way == "predictions" else "model"), adata=False, accelerator="cpu")
    request = {"n_cells": n_cells, "seed": 0, "sampler": "euler", "n_steps": 1}
    model.generate(128, seed=0, sampler="euler", n_steps=1)
    if way == "predictions":
        control = model.generate_to(
            folder / f"control_{n_cells}.h5ad", **request, condition={"drug": "no"}, shard_size=SHARD_SIZE
        )
    before, started, started_cpu = peak_memory_gib(), time.perf_counter(), time.process_time()
    if way == "in memory":
        size = model.generate(**request).X.data.nbytes * 2
    else:
        if way == "predictions":
            cells = CellFiles.like(model.registry, control)
            options = {"sampler": "euler", "n_steps": 1, "seed": 0, "shard_size": SHARD_SIZE}
            goal = model.predict_perturbation_to(
                folder / f"predicted_{n_cells}.zarr", cells, {"drug": "yes"}, **options
            )
        else:
            goal = model.generate_to(folder / f"cells_{n_cells}.{way}", **request, shard_size=SHARD_SIZE)
        size = sum(file.stat().st_size for file in [goal, *goal.rglob("*")] if file.is_file())
    return {
        "cells": n_cells,
        "way": way,
        "genes": len(model.var_),
        "peak_before_mib": round(before * 1024),
        "peak_mib": round(peak_memory_gib() * 1024),
        "cpu_seconds": round(time.process_time() - started_cpu, 1),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "size_mib": round(size / 2**20, 1),
        "shard_size": SHARD_SIZE,
        **describe_source("anndata", "zarr", "h5py", "torch", "scgen-diffusion"),
    }


def measure_apart(folder: Path, n_cells: int, way: str) -> dict[str, object]:
    """Measure in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (folder, n_cells, way))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=CELLS)
    parser.add_argument("--genes", type=int, default=1_000)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--folder", type=Path, help="folder for the cells; default: a temporary folder")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    path = arguments.results / "streaming.csv"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        for name in {"predictions" if way == "predictions" else "model" for way in arguments.ways}:
            train_small_model(folder / name, arguments.genes)
        for n_cells in arguments.cells:
            for way in arguments.ways:
                if way == "in memory" and n_cells > IN_MEMORY_UP_TO:
                    continue
                row = measure_apart(folder, n_cells, way)
                logger.info("%s", row)
                store_rows(path, pd.DataFrame([row]), KEYS)


if __name__ == "__main__":
    main()
