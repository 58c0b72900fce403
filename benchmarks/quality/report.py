"""Compare the methods in tables and a picture."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from benchmarks.quality.splits import CHOSEN_ON, DATASETS, HELD_BACK
from benchmarks.tables import REAL, markdown_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

#: 95 % of a normal distribution lies within this many standard deviations.
NORMAL_95 = 1.96

#: Intervals of `evaluate` reach this many standard deviations of its ten half-samples (Student's t).
TEN_HALVES_95 = 2.262157

#: The metrics in the picture, in words; the tables have all metrics.
CLEAR_ERRORS = 3  # standard errors; the picture stretches no smaller difference
SHOWN = {
    "w2": "Wasserstein-2",
    "mmd2": "MMD²",
    "precision": "precision",
    "recall": "recall",
    "auc_boosting": "AUC, PCs",
    "auc_genes": "AUC, genes",
    "within_label_correlation": "correlation",
    "library_size_ks": "library sizes (KS)",
    "tstr_f1": "F1",
    "dcr_ratio": "distance",
}


def means_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per data set, metric and method: means over seeds, and the standard error of the mean.

    The error is the larger of the spread between seeds and the intervals within seeds.
    """
    rows = table[table["group"] == "all"].copy()
    rows["variance"] = ((rows["high"] - rows["low"]) / (2 * TEN_HALVES_95)) ** 2
    grouped = rows.groupby(["dataset", "metric", "method"], sort=False)
    means = grouped[["value", "real", "shuffled"]].mean()
    n_seeds = grouped["seed"].nunique()
    within = np.sqrt(grouped["variance"].mean())
    between = grouped["value"].std().fillna(0)
    means["error"] = np.fmax(within, between) / np.sqrt(n_seeds)
    means["better"], means["n_seeds"] = grouped["better"].first(), n_seeds
    means["has_interval"] = within.notna()
    return means.reset_index()


def shortfall(rows: pd.DataFrame) -> pd.Series:
    """Return how far a value is on the bad side of the real value; 0 if it is as good as real cells.

    A value better than the real value earns nothing: cells closer to held-out cells than other real cells are too
    similar.
    """
    real = rows["real"]
    below, above = real - rows["value"], rows["value"] - real
    far = np.select(
        [rows["better"] == "lower", rows["better"] == "higher"], [above, below], (rows["value"] - real).abs()
    )
    without_real = real.isna()
    return pd.Series(np.where(without_real, rows["value"], np.maximum(far, 0)), index=rows.index)


def leaders(rows: pd.DataFrame) -> pd.Series:
    """Return which methods are best, or not significantly different from the best, in the rows of one metric."""
    far = shortfall(rows)
    if far.isna().all():  # a metric that these cells are too few for
        return far.notna()
    best = far.idxmin()
    reach = NORMAL_95 * np.sqrt(rows["error"].fillna(0) ** 2 + np.nan_to_num(rows["error"][best]) ** 2)
    return far <= far[best] + reach


