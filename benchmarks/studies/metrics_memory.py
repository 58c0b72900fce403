"""How much memory and time does the table of metrics take on many cells and genes?

    OMP_NUM_THREADS=1 python -m benchmarks.studies.metrics_memory --cells 100000 --genes 20000 --non-zeros 1500
    OMP_NUM_THREADS=1 python -m benchmarks.studies.metrics_memory --train

Builds sparse random counts twice (three times with ``--train``) and compares them; appends to ``results/metrics_memory.csv``.
"""

from __future__ import annotations

import argparse
import logging
import resource
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks.tables import describe_machine, describe_versions, store_rows, today
from scgen_diffusion.metrics import evaluate

logger = logging.getLogger("benchmarks.metrics_memory")

RESULTS = Path(__file__).parent / "results" / "metrics_memory.csv"
KEYS = ("cells", "genes", "non_zeros", "train")
N_LABELS = 10
CHUNK = 10_000


def random_cells(n_cells: int, n_genes: int, n_non_zeros: int, *, seed: int) -> ad.AnnData:
    """Draw counts with about as many non-zeros per cell, genes of unequal frequency, and labels without meaning."""
    rng = np.random.default_rng(seed)
    frequencies = np.random.default_rng(0).gamma(0.5, 1.0, n_genes)
    frequencies /= frequencies.sum()
    chunks = [_chunk(rng, min(CHUNK, n_cells - start), frequencies, n_non_zeros) for start in range(0, n_cells, CHUNK)]
    obs = pd.DataFrame({"label": rng.integers(0, N_LABELS, n_cells).astype(str)})
    obs.index = [f"{seed}_{number}" for number in range(n_cells)]
    return ad.AnnData(sp.vstack(chunks, format="csr"), obs=obs)


def _chunk(rng: np.random.Generator, n_cells: int, frequencies: np.ndarray, n_non_zeros: int) -> sp.csr_matrix:
    n_draws = round(1.15 * n_non_zeros)  # some genes are drawn twice
    genes = rng.choice(len(frequencies), n_cells * n_draws, p=frequencies).astype(np.int32)
    counts = (rng.geometric(0.5, len(genes))).astype(np.float32)
    starts = np.arange(0, len(genes) + 1, n_draws, dtype=np.int32)
    matrix = sp.csr_matrix((counts, genes, starts), shape=(n_cells, len(frequencies)))
    matrix.sum_duplicates()
    return matrix


def peak_gib() -> float:
    """Return the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(n_cells: int, n_genes: int, n_non_zeros: int, *, with_train: bool) -> dict[str, object]:
    """Build the sets, run the table with its defaults, and return what it took."""
    names = ("real", "synthetic") + (("train",) if with_train else ())
    sets = {name: random_cells(n_cells, n_genes, n_non_zeros, seed=seed) for seed, name in enumerate(names, 1)}
    data_gib = sum(x.data.nbytes + x.indices.nbytes + x.indptr.nbytes for x in (c.X for c in sets.values())) / 2**30
    before, started, started_cpu = peak_gib(), time.perf_counter(), time.process_time()
    logger.info("%.2f GiB of data built, peak %.2f GiB", data_gib, before)
    table = evaluate(sets["real"], sets["synthetic"], train=sets.get("train"), groupby="label")
    return {
        "cells": n_cells,
        "genes": n_genes,
        "non_zeros": round(sets["real"].X.nnz / n_cells),
        "train": with_train,
        "rows": len(table),
        "data_gib": round(data_gib, 2),
        "peak_before_gib": round(before, 2),
        "peak_gib": round(peak_gib(), 2),
        "wall_minutes": round((time.perf_counter() - started) / 60, 2),
        "cpu_minutes": round((time.process_time() - started_cpu) / 60, 2),
        "machine": describe_machine(),
        "versions": describe_versions("numpy", "scikit-learn", "scgen-diffusion"),
        "date": today(),
    }


def main() -> None:
    """Measure and store one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--non-zeros", type=int, default=1_500)
    parser.add_argument("--train", action="store_true", help="a third set that the model would have learned from")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    row = measure(arguments.cells, arguments.genes, arguments.non_zeros, with_train=arguments.train)
    logger.info("%s", row)
    store_rows(RESULTS, pd.DataFrame([row]), KEYS)


if __name__ == "__main__":
    main()
