"""Which method draws the best cells? Every model and simple baselines, on held-out cells of several data sets, judged by all metrics.

    python -m benchmarks.quality                                # everything that is not there yet
    python -m benchmarks.quality --datasets pbmc3k --seeds 0    # part of it

Every method trains and draws in a process of its own, one torch thread, so that its time and peak memory are its own; its cells are kept
in ``--cells``. They are judged by ``scgen_diffusion.metrics.evaluate`` and the figures added to ``results/compare.csv``; a method that is
there already is skipped. The summary goes to ``results/compare.md``, the picture to ``docs/_static/compare.png``.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import pandas as pd

from benchmarks.quality.baselines import BASELINES
from benchmarks.quality.drawing import COSTS_KEY, LABEL, MODELS
from benchmarks.quality.report import draw_comparison, summarise
from benchmarks.quality.splits import CONDITION_KEYS, load, split_cells
from benchmarks.tables import ROOT, read_table, store_rows, stored_keys, write_text
from scgen_diffusion import metrics

if TYPE_CHECKING:
    import numpy as np

    from benchmarks.quality.splits import Split

logger = logging.getLogger("benchmarks.compare")

HERE = Path(__file__).parent
DATASETS = ("pbmc3k", "pbmc10k_citeseq", "paul15")
METHODS = (*MODELS, "scVI", "NB-copula", "independent-NB")
ALL = "all"
KEYS = ("dataset", "seed", "method")
#: Cells of each side that are compared; what lies between them grows with the square.
MAX_CELLS = 1_000
COSTS = ("wall_minutes", "cpu_minutes", "peak_memory_gib")
SOURCE = ("machine", "versions", "date")


def cells_path(folder: Path, dataset: str, seed: int, method: str) -> Path:
    """Return where the cells of a method are stored."""
    return folder / f"{dataset}-{seed}-{method}.h5ad"


def draw_cells(folder: Path, dataset: str, seed: int, method: str) -> ad.AnnData:
    """Return a method's cells, drawn in a process of its own if they are not there yet."""
    path = cells_path(folder, dataset, seed, method)
    if not path.exists():
        logger.info("%s, seed %d: %s draws", dataset, seed, method)
        command = [sys.executable, "-m", "benchmarks.quality.drawing", dataset, str(seed), method, str(path.resolve())]
        subprocess.run(command, check=True, cwd=ROOT)
    return ad.read_h5ad(path)


def judge(split: Split, cells: ad.AnnData, seed: int) -> pd.DataFrame:
    """Return the figures of all of a method's cells, its costs included."""
    real = _labelled(split.held_out, split.held_out_labels)
    train = _labelled(split.train, split.train_labels)
    table = metrics.evaluate(real, cells, train=train, groupby=LABEL, max_cells=MAX_CELLS, seed=seed)
    table = table[table["group"] == ALL]
    costs = pd.DataFrame(
        {"metric": name, "group": ALL, "value": float(cells.uns[COSTS_KEY][name]), "better": "lower"} for name in COSTS
    )
    return pd.concat([table, costs], ignore_index=True).assign(**{name: cells.uns[COSTS_KEY][name] for name in SOURCE})


def _labelled(cells: ad.AnnData, labels: np.ndarray) -> ad.AnnData:
    return ad.AnnData(cells.layers["counts"], obs=cells.obs.assign(**{LABEL: labels})[[LABEL]], var=cells.var[[]])


def run(arguments: argparse.Namespace) -> None:
    """Judge what is not stored, then write the summary and the picture."""
    path, splits = arguments.results / "compare.csv", {}
    stored = stored_keys(path, KEYS)
    for seed, dataset, method in product(arguments.seeds, arguments.datasets, arguments.methods):
        if (dataset, seed, method) in stored:
            continue
        if arguments.only_drawn and not cells_path(arguments.cells, dataset, seed, method).exists():
            continue
        cells = draw_cells(arguments.cells, dataset, seed, method)
        if (dataset, seed) not in splits:
            splits = {(dataset, seed): split_cells(load(dataset), CONDITION_KEYS[dataset], seed=seed)}
        logger.info("%s, seed %d: judging %s", dataset, seed, method)
        table = judge(splits[dataset, seed], cells, seed)
        store_rows(path, table.assign(dataset=dataset, seed=seed, method=method), KEYS)
    table = read_table(path)
    write_text(arguments.results / "compare.md", summarise(table, METHODS))
    draw_comparison(table, METHODS, arguments.picture)


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=CONDITION_KEYS, default=list(DATASETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=[*MODELS, *BASELINES], default=list(METHODS))
    parser.add_argument("--cells", type=Path, default=ROOT / "benchmarks" / "cells", help="folder of the drawn cells")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "_static" / "compare.png")
    parser.add_argument("--only-drawn", action="store_true", help="judge the cells that are there, and draw none")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