def means_over_untouched(means: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return means over the data sets on which no default was chosen, for each method that has several of them.

    One row per metric: the value, the real value of the same data sets, and their number.
    """
    rows = means[means["dataset"].isin(UNTOUCHED)]
    by_method = {
        method: of_method.groupby("metric").agg(
            value=("value", "mean"), real=("real", "mean"), n_datasets=("dataset", "nunique")
        )
        for method, of_method in rows.groupby("method")
    }
    return {method: table for method, table in by_method.items() if table["n_datasets"].max() > 1}


#: The columns of the short table, with the decimals that the errors justify.
IN_SHORT = {
    "auc_boosting": "AUC, PCs",
    "auc_genes": "AUC, genes",
    "precision": "precision",
    "recall": "recall",
    "within_label_correlation": "correlation",
    "tstr_f1": "F1",
    "dcr_ratio": "distance",
    "cpu_minutes": "minutes",
}
#: Methods of the tables of single metrics, and their names there.
STRENGTHS = {"SCLDM": "SCLDM", "NB-copula": "NB copula per label"}
NEARNESS = {
    "SCLDM": "SCLDM",
    "SCRDIT": "SCRDIT",
    "SCRDIT-profiles": 'SCRDIT, `"vp_linear"`',
    "WBDIT": "WBDIT",
    "WBDIT-profiles": 'WBDIT, `"vp_linear"`',
}
IN_WORDS = {
    "scVI": "scVI, from its prior",
    "NB-copula": "NB copula per label",
    "independent-NB": "independent NB per label",
    "scDiffusion": "scDiffusion, 5 minutes",
}
#: Of the table in the README: no methods that only a closer look needs, and no figures in which most methods are alike.
METHODS_IN_README = ("SCLDM", "SCRDIT", "WBDIT", "scVI", "NB-copula")
IN_README = {metric: name for metric, name in IN_SHORT.items() if name not in ("F1", "distance")}
METHODS_IN_SHORT = ("SCLDM", "SCRDIT", "WBDIT", "scVI", "NB-copula", "independent-NB")
DATASETS_IN_SHORT = ("pbmc3k", "pbmc10k_citeseq")
OTHER_DATASETS = ("kang_ifnb", "paul15", "worm_embryo", "perturb_norman_mcfaline")
OTHER_METHODS = ("SCLDM", "SCRDIT", "WBDIT", "scVI", "NB-copula", "scDesigner", "CFGen", "scDiffusion")
HELD_BACK_DATASETS = tuple(name for name, dataset in DATASETS.items() if dataset.use == HELD_BACK)
UNTOUCHED = tuple(name for name, dataset in DATASETS.items() if dataset.use != CHOSEN_ON)
PANEL = "osmfish_cortex"
FEW_CELLS = ("pbmc3k:300", "paul15:300", "kang_ifnb:1000")


def page_blocks(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return the text of each marked place, by page and mark."""
    in_short = summarise_methods(table, DATASETS_IN_SHORT, METHODS_IN_SHORT)
    others = {
        "others": summarise_methods(table, OTHER_DATASETS, OTHER_METHODS),
        "held back": summarise_methods(table, HELD_BACK_DATASETS, OTHER_METHODS),
        "panel": summarise_methods(table, [PANEL], OTHER_METHODS),
        "untouched": summarise_untouched(table, METHODS_IN_README),
    }
    few_cells = summarise_methods(table, FEW_CELLS, ("SCLDM", "SCRDIT", "NB-copula"))
    strengths = summarise_metric(table, "within_label_slope", STRENGTHS, "{:.2f}".format)
    nearness = summarise_metric(table, "nearer_than_held_out", NEARNESS, lambda share: f"{100 * share:.1f} %")
    table = table[table["dataset"].isin(DATASETS_IN_SHORT) & table["method"].isin(METHODS_IN_SHORT)]
    return {
        **{("docs/comparison.md", mark): text for mark, text in others.items()},
        ("docs/comparison.md", "strengths"): strengths,
        ("README.md", "quality"): summarise_methods(table, DATASETS_IN_SHORT, METHODS_IN_README, figures=IN_README),
        ("docs/comparison.md", "quality"): in_short,
        ("docs/user_guide/how_many_cells.md", "few cells"): few_cells,
        ("docs/user_guide/scrdit.md", "nearness"): nearness,
    }


def summarise_methods(
    table: pd.DataFrame, datasets: Sequence[str], methods: Sequence[str], figures: Mapping[str, str] = IN_SHORT
) -> str:
    """Write one row per data set and method: the most informative figures, and the seeds if their number differs."""
    lines = []
    table = table[table["dataset"].isin(datasets) & table["method"].isin(methods)]
    means = means_over_seeds(table)
    by_dataset = dict(list(means.groupby("dataset")))
    header, seeds_differ = ["", *figures.values()], means["n_seeds"].nunique() > 1
    for dataset in [name for name in datasets if name in by_dataset]:
        rows = by_dataset[dataset]
        columns = [_column(rows[rows["metric"] == metric]) for metric in figures]
        if seeds_differ:
            columns.append(rows.groupby("method")["n_seeds"].max().astype(str).to_dict())
        for method in (REAL, *(method for method in methods if method in set(rows["method"]))):
            name = f"**{dataset}**: {REAL}" if method == REAL else IN_WORDS.get(method, method)
            lines.append([name, *(column.get(method, "") for column in columns)])
    return markdown_table([*header, "seeds"] if seeds_differ else header, lines)


def summarise_untouched(table: pd.DataFrame, methods: Sequence[str]) -> str:
    """Write means over the data sets on which no default was chosen: one row per method, and real cells in brackets."""
    by_method, lines = means_over_untouched(means_over_seeds(table)), []
    for method in filter(by_method.__contains__, methods):
        n_datasets = by_method[method]["n_datasets"].max()
        rows = by_method[method].reindex(list(IN_SHORT))
        numbers = [
            f"{row.value:.1f}" if np.isnan(row.real) else f"{row.value:.2f} ({row.real:.2f})"
            for row in rows.itertuples()
        ]
        lines.append([IN_WORDS.get(method, method), str(n_datasets), *numbers])
    return markdown_table(["", "data sets", *IN_SHORT.values()], lines)


def summarise_metric(table: pd.DataFrame, metric: str, names: Mapping[str, str], form: Callable[[float], str]) -> str:
    """Write one metric: a row per whole data set, and a column per method, by its name in the table."""
    shown = table[(table["metric"] == metric) & table["dataset"].isin(DATASETS) & table["method"].isin(names)]
    lines = []
    for dataset, rows in means_over_seeds(shown).groupby("dataset", sort=False):
        values = {REAL: rows["real"].mean(), **rows.set_index("method")["value"]}
        numbers = (values.get(method, np.nan) for method in (REAL, *names))
        lines.append([dataset, *("" if np.isnan(number) else form(number) for number in numbers)])
    return markdown_table(["", REAL, *names.values()], lines)


def _column(of_metric: pd.DataFrame) -> dict[str, str]:
    """Return a metric's values by method with two decimals, the leaders in bold; minutes with one decimal."""
    of_metric = of_metric.set_index("method")
    if of_metric.index.empty:
        return {}
    if not of_metric["has_interval"].any():
        return {method: f"{value:.1f}" if value >= 0.05 else "< 0.1" for method, value in of_metric["value"].items()}
    first = leaders(of_metric)
    values = {
        method: f"**{value:.2f}**" if first[method] else f"{value:.2f}" for method, value in of_metric["value"].items()
    }
    return {REAL: f"{of_metric['real'].mean():.2f}", **values}


def draw_comparison(table: pd.DataFrame, methods: Sequence[str], path: Path) -> None:
    """Draw every method's figures on a scale from the real value (0) to the worst method (1).

    A scale has at least the width of ``CLEAR_ERRORS`` standard errors. If there are rows of the data sets and methods
    that pages show, only those are drawn.
    """
    in_short = table["dataset"].isin(DATASETS_IN_SHORT) & table["method"].isin(METHODS_IN_SHORT)
    if in_short.any():
        table, methods = table[in_short], METHODS_IN_SHORT
    methods = [method for method in methods if method in set(table["method"])]
    means = means_over_seeds(table)
    means = means[means["metric"].isin(SHOWN)]
    datasets = list(dict.fromkeys(means["dataset"]))
    size = (1.5 + 3.4 * len(datasets), 5)
    figure, axes = plt.subplots(1, len(datasets), figsize=size, sharey=True, squeeze=False, layout="constrained")
    colours = plt.get_cmap("tab10" if len(methods) <= 10 else "tab20").colors
    style = {"fmt": "o", "ms": 4.5, "lw": 1}
    for (ax, dataset), (place, metric) in product(zip(axes[0], datasets, strict=True), enumerate(SHOWN)):
        rows = means[(means["dataset"] == dataset) & (means["metric"] == metric)].set_index("method")
        far = shortfall(rows)
        span = max(far.max(), CLEAR_ERRORS * rows["error"].max(), 1e-12)
        for number, method in enumerate(methods):
            if method in far.index:
                y, label = place - 0.3 + 0.6 * (number + 0.5) / len(methods), method if place == 0 else None
                error = rows["error"][method] / span
                ax.errorbar(far[method] / span, y, xerr=error, color=colours[number], label=label, **style)
        ax.axhline(place - 0.5, color="0.93", lw=1, zorder=0)
        ax.axvline(0, color="0.6", lw=1, zorder=0)
        ax.set(title=dataset, xlim=(-0.12, 1.2), xticks=[0, 1], xticklabels=["real cells", "worst\nmethod"])
    axes[0, 0].set_yticks(range(len(SHOWN)), SHOWN.values())
    axes[0, 0].invert_yaxis()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(methods), 4), frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
