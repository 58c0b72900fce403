"""The tables of the sensitivity study, to be included in the docs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks.studies.corruptions import CORRUPTIONS
from benchmarks.tables import markdown_table
from scgen_diffusion.metrics import CATALOGUE

UNCHANGED = "unchanged"
QUANTILE = 1.959964  # intervals are 95 % ones of a normal distribution
SEEN, STRONG = 3.0, 10.0  # standard deviations
SIGNIFICANT = 0.01
NOTHING, SEES, SEES_STRONGLY, FOOLED = "·", "sees", "**sees**", "*fooled*"

FAMILIES = {
    "Distribution": ["w2", "sliced_w2", "mmd2", "frechet", "precision", "recall", "density", "coverage"],
    "Telling cells apart": ["auc_boosting", "auc_logistic", "auc_neighbours", "auc_genes", "ilisi", "mmd_p_value"],
    "Genes": [
        *("gene_mean_error", "gene_variance_error", "gene_zero_error", "mean_variance_error"),
        *("within_label_correlation", "library_size_ks"),
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
    """Write the explanation, a table per family of metrics, and what the verdict says."""
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
            "**Warnings of `verdict`**, with the share of runs that have them",
            markdown_table(["corruption", "warnings"], said),
        ]
    return "\n\n".join(parts) + "\n"


def effects(rows: pd.DataFrame) -> pd.DataFrame:
    """Return by how many standard deviations a corruption makes each metric worse, the median over data sets and seeds.

    A run's effect is its value minus that of the unchanged cells of the same data set and seed, signed so that worse is positive, over the
    standard deviation of the unchanged cells' value. A metric that is always 0 for real cells, such as copies, has none; any change of it is strong.
    A p-value counts as seen where it is 0.01 or less.

    Returns
    -------
    Corruptions in rows, metrics in columns.
    """
    rows = rows[rows["metric"] != "verdict"].astype({"value": float, "floor": float, "low": float, "high": float})
    keys = ["dataset", "seed", "metric"]
    unchanged = rows[rows["corruption"] == UNCHANGED].copy()
    reach = np.fmax(unchanged["high"] - unchanged["value"], unchanged["value"] - unchanged["low"])
    unchanged["sd"] = reach / QUANTILE
    unchanged["sd"] = unchanged.groupby(["dataset", "metric"])["sd"].transform("mean")
    pairs = rows.merge(unchanged[[*keys, "value", "floor", "sd"]], on=keys, suffixes=("", "_unchanged"))
    worse = pairs["value"] - pairs["value_unchanged"]
    better = pairs["metric"].map({name: metric.better for name, metric in CATALOGUE.items()})
    off, off_unchanged = ((pairs[name] - pairs["floor_unchanged"]).abs() for name in ("value", "value_unchanged"))
    worse = worse.where(better == "lower", -worse).where(better != "floor", off - off_unchanged)
    pairs["effect"] = np.where(worse.abs() < 1e-12, 0, worse / pairs["sd"].clip(lower=1e-9))
    is_p = pairs["metric"] == "mmd_p_value"
    pairs.loc[is_p, "effect"] = SEEN * (pairs.loc[is_p, "value"] <= SIGNIFICANT)
    return pairs.groupby(["corruption", "metric"])["effect"].median().unstack()


def _symbol(effect: float) -> str:
    if not np.isfinite(effect):
        return ""
    if effect <= -SEEN:
        return FOOLED
    return NOTHING if effect < SEEN else SEES_STRONGLY if effect >= STRONG else SEES


def _verdicts(rows: pd.DataFrame) -> list[list[str]]:
    said = rows[rows["metric"] == "verdict"]
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
        f"Real cells of {names} that play the synthetic ones ({n_splits.max()} splits each{'; ' + fewer if fewer else ''}; 400 cells on "
        "either side, about 1 000 training cells, the 2 000 most variable genes) were corrupted in known ways and judged by `evaluate`. "
        "An entry says by how many standard deviations of chance a corruption makes a metric worse, in the median over data sets and "
        f"splits: {NOTHING} is less than {SEEN:.0f}, {SEES} is {SEEN:.0f} or more, {SEES_STRONGLY} {STRONG:.0f} or more; {FOOLED} would say "
        f"that the metric calls the corrupted cells *better* than real ones by {SEEN:.0f} or more. A p-value counts as seen at {SIGNIFICANT} "
        "or less. With more cells every metric sees smaller defects. The first row, cells left as they are, has no entries by "
        "construction in the tables of metrics; in that of the verdict it shows the false alarms."
    )


READING = (
    "What to take from it: no single metric sees everything, and many see most things a little. Cells drawn from their label's mean lie "
    "where real cells do (`precision`) and carry the right label (`label_fidelity`); `recall`, `coverage`, `auc_neighbours`, `ilisi` and "
    "`within_label_correlation` show best that they have no structure of their own. Swapped labels are seen by the metrics that look at labels alone. Single copies and "
    "twins are seen by `copied_cells` and `duplicate_share` alone, copies with some counts changed by the distances to training cells and "
    "by `membership_auc`. A model that repeats its training cells is not rewarded elsewhere: those of them that the principal "
    "components were fitted to stick out in this space, which `precision` and `w2` show. `totals doubled` keeps every profile, so "
    "that nothing but the library size can see it."
)
