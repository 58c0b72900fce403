"""Compare the methods in tables and a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import wilcoxon
from statsmodels.stats.multitest import multipletests

from benchmarks.quality.splits import DATASETS
from benchmarks.tables import REAL, ROOT, markdown_table, read_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

#: The columns of the tables. `cpu_minutes` is a cost, without a real value.
IN_SHORT = {
    "auc_boosting": "AUC, PCs",
    "auc_genes": "AUC, genes",
    "precision": "precision",
    "recall": "recall",
    "within_label_correlation": "correlation",
    "marker_slope": "fold changes",
    "tstr_f1": "F1",
    "dcr_ratio": "distance",
    "cpu_minutes": "minutes",
}
IN_BRIEF = {metric: name for metric, name in IN_SHORT.items() if name not in ("F1", "distance")}
IN_README = {metric: name for metric, name in IN_BRIEF.items() if name != "minutes"}
OURS = ("SCLDM", "SCMDM", "SCRDIT", "WBDIT")
SIMPLE = ("scVI", "scVI-prior", "copula", "NB-copula")
METHODS = (*OURS, "SCMDM-white_box", "SCLDM-mixture", "SCLDM-plain", *SIMPLE)
METHODS_IN_README = (*OURS, "scVI", "scVI-prior", "copula")
PUBLISHED = ("SCLDM", "scVI", "copula", "CFGen", "scDiffusion")
IN_WORDS = {
    "SCMDM-white_box": "SCMDM, white box",
    "SCLDM-mixture": "SCLDM, mixture per label as prior",
    "SCLDM-plain": "SCLDM, plain negative binomial",
    "SCLDM-whole-panel": "SCLDM, whole panel",
    "scVI": "scVI, mixture per label",
    "scVI-prior": "scVI, its own prior",
    "copula": "copula per label",
    "NB-copula": "NB copula per label",
    "CFGen": "CFGen, published epochs",
    "scDiffusion": "scDiffusion, 1 % of its steps",
}
#: Sets of the main table, which all methods were run on, and those of others.
SETS = (
    *("pbmc3k", "kang_ifnb", "paul15", "pbmc10k_citeseq", "worm_embryo", "perturb_norman_mcfaline"),
    "mixology_celllines",
)
UNTOUCHED = tuple(name for name, dataset in DATASETS.items() if dataset.untouched)
NEW_DONORS = "kang_control_8donors:donor"
WHOLE_PANELS = ("pbmc3k", "kang_ifnb", "mixology_celllines")
FEW_CELLS = ("pbmc3k:300", "paul15:300", "kang_ifnb:1000")
NEARNESS = {name: IN_WORDS.get(name, name) for name in ("SCLDM", "SCMDM", "SCMDM-white_box")}
LEVEL, FEWEST_PAIRS = 0.05, 6  # with fewer, no signed-rank test reaches the level
RECORD = ROOT / "benchmarks" / "results" / "record.csv"
ALIKE, OLDER = " ≈", " †"


def page_blocks(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return the text of each marked place, by page and mark."""
    table = table[table["group"] == "all"]
    comparison = {
        "quality": quality_table(table, {f"{len(SETS)} sets": SETS}, METHODS),
        "sets": metric_table(
            table, "auc_genes", {name: IN_WORDS.get(name, name) for name in (*OURS, "scVI", "copula")}
        ),
        "donors": quality_table(table, {"2 new donors": [NEW_DONORS]}, ("SCLDM", *SIMPLE), IN_BRIEF),
        "untouched": quality_table(table, {f"{len(UNTOUCHED)} sets": UNTOUCHED}, METHODS, IN_BRIEF),
        "published": quality_table(table, {"kang_ifnb": ["kang_ifnb"]}, PUBLISHED, IN_BRIEF),
        "roles": role_table(),
    }
    few, whole = ({name: [name] for name in names} for names in (FEW_CELLS, WHOLE_PANELS))
    profiles = {name: [name] for name in ("pbmc3k", "pbmc10k_citeseq")}
    how_many = {
        "few cells": quality_table(table, few, ("SCLDM", *SIMPLE), IN_BRIEF),
        "whole panel": quality_table(table, whole, ("SCLDM", "SCLDM-whole-panel"), IN_BRIEF),
    }
    return {
        **{("docs/comparison.md", mark): text for mark, text in comparison.items()},
        ("README.md", "quality"): quality_table(table, {f"{len(SETS)} sets": SETS}, METHODS_IN_README, IN_README),
        **{("docs/user_guide/how_many_cells.md", mark): text for mark, text in how_many.items()},
        ("docs/user_guide/scrdit.md", "quality"): quality_table(
            table, profiles, ("SCRDIT", "WBDIT", "SCMDM"), IN_BRIEF
        ),
        ("docs/user_guide/scmdm.md", "nearness"): metric_table(table, "nearer_than_held_out", NEARNESS, "{:.1%}"),
    }


