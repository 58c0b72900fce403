"""The perturbation study as tables and as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd

from benchmarks.tables import markdown_table
from scgen_diffusion import pl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import anndata as ad

    from benchmarks.studies.perturbation_cases import Case

#: The types on which the transport and its training were chosen; nothing was tried on the others.
TUNED = ("B", "CD14 Mono", "CD4 Naive T")
FLOOR = "floor"
OURS = "scldm_transport"
#: Every method, in the order of the tables.
NAMES = {
    "no_change": "no change",
    "mean_shift": "mean shift",
    "linear_additive": "linear additive",
    "scvi_arithmetic": "scVI arithmetic",
    "latent_arithmetic": "latent arithmetic",
    "scldm_unpaired": "SCLDM unpaired",
    "scldm_inversion": "SCLDM inversion",
    OURS: "SCLDM transport",
    "scldm_transport_new_counts": "transport, new counts",
    "scldm_arithmetic_own_residuals": "arithmetic, own residuals",
}
BASELINES = ("no_change", "mean_shift", "linear_additive", "scvi_arithmetic", "latent_arithmetic")
#: Figures and methods of the short table, in words.
HEADLINE = {
    "energy_distance": "energy distance",
    "w2": "Wasserstein-2",
    "mean_change_error": "error of mean changes",
    "mean_change_correlation": "correlation of mean changes",
    "mean_change_correlation_top_20": "the same, top 20 genes",
    "mean_change_correlation_top_100": "the same, top 100 genes",
    "de_overlap_top_100": "overlap of top 100 genes",
    "de_jaccard": "overlap of differential genes",
    "de_direction": "direction of differential genes",
    "variance_error": "error of variances",
}
HEADLINE_METHODS = (  # the model first, since pages cut wide tables off on the right
    OURS,
    "scldm_inversion",
    "scldm_unpaired",
    "scldm_arithmetic_own_residuals",
    "latent_arithmetic",
    "scvi_arithmetic",
    "linear_additive",
    "mean_shift",
    "no_change",
)
#: What the pictures show.
DRAWN_METRICS = ("energy_distance", "w2", "mean_change_correlation", "de_overlap_top_100")
DRAWN_METHODS = ("mean_shift", "latent_arithmetic", "scvi_arithmetic", OURS)
CHANGES_OF = ("CD14 Mono", "CD16 Mono")
CHANGES_BY = ("linear_additive", "latent_arithmetic", OURS)


def means_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return means over seeds: one row per metric and cell type, one column per method."""
    rows = table.groupby(["metric", "cell_type", "method"], sort=False)["value"].mean()
    return rows.unstack("method")


def summarise(table: pd.DataFrame) -> str:
    """Write the tables."""
    better = table.groupby("metric")["better"].first()
    means = means_over_seeds(table)
    types = list(dict.fromkeys(means.index.get_level_values("cell_type")))
    parts = [
        "Means over cell types of means over seeds. One type's stimulated cells are left out at a time, and predicted from its control cells. The floor is what one half of the "
        "real cells scores as prediction of the other. **Bold**: the best of a row. Written by `python -m benchmarks.studies.perturbation`.",
        "",
        f"**All {len(types)} types**",
        "",
        _table_of_metrics(means, better),
        "",
    ]
    untuned = [name for name in types if name not in TUNED]
    for title, some in (
        ("Types on which the method was chosen", set(types) & set(TUNED)),
        ("Types that were not looked at", set(untuned)),
    ):
        if some:
            shown = means[means.index.get_level_values("cell_type").isin(some)]
            parts += [f"**{title}: {', '.join(sorted(some))}**", "", _table_of_metrics(shown, better), ""]
    for metric in DRAWN_METRICS:
        parts += [
            f"**`{metric}` by type** ({better[metric]} is better)",
            "",
            _table_of_types(means.loc[metric], better[metric]),
            "",
        ]
    if OURS in means:
        parts += [
            "**In how many types SCLDM's transport is better than each baseline**",
            "",
            _table_of_wins(means, better),
            "",
        ]
    parts += [
        _seeds(table),
        "",
        f"Measured with {'; '.join(table['versions'].unique())}, on {'; '.join(table['machine'].unique())}.",
    ]
    return "\n".join(parts) + "\n"


