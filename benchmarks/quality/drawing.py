"""Train a method on one split and draw a cell for every held-out cell; as a command, in a process of its own, with what that cost.

python -m benchmarks.quality.drawing pbmc3k 0 SCLDM cells/pbmc3k-0-SCLDM.h5ad
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch

from benchmarks.quality.baselines import BASELINES
from benchmarks.quality.splits import CONDITION_KEYS, Split, load, split_cells
from benchmarks.speed.meters import clock
from benchmarks.tables import describe_source
from scgen_diffusion.data import join_labels

if TYPE_CHECKING:
    import pandas as pd

MODELS = ("SCLDM", "SCRDIT", "WBDIT")
COSTS_KEY = "costs"
LABEL = "label"


def train_model(split: Split, model_class: str, seed: int, **arguments: dict[str, Any]) -> tuple[Any, float]:
    """Return a trained model and the seconds that training took; ``model`` and ``train`` are further arguments of both."""
    import scvi

    from scgen_diffusion import model as models

    scvi.settings.seed = seed
    chosen, adata = getattr(models, model_class), split.train.copy()
    chosen.setup_anndata(adata, layer="counts", condition_keys=list(split.condition_keys))
    started = clock("cpu")
    model = chosen(adata, **arguments.get("model", {}))
    model.train(**arguments.get("train", {}))
    return model, clock("cpu") - started


def held_out_conditions(split: Split) -> pd.DataFrame:
    """Return the conditions of the held-out cells, one row per cell."""
    obs = split.held_out.obs[list(split.condition_keys)].reset_index(drop=True)
    obs.index = obs.index.astype(str)
    return obs


def generate(model: Any, split: Split, seed: int, **options: Any) -> ad.AnnData:
    """Draw a cell with counts for every held-out cell, with its conditions.

    Raises
    ------
    ValueError
        If the cells do not have the genes or the labels that were asked for.
    """
    counts = {} if type(model).__name__ == "SCLDM" else {"counts": True}
    cells = model.generate(condition=held_out_conditions(split), seed=seed, **counts, **options)
    labels = join_labels(cells.obs, split.condition_keys)
    if not cells.var_names.equals(split.train.var_names) or (labels != split.held_out_labels).any():
        msg = "The generated cells do not have the genes and labels that were asked for, in their order."
        raise ValueError(msg)
    return cells


def draw_matching(labels: np.ndarray, requested: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return, per requested label, the index of a random cell that has it; no cell twice unless there are too few."""
    drawn = np.empty(len(requested), dtype=np.intp)
    for label in np.unique(requested):
        rows, candidates = requested == label, np.flatnonzero(labels == label)
        drawn[rows] = rng.choice(candidates, rows.sum(), replace=rows.sum() > len(candidates))
    return drawn


def draw(dataset: str, seed: int, method: str) -> ad.AnnData:
    """Train a method, draw, and note what that cost."""
    split = split_cells(load(dataset), CONDITION_KEYS[dataset], seed=seed)
    started, started_cpu = time.perf_counter(), time.process_time()
    if method in BASELINES:
        counts = BASELINES[method](split.train, split.train_labels, split.held_out_labels, seed)
        trained = time.process_time()
    else:
        model, _ = train_model(split, method, seed)
        trained = time.process_time()
        counts = sp.csr_matrix(generate(model, split, seed).X)
    obs = held_out_conditions(split).assign(**{LABEL: split.held_out_labels})
    cells = ad.AnnData(counts, obs=obs, var=split.train.var[[]].copy())
    cells.uns[COSTS_KEY] = {
        "wall_minutes": (time.perf_counter() - started) / 60,
        "cpu_minutes": (time.process_time() - started_cpu) / 60,
        "train_minutes": (trained - started_cpu) / 60,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        **describe_source("torch", "scvi-tools", "scgen-diffusion"),
    }
    return cells


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
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    write_cells(draw(arguments.dataset, arguments.seed, arguments.method), arguments.path)


if __name__ == "__main__":
    main()