def shortfall(rows: pd.DataFrame) -> pd.Series:
    """Return how far a value is on the bad side of the real value; 0 if it is as good as real cells.

    A value better than the real value earns nothing: cells closer to held-out cells than other real cells are too
    similar.
    """
    worse = rows["value"] - rows["real"]
    sign = rows["better"].map({"lower": 1.0, "higher": -1.0})
    return (worse * sign).clip(lower=0).where(sign.notna(), worse.abs())


def figures_of(table: pd.DataFrame, datasets: Sequence[str], methods: Iterable[str]) -> pd.DataFrame:
    """Return value, real value and shortfall by metric, method, set and seed, of the methods that every set has."""
    rows = table[table["dataset"].isin(datasets) & table["method"].isin(list(methods))]
    n_sets = rows.groupby("method")["dataset"].nunique()
    rows = rows[rows["method"].isin(n_sets.index[n_sets == len(datasets)])]
    rows = rows.assign(shortfall=shortfall(rows)).set_index(["metric", "method", "dataset", "seed"])
    return rows[["value", "real", "shortfall"]].sort_index()


def means_of(figures: pd.DataFrame) -> pd.DataFrame:
    """Return means over seeds and then over sets, by metric and method; NaN where a set has none."""
    return figures.groupby(level=[0, 1, 2]).mean().groupby(level=[0, 1]).agg(lambda values: values.mean(skipna=False))


def p_values(figures: pd.DataFrame, metrics: Iterable[str]) -> pd.Series:
    """Test whether methods fall further short of real cells than the best one of each metric.

    Signed-rank tests of the pairs of set and seed, by Holm's correction for all comparisons of a table. NaN for the
    best itself, and nothing if there are too few pairs for any test.
    """
    found, shortfalls = {}, means_of(figures)["shortfall"]
    for metric in metrics:
        wide = figures["shortfall"][metric].unstack("method")
        if len(wide) < FEWEST_PAIRS:
            return pd.Series(dtype=float)
        best = shortfalls[metric].idxmin()
        for method in wide:
            difference = (wide[method] - wide[best]).dropna()
            is_same = method == best or (difference == 0).all()
            found[metric, method] = 1.0 if is_same else wilcoxon(difference, zero_method="zsplit").pvalue
        found[metric, best] = np.nan
    p = pd.Series(found)
    p[p.notna()] = multipletests(p[p.notna()], method="holm")[1]
    return p


def older_models(table: pd.DataFrame) -> set[str]:
    """Return models with rows from before the day that their cells last changed, by ``results/record.csv``."""
    calls = read_table(RECORD)
    changed = calls["since"].groupby(calls["call"].str.partition(".")[0]).max()
    models = table[table["method"].isin(OURS) | table["settings"].fillna("").str.contains('"class"')]
    since = models["settings"].str.extract(r'"class": "(\w+)"', expand=False).fillna(models["method"]).map(changed)
    return set(models["method"][models["commit"].isna() | (models["date"] < since)])