def headline(table: pd.DataFrame) -> str:
    """Write one short table, and one of the energy distance by type; methods without all types are left out."""
    better = table.groupby("metric")["better"].first()
    means = means_over_seeds(table)
    is_complete = means.notna().groupby("metric").all().all()
    methods = [name for name in HEADLINE_METHODS if name in means and is_complete[name]]
    lines = []
    for metric in (name for name in HEADLINE if name in better):
        row = means.loc[metric].mean()
        lines.append(
            [
                f"{HEADLINE[metric]} ({better[metric]})",
                _short(row[FLOOR]),
                *_with_best(row[methods], better[metric], _short),
            ]
        )
    by_type = [
        [name, _short(row[FLOOR]), *_with_best(row[methods], "lower", _short)]
        for name, row in means.loc["energy_distance"].sort_index().iterrows()
    ]
    names = [NAMES[name] for name in methods]
    parts = [
        markdown_table(["figure (which is better)", FLOOR, *names], lines),
        markdown_table(["energy distance", FLOOR, *names], by_type),
    ]
    return "\n\n".join(parts) + "\n"


def _present(means: pd.DataFrame) -> list[str]:
    return [name for name in NAMES if name in means and means[name].notna().any()]


def _table_of_metrics(means: pd.DataFrame, better: pd.Series) -> str:
    methods = _present(means)
    of_all = means.groupby("metric", sort=False).mean()
    complete = means.groupby("metric", sort=False).count()
    n_types = complete[FLOOR].iloc[0]
    lines = []
    for metric, row in of_all.iterrows():
        values = row[methods].where(
            complete.loc[metric, methods] == n_types
        )  # a mean over other types would not compare
        lines.append([f"`{metric}`", better[metric], _number(row[FLOOR]), *_with_best(values, better[metric])])
    return markdown_table(["figure", "better", FLOOR, *(NAMES[name] for name in methods)], lines)


def _table_of_types(means: pd.DataFrame, better: str) -> str:
    methods = _present(means)
    lines = [
        [name + (" (tuned)" if name in TUNED else ""), _number(row[FLOOR]), *_with_best(row[methods], better)]
        for name, row in means.sort_index().iterrows()
    ]
    return markdown_table(["left out", FLOOR, *(NAMES[name] for name in methods)], lines)


def _table_of_wins(means: pd.DataFrame, better: pd.Series) -> str:
    baselines = [name for name in BASELINES if name in means]
    lines = []
    for metric in means.index.get_level_values("metric").unique():
        rows = means.loc[metric]
        wins = []
        for name in baselines:
            both = rows[[OURS, name]].dropna()
            gain = (both[OURS] - both[name]) * (1 if better[metric] == "higher" else -1)
            wins.append(f"{int((gain > 0).sum())} of {len(both)}")
        lines.append([f"`{metric}`", *wins])
    return markdown_table(["figure", *(NAMES[name] for name in baselines)], lines)


def _seeds(table: pd.DataFrame) -> str:
    n_seeds = table.groupby(["method", "cell_type"])["seed"].nunique().groupby("method").agg(["min", "max", "size"])
    told = [
        f"{NAMES[name]} {row['min']}"
        + (f" to {row['max']}" if row["max"] > row["min"] else "")
        + f" ({row['size']} types)"
        for name, row in n_seeds.iterrows()
        if name in NAMES
    ]
    return f"Seeds per type: {', '.join(told)}."


def _with_best(values: pd.Series, better: str, write: Callable[[float], str] | None = None) -> list[str]:
    write = write or _number
    best = write(values.max() if better == "higher" else values.min())
    return [f"**{text}**" if text == best else text for text in map(write, values)]


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def draw_scores(table: pd.DataFrame, path: Path) -> None:
    """Draw the figures of every type and method."""
    index = ["metric", "cell_type", "seed", "better"]
    wide = table.pivot_table(index=index, columns="method", values="value").reset_index()
    wide = wide.rename(columns={"cell_type": "group"}).assign(perturbation="IFN-beta")
    shown = {name: NAMES[name] for name in DRAWN_METHODS if name in wide}
    pl.perturbation_scores(wide, metrics=DRAWN_METRICS, methods=shown, show=False)
    plt.savefig(path, dpi=120, bbox_inches="tight")
    plt.close()


def draw_changes(cases: Mapping[str, tuple[Case, Mapping[str, ad.AnnData]]], path: Path) -> None:
    """Draw every gene's predicted change against the real one: a row per case, a column per method."""
    n_methods = len(next(iter(cases.values()))[1])
    size = (3.9 * n_methods, 3.7 * len(cases))
    figure, axes = plt.subplots(len(cases), n_methods, figsize=size, squeeze=False, layout="constrained")
    for (cell_type, (case, predicted)), row in zip(cases.items(), axes, strict=True):
        for (method, cells), ax in zip(predicted.items(), row, strict=True):
            pl.mean_change(case.real, cells, case.control, axs=[ax], show=False)
            ax.set_title(f"{cell_type}: {NAMES[method]}")
    figure.savefig(path, dpi=90)
    plt.close(figure)
