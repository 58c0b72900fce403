"""Which metric sees what? Real cells are corrupted in known ways and judged as if they were synthetic.

    OMP_NUM_THREADS=1 python -m benchmarks.studies.sensitivity --datasets pbmc3k paul15 --seeds 0 1 2
    python -m benchmarks.studies.sensitivity --report

Results are added to ``results/sensitivity.csv`` one data set and seed at a time; what is there already is skipped. The table for the
docs is ``results/sensitivity.md``.
"""

from __future__ import annotations

import argparse
import logging
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from benchmarks.quality.splits import CONDITION_KEYS, load, split_cells
from benchmarks.studies.corruptions import CORRUPTIONS
from benchmarks.studies.sensitivity_report import report
from benchmarks.tables import read_table, store_rows, write_text
from scgen_diffusion.metrics import CATALOGUE, evaluate, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

logger = logging.getLogger("benchmarks.sensitivity")

RESULTS = Path(__file__).parent / "results"
KEYS = ("dataset", "seed", "corruption", "metric")
UNCHANGED = "unchanged"
DATASETS = ("pbmc3k", "paul15")
N_CELLS = 400
N_GENES = 2_000
#: Boosting takes longer than all other metrics together: it is asked for by `--metrics`.
SLOW_METRICS = ("auc_boosting", "auc_genes")
FAST_METRICS = tuple(name for name in CATALOGUE if name not in SLOW_METRICS)
#: Measured with labels; all others are spared the rows of groups, which take most of the time and are not in the study.
WITH_LABELS = (
    *("precision", "recall", "within_label_correlation"),
    *(name for name, metric in CATALOGUE.items() if "groups" in metric.needs),
)
N_FLOOR = 3
N_HALVES = 8


@dataclass(frozen=True)
class Material:
    """Real cells in three disjoint parts: held out, used in training, and those that are corrupted."""

    real: AnnData
    train: AnnData
    pool: AnnData
    seed: int

    @classmethod
    def of(cls, dataset: str, seed: int, n_cells: int) -> Material:
        """Split a data set; one half of its training cells play the synthetic ones."""
        split = split_cells(load(dataset), CONDITION_KEYS[dataset], seed=seed, n_genes=N_GENES)
        order = np.random.default_rng(seed).permutation(split.train.n_obs)
        train, pool = (split.train[rows].copy() for rows in np.array_split(order, 2))
        return cls(split.held_out[:n_cells].copy(), train, pool, seed)

    def corrupted(self, name: str) -> AnnData:
        """Return as many corrupted cells as there are held-out ones, also if the corruption leaves some out."""
        n_cells = min(self.real.n_obs, self.pool.n_obs)
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        changed = CORRUPTIONS[name](self.pool[:n_cells].copy(), self.train, rng)
        return changed if changed.n_obs == n_cells else CORRUPTIONS[name](self.pool, self.train, rng)[:n_cells].copy()

    def judge(self, name: str, metrics: Sequence[str], *, n_floor: int, n_halves: int) -> pd.DataFrame:
        """Return the table of corrupted cells."""
        cells = self.corrupted(name)
        parts = [
            evaluate(
                self.real,
                cells,
                train=self.train,
                groupby=groupby,
                metrics=chosen,
                n_floor=n_floor,
                n_bootstrap=n_halves,
                seed=self.seed,
            )
            for groupby, chosen in (
                ("cell_type", [metric for metric in metrics if metric in WITH_LABELS]),
                (None, [metric for metric in metrics if metric not in WITH_LABELS]),
            )
            if chosen
        ]
        return pd.concat(parts, ignore_index=True)


def study(dataset: str, seed: int, metrics: Sequence[str], n_cells: int) -> pd.DataFrame:
    """Judge every corruption of one data set; floors and intervals are those of the unchanged cells.

    Returns
    -------
    Columns ``dataset, seed, corruption, metric, value, floor, low, high``, figures of all cells; and per corruption a row
    ``verdict`` whose ``says`` lists the topics with a warning.
    """
    material = Material.of(dataset, seed, n_cells)
    reference = material.judge(UNCHANGED, metrics, n_floor=N_FLOOR, n_halves=N_HALVES)
    parts = []
    for name in CORRUPTIONS:
        table = reference
        if name != UNCHANGED:
            table = with_chance(material.judge(name, metrics, n_floor=0, n_halves=0), reference)
        of_all = table.loc[table["group"] == "all", ["metric", "value", "floor", "low", "high"]]
        parts.append(of_all.assign(corruption=name))
        if set(FAST_METRICS) <= set(metrics):
            warnings = ", ".join(finding.topic for finding in verdict(table).warnings)
            parts.append(pd.DataFrame([{"metric": "verdict", "says": warnings, "corruption": name}]))
        logger.info("%s, seed %d: %s", dataset, seed, name)
    return pd.concat(parts, ignore_index=True).assign(dataset=dataset, seed=seed)


def with_chance(table: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Put the floors and the widths of the intervals of another table beside these values."""
    keys = ["metric", "group"]
    reference = reference.set_index(keys)
    rows = pd.MultiIndex.from_frame(table[keys])
    known = reference.reindex(rows).reset_index(drop=True)
    table = table.copy()
    table["floor"], table["shuffled"] = known["floor"], known["shuffled"]
    reach = np.fmax(known["high"] - known["value"], known["value"] - known["low"])
    table["low"], table["high"] = table["value"] - reach, table["value"] + reach
    return table


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="*", default=list(DATASETS), choices=list(CONDITION_KEYS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--metrics", nargs="*", default=list(FAST_METRICS), choices=list(CATALOGUE))
    parser.add_argument("--cells", type=int, default=N_CELLS, help="cells on either side of a comparison")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="write the tables of what is there, run nothing")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    path = options.results / "sensitivity.csv"
    for seed in [] if options.report else options.seeds:
        for dataset in options.datasets:
            if not is_done(read_table(path), dataset, seed, options.metrics):
                store_rows(path, study(dataset, seed, options.metrics, options.cells), KEYS)
    write_text(options.results / "sensitivity.md", report(read_table(path)))


def is_done(stored: pd.DataFrame, dataset: str, seed: int, metrics: Sequence[str]) -> bool:
    """Say whether all of these metrics are stored for all corruptions."""
    if stored.empty:
        return False
    rows = stored[(stored["dataset"] == dataset) & (stored["seed"] == seed) & stored["metric"].isin(metrics)]
    return len(rows) == len(metrics) * len(CORRUPTIONS)


if __name__ == "__main__":
    main()
