"""Draw one method's cells for the held-out labels of a split, in a process of its own, and store them with what they cost.

python -m benchmarks.quality.drawing pbmc3k 0 SCLDM cells/pbmc3k-0-SCLDM.h5ad
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import scipy.sparse as sp

from benchmarks.quality.baselines import BASELINES
from benchmarks.quality.goals import Variant, train_model
from benchmarks.quality.splits import CONDITION_KEYS, Split, load, split_cells
from benchmarks.tables import describe_machine, describe_versions, today

if TYPE_CHECKING:
    import pandas as pd

COSTS_KEY = "costs"
LABEL = "label"
N_GENES = 2_000


def cells_path(folder: Path, dataset: str, seed: int, method: str) -> Path:
    """Return where the cells of a method are stored."""
    return folder / f"{dataset}-{seed}-{method}.h5ad"


def load_split(dataset: str, seed: int) -> Split:
    """Return the training and the held-out cells of one seed, the same in every process."""
    return split_cells(load(dataset), CONDITION_KEYS[dataset], seed=seed, n_genes=N_GENES)


def draw(dataset: str, seed: int, method: str) -> ad.AnnData:
    """Train a method and draw a cell for every held-out cell, with its labels."""
    split = load_split(dataset, seed)
    started, started_cpu = time.perf_counter(), time.process_time()
    counts, train_minutes = (
        _draw_baseline(split, method, seed) if method in BASELINES else _draw_model(split, method, seed)
    )
    cells = ad.AnnData(counts, obs=_held_out_conditions(split), var=split.train.var[[]].copy())
    cells.uns[COSTS_KEY] = {
        "wall_minutes": (time.perf_counter() - started) / 60,
        "cpu_minutes": (time.process_time() - started_cpu) / 60,
        "train_minutes": train_minutes,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "machine": describe_machine(),
        "versions": describe_versions("torch", "scvi-tools", "scgen-diffusion"),
        "date": today(),
    }
    return cells


def _held_out_conditions(split: Split) -> pd.DataFrame:
    obs = split.held_out.obs[list(split.condition_keys)].reset_index(drop=True)
    obs.index = obs.index.astype(str)
    return obs.assign(**{LABEL: split.held_out_labels})


def _draw_baseline(split: Split, method: str, seed: int) -> tuple[sp.csr_matrix, float]:
    started = time.process_time()
    counts = BASELINES[method](split.train, split.train_labels, split.held_out_labels, seed)
    return counts, (time.process_time() - started) / 60


def _draw_model(split: Split, method: str, seed: int) -> tuple[sp.csr_matrix, float]:
    variant = Variant(model_class=method)
    started = time.process_time()
    model, _ = train_model(split, variant, seed)
    minutes = (time.process_time() - started) / 60
    condition = split.held_out.obs[list(split.condition_keys)].reset_index(drop=True)
    synthetic = model.generate(condition=condition, seed=seed, **variant.output)
    return sp.csr_matrix(synthetic.X), minutes


def write_cells(cells: ad.AnnData, path: Path) -> None:
    """Write beside the goal and rename, so that no reader meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    cells.write_h5ad(partial, compression="gzip")
    partial.replace(path)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=CONDITION_KEYS)
    parser.add_argument("seed", type=int)
    parser.add_argument("method")
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    write_cells(draw(arguments.dataset, arguments.seed, arguments.method), arguments.path)


if __name__ == "__main__":
    main()