def quality_table(
    table: pd.DataFrame,
    groups: Mapping[str, Sequence[str]],
    methods: Sequence[str],
    figures: Mapping[str, str] = IN_SHORT,
) -> str:
    """Write one row per group of data sets and method: means of the figures, the best of all methods in bold.

    What is not significantly worse than the best has a mark, and so have models whose cells changed after a row.
    """
    lines = []
    for title, datasets in groups.items():
        found = figures_of(table, datasets, {*METHODS, *methods})
        means = means_of(found)
        judged = [metric for metric in IN_SHORT if metric in means.index and metric != "cpu_minutes"]
        p, older = p_values(found, judged), older_models(table[table["dataset"].isin(datasets)])
        shown = [name for name in methods if name in found.index.get_level_values("method")]
        real = means["real"].reindex([(metric, shown[0]) for metric in figures])
        lines.append([f"**{title}**: {REAL}", *("" if np.isnan(value) else f"{value:.2f}" for value in real)])
        for method in shown:
            name = IN_WORDS.get(method, method) + (OLDER if method in older else "")
            values = means["value"].reindex([(metric, method) for metric in figures])
            lines.append([name, *(_cell(key, value, p) for key, value in values.items())])
    return markdown_table(["", *figures.values()], lines)


def _cell(key: tuple[str, str], value: float, p: pd.Series) -> str:
    """Write a mean, in bold if it is the best; minutes with one decimal."""
    if np.isnan(value):
        return ""
    if key[0] == "cpu_minutes":
        return f"{value:.1f}" if value >= 0.05 else "< 0.1"
    if key not in p:
        return f"{value:.2f}"
    return f"**{value:.2f}**" if np.isnan(p[key]) else f"{value:.2f}" + (ALIKE if p[key] >= LEVEL else "")


def metric_table(table: pd.DataFrame, metric: str, names: Mapping[str, str], form: str = "{:.2f}") -> str:
    """Write one metric: a row per whole data set, and a column per method, by its name in the table."""
    shown = table[(table["metric"] == metric) & table["method"].isin(list(names))]
    older = older_models(shown)
    wide = shown.groupby(["dataset", "method"])["value"].mean().unstack().reindex(columns=list(names))
    wide.insert(0, REAL, shown.groupby("dataset")["real"].mean())
    rows = [
        [name, *("" if np.isnan(value) else form.format(value) for value in wide.loc[name])]
        for name in DATASETS
        if name in wide.index
    ]
    header = [name + OLDER * (method in older) for method, name in names.items()]
    return markdown_table(["", REAL, *header], rows)


def role_table() -> str:
    """Write what each data set was used for."""
    rows = [[name, "**held back**: " * dataset.untouched + dataset.use] for name, dataset in DATASETS.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [["data set", "used for"], ["---", "---"], *rows])


def draw_comparison(table: pd.DataFrame, path: Path) -> None:
    """Draw how far each method is from real cells: a panel per figure, a point per data set, and the mean."""
    table = table[table["group"] == "all"]
    datasets = [name for name in SETS if name in set(table["dataset"])] or list(table["dataset"].unique())
    found = figures_of(table, datasets, [*METHODS, *table["method"]])
    known = found.index.get_level_values("method")
    methods = [name for name in dict.fromkeys([*METHODS, *known]) if name in known]
    metrics = [metric for metric in IN_SHORT if metric != "cpu_minutes" and metric in found.index]
    size = (13, 1.2 + 0.5 * len(methods))
    figure, axes = plt.subplots(
        2, -(-len(metrics) // 2), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for ax, metric in zip(axes.flat, metrics, strict=False):
        difference = (found["value"] - found["real"])[metric].groupby(level=[0, 1]).mean().unstack("dataset")
        for y, method in enumerate(methods):
            points = difference.loc[method].dropna()
            colour = "C0" if method in SIMPLE else "C3"
            ax.plot(points, np.full(len(points), y), "o", ms=3, mfc="none", color=colour, alpha=0.6)
            ax.plot(points.mean(), y, "|", ms=12, mew=2, color=colour)
        ax.axvline(0, color="0.6", lw=1, zorder=0)
        ax.set(title=IN_SHORT[metric], yticks=range(len(methods)))
        ax.margins(y=0.15)
        ax.set_yticklabels([IN_WORDS.get(method, method) for method in methods], fontsize="small")
    axes[0, 0].invert_yaxis()
    figure.supxlabel("difference from real cells", fontsize="medium")
    figure.savefig(path, dpi=130)
    plt.close(figure)
