"""What would copies of the training cells score in `mmd_per_label`?

    python -m benchmarks.studies.label_limit    # results/label_limit.csv

Cells drawn from `n` training cells, instead of from all cells of a label, raise the expected MMD² by `(1 - kappa) / n`,
where `kappa` is the mean kernel between two cells of the label. It is measured on training cells that the PCA was not
fitted to. Copies themselves cannot be judged: in a PCA that was fitted to half of them, they look unlike other cells.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks.quality.splits import DATASETS, load_split
from benchmarks.tables import describe_source, store_rows
from scgen_diffusion.metrics import ComparisonSpace, median_squared_distance, squared_mmd

if TYPE_CHECKING:
    from benchmarks.quality.splits import Split

RESULTS = Path(__file__).parent / "results"
FEWEST = 20  # held-out cells of a label, as in `mmd_per_label`


def expected_excess(split: Split, seed: int) -> float:
    """Return the mean of ``(1 - kappa) / n`` over the labels that `mmd_per_label` judges."""
    fitted, others = np.array_split(np.random.default_rng(seed).permutation(split.train.n_obs), 2)
    space = ComparisonSpace.fit(_counts(split.train[fitted]), seed=seed)
    train, held_out = space.project(_counts(split.train[others])), space.project(_counts(split.held_out))
    excess = []
    for label in np.unique(split.held_out_labels):
        real = held_out[split.held_out_labels == label]
        known = train[split.train_labels[others] == label]
        if len(real) >= FEWEST and len(known) > 1:
            # k cells beside themselves have an unbiased MMD² of -2 (1 - kappa) / k
            of_themselves = squared_mmd(known, known, squared_scale=median_squared_distance(real))
            excess.append(-of_themselves * len(known) / 2 / np.count_nonzero(split.train_labels == label))
    return float(np.mean(excess))


def _counts(cells: ad.AnnData) -> ad.AnnData:
    return ad.AnnData(cells.layers["counts"], obs=cells.obs[[]], var=cells.var[[]])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=[name for name in DATASETS if name != "pbmc68k_reduced"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    source = describe_source("scikit-learn", "scgen-diffusion")
    for dataset in arguments.datasets:
        rows = [
            {"dataset": dataset, "seed": seed, "value": expected_excess(load_split(dataset, seed), seed), **source}
            for seed in arguments.seeds
        ]
        store_rows(arguments.results / "label_limit.csv", pd.DataFrame(rows), ("dataset", "seed"))


if __name__ == "__main__":
    main()
