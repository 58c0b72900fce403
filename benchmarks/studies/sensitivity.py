"""Which metric sees what? Real cells are corrupted in known ways and judged as if they were synthetic.

    OMP_NUM_THREADS=1 python -m benchmarks.studies.sensitivity --datasets pbmc3k paul15 --seeds 0 1 2
    python -m benchmarks.studies.sensitivity --report

Results are added to ``results/sensitivity.csv`` one data set and seed at a time; stored ones are skipped. The table for
the docs is ``results/sensitivity.md``.
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
from benchmarks.tables import markdown_table, read_table, store_rows, write_text
from scgen_diffusion.metrics import CATALOGUE, evaluate
from scgen_diffusion.report import verdict

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
#: Boosting takes longer than all other metrics together; request it with `--metrics`.
SLOW_METRICS = ("auc_boosting", "auc_genes")
FAST_METRICS = tuple(name for name, metric in CATALOGUE.items() if "all" in metric.scopes and name not in SLOW_METRICS)
#: Measured with labels. The others are measured without: rows of groups take most of the time and are not used here.
WITH_LABELS = (
    *("precision", "recall", "within_label_correlation", "within_label_slope"),
    *(name for name, metric in CATALOGUE.items() if "groups" in metric.needs),
)
N_FLOOR = 3
N_HALVES = 8

# --- report -----------------------------------------------------------------------------------------------------------


QUANTILE = 2.364624  # of Student's t with a degree of freedom less than halves, for 95 % intervals
SEEN, STRONG = 3.0, 10.0  # standard deviations
NOTHING, SEES, SEES_STRONGLY, FOOLED = "·", "sees", "**sees**", "*fooled*"

FAMILIES = {
    "Distribution": ["w2", "mmd2", "precision", "recall", "density", "coverage"],
    "Telling cells apart": ["auc_boosting", "auc_logistic", "auc_neighbours", "auc_genes", "ilisi"],
    "Genes": [
        *("gene_mean_error", "gene_variance_error", "gene_zero_error", "mean_variance_error"),
        *("within_label_correlation", "within_label_slope", "library_size_ks"),
    ],
    "Labels and use": [
        *("group_share_difference", "marker_overlap", "marker_slope", "label_fidelity", "transfer_f1"),
    ],
    "Memorisation": [
        *(
            "nearest_train_ratio",
            "nearer_than_held_out",
            "copied_cells",
            "duplicate_share",
            "membership_auc",
            "copied_test_cells",
        ),
    ],
}


def report(rows: pd.DataFrame) -> str:
    """Write the explanation, a table per family of metrics, and the warnings of the verdict."""
    table = effects(rows)
    parts = [_explanation(rows)]
    for family, metrics in FAMILIES.items():
        measured = [metric for metric in metrics if metric in table]
        body = [
            [name, *(_symbol(table.loc[name, metric]) for metric in measured)]
            for name in CORRUPTIONS
            if name in table.index
        ]
        parts += [f"**{family}**", markdown_table(["corruption", *(f"`{metric}`" for metric in measured)], body)]
    said = _verdicts(rows)
    parts.append(READING)
    if said:
        parts += [
            "**Warnings of `verdict`**, with the share of runs that give them",
            markdown_table(["corruption", "warnings"], said),
        ]
    return "\n\n".join(parts) + "\n"


def effects(rows: pd.DataFrame) -> pd.DataFrame:
    """Return by how many standard deviations a corruption worsens each metric, the median over data sets and seeds.

    A run's effect is its value minus that of the unchanged cells of the same data set and seed, with positive sign for
    worse, divided by the standard deviation of the unchanged cells' value. For a metric that is always 0 for real
    cells, such as copies, any change is strong.

    Returns
    -------
    Corruptions in rows, metrics in columns.
    """
    rows = rows[rows["metric"] != "verdict"].astype({"value": float, "floor": float, "low": float, "high": float})
    keys = ["dataset", "seed", "metric"]
    unchanged = rows[rows["corruption"] == UNCHANGED].copy()
    reach = np.fmax(unchanged["high"] - unchanged["value"], unchanged["value"] - unchanged["low"])
    unchanged["sd"] = (reach / QUANTILE).where((unchanged["value"] != 0) | (unchanged["floor"] != 0), 0)
    unchanged["sd"] = unchanged.groupby(["dataset", "metric"])["sd"].transform("mean")
    pairs = rows.merge(unchanged[[*keys, "value", "floor", "sd"]], on=keys, suffixes=("", "_unchanged"))
    worse = pairs["value"] - pairs["value_unchanged"]
    better = pairs["metric"].map({name: metric.better for name, metric in CATALOGUE.items()})
    off, off_unchanged = ((pairs[name] - pairs["floor_unchanged"]).abs() for name in ("value", "value_unchanged"))
    worse = worse.where(better == "lower", -worse).where(better != "floor", off - off_unchanged)
    pairs["effect"] = np.where(worse.abs() < 1e-12, 0, worse / pairs["sd"].clip(lower=1e-9))
    return pairs.groupby(["corruption", "metric"])["effect"].median().unstack()


def _symbol(effect: float) -> str:
    if not np.isfinite(effect):
        return ""
    if effect <= -SEEN:
        return FOOLED
    return NOTHING if effect < SEEN else SEES_STRONGLY if effect >= STRONG else SEES


def _verdicts(rows: pd.DataFrame) -> list[list[str]]:
    said = rows[rows["metric"] == "verdict"].reindex(columns=["corruption", "says"])  # NaN if metrics were left out
    lines = []
    for name in CORRUPTIONS:
        runs = said.loc[said["corruption"] == name, "says"].fillna("")
        if runs.empty:
            continue
        topics = pd.Series([topic for run in runs for topic in run.split(", ") if topic]).value_counts()
        lines.append([name, ", ".join(f"{topic} {n}/{len(runs)}" for topic, n in topics.items()) or "none"])
    return lines


def _explanation(rows: pd.DataFrame) -> str:
    names = " and ".join(sorted(rows["dataset"].unique()))
    n_splits = rows.groupby("metric")["seed"].nunique()
    fewer = ", ".join(f"`{metric}` {n}" for metric, n in n_splits[n_splits < n_splits.max()].items())
    return (
        f"Real cells of {names} in place of synthetic ones ({n_splits.max()} splits "
        f"each{'; ' + fewer if fewer else ''}; 400 cells on either side, about 1 000 training cells, the 2 000 most "
        "variable genes) were corrupted in known ways and judged by `evaluate`. An entry shows by how many standard "
        f"deviations a corruption worsens a metric, in the median over data sets and splits: {NOTHING} is less than "
        f"{SEEN:.0f}, {SEES} is {SEEN:.0f} or more, {SEES_STRONGLY} is {STRONG:.0f} or more. {FOOLED} means that the "
        f"metric calls the corrupted cells *better* than real ones by {SEEN:.0f} or more. With more cells, every metric "
        "detects smaller defects. The first row, unchanged cells, has no entries by construction in the tables of "
        "metrics; in the table of the verdict it shows false alarms."
    )


READING = (
    "No single metric detects everything, and many detect most things weakly. Cells drawn from their label's mean are "
    "where real cells are (`precision`) and have the right label (`label_fidelity`). `recall`, `coverage`, "
    "`auc_neighbours`, `ilisi` and `within_label_correlation` show best that they have no structure of their own. Only "
    "the metrics of labels detect swapped labels. Only `copied_cells` and `duplicate_share` detect single copies and "
    "duplicates. Distances to training cells and `membership_auc` detect copies with some changed counts. A model that "
    "repeats its training cells is not rewarded elsewhere: cells that the principal components were fitted to stick "
    "out in this space, as `precision` and `w2` show. `totals doubled` keeps every profile, so only the library size "
    "can detect it."
)


# --- the study --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Material:
    """Real cells in three disjoint parts: held-out cells, training cells, and cells to corrupt."""

    real: AnnData
    train: AnnData
    pool: AnnData
    seed: int

    @classmethod
    def of(cls, dataset: str, seed: int, n_cells: int) -> Material:
        """Split a data set; one half of its training cells plays the synthetic ones."""
        split = split_cells(load(dataset), CONDITION_KEYS[dataset], seed=seed, n_genes=N_GENES)
        order = np.random.default_rng(seed).permutation(split.train.n_obs)
        train, pool = (split.train[rows].copy() for rows in np.array_split(order, 2))
        return cls(split.held_out[:n_cells].copy(), train, pool, seed)

    def corrupted(self, name: str) -> AnnData:
        """Return as many corrupted cells as held-out ones, even if the corruption leaves some out."""
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
    """Judge every corruption of one data set, with the floors and intervals of the unchanged cells.

    Returns
    -------
    Columns ``dataset, seed, corruption, metric, value, floor, low, high``, figures of all cells; and per corruption a
    row ``verdict`` whose ``says`` lists the topics with a warning.
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
    """Take floors and interval widths from another table."""
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
    """Run what is missing, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="*", default=list(DATASETS), choices=list(CONDITION_KEYS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--metrics",
        nargs="*",
        default=list(FAST_METRICS),
        choices=[name for name, metric in CATALOGUE.items() if "all" in metric.scopes],
    )
    parser.add_argument("--cells", type=int, default=N_CELLS, help="number of cells on each side")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only write the tables of stored results")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    path = options.results / "sensitivity.csv"
    for seed in [] if options.report else options.seeds:
        for dataset in options.datasets:
            if not is_done(read_table(path), dataset, seed, options.metrics):
                store_rows(path, study(dataset, seed, options.metrics, options.cells), KEYS)
    write_text(options.results / "sensitivity.md", report(read_table(path)))


def is_done(stored: pd.DataFrame, dataset: str, seed: int, metrics: Sequence[str]) -> bool:
    """Return whether all of these metrics are stored for all corruptions."""
    if stored.empty:
        return False
    rows = stored[(stored["dataset"] == dataset) & (stored["seed"] == seed) & stored["metric"].isin(metrics)]
    return len(rows) == len(metrics) * len(CORRUPTIONS)


if __name__ == "__main__":
    main()
