"""Short tables of the studies for the documentation; `python -m benchmarks.pages` writes them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.studies.end_to_end import costs_of, quality_of
from benchmarks.studies.held_out import REAL
from benchmarks.studies.hours import GENERATE, OTHER_HOUR, PROPORTIONAL, RIVALS, TRANSPORT
from benchmarks.studies.known_world import GENERATED
from benchmarks.studies.known_world import REAL as REAL_CELLS
from benchmarks.studies.learning_curves import COSTS, DEFAULT, METHODS, columns_of, of_default_world
from benchmarks.studies.many_labels import GROUPS
from benchmarks.studies.world import N_GENES
from benchmarks.tables import markdown_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Blocks = dict[tuple[str, str], str]
HOW_MANY_CELLS = "docs/user_guide/how_many_cells.md"


PERTURBATION_METHODS = {
    "floor": REAL,
    "scldm_transport": "SCLDM, transport",
    "latent_arithmetic": "latent arithmetic",
    "scvi_arithmetic": "scVI arithmetic",
    "scgen": "scGen",
    "cpa": "CPA",
    "cellflow": "CellFlow",
    "mean_shift": "mean shift",
    "linear_additive": "linear additive",
    "no_change": "no change",
}
PERTURBATION_METRICS = {
    "energy_distance": "energy distance",
    "mean_change_correlation": "correlation",
    "mean_change_slope": "slope",
    "mean_change_debiased_error": "squared error",
    "variance_error": "variances",
}


def perturbation(table: pd.DataFrame) -> Blocks:
    """Write the means over the left-out types that all methods predicted, and the energy distance of each type."""
    page = "docs/user_guide/perturbations.md"
    by_type = table.groupby(["metric", "method", "cell_type"])["value"].mean().unstack()
    common = by_type.loc["energy_distance"].loc[list(PERTURBATION_METHODS)].dropna(axis=1).columns
    means = by_type[common].mean(axis=1, skipna=False).unstack("metric")
    methods = {name: method for method, name in PERTURBATION_METHODS.items()}
    overall = _table(means, methods, {name: metric for metric, name in PERTURBATION_METRICS.items()})
    shown = {
        "SCLDM, transport": "scldm_transport",
        "latent arithmetic": "latent_arithmetic",
        "mean shift": "mean_shift",
        "`generate`": "scldm_generate",
    }
    energy = by_type.loc["energy_distance"].T
    types = _table(energy, {name: name for name in energy.index}, {REAL: "floor"} | shown, corner="left-out type")
    return {(page, "perturbation"): overall, (page, "perturbation: types"): types}


COMBINATION_METHODS = {
    REAL: "floor",
    "SCLDM, transport": "scldm_transport",
    "sum of both effects": "additive",
    "CPA": "cpa",
    "CellFlow": "cellflow",
    "mean shift": "mean_shift",
    "no change": "no_change",
}


def perturbation_combinations(table: pd.DataFrame) -> Blocks:
    """Write the means over pairs of genes and seeds."""
    means = table.pivot_table(index="method", columns="metric", values="value")
    metrics = ("energy_distance", "mean_change_correlation", "mean_change_debiased_error", "variance_error")
    shown = {PERTURBATION_METRICS[metric]: metric for metric in metrics}
    text = _table(means, COMBINATION_METHODS, shown, corner="pairs of genes", write="{:.3f}")
    return {("docs/user_guide/perturbations.md", "perturbation_combinations"): text}


HOUR_METHODS = (REAL, TRANSPORT, GENERATE, OTHER_HOUR, PROPORTIONAL, *RIVALS, "no change")


def hours(table: pd.DataFrame) -> Blocks:
    """Write the figures of each hour left out."""
    metrics = {
        "energy distance": "energy_distance",
        "correlation": "mean_change_correlation",
        "slope": "mean_change_slope",
    }
    columns = {f"{hour:g} h: {name}": (metric, hour) for hour in (1.0, 3.0) for name, metric in metrics.items()}
    means = table.pivot_table(index="method", columns="left_out", values=list(metrics.values()))
    text = _table(means, {name: name for name in HOUR_METHODS}, columns, corner="cells of the hour left out")
    return {("docs/user_guide/numbers.md", "hours"): text}


def end_to_end(table: pd.DataFrame) -> Blocks:
    """Write what the steps from files to a report cost with 200 000 and a million cells, and how good the cells are."""
    blocks = {}
    for cells in (200_000, 1_000_000):
        rows = table[(table["cells"] == cells) & (table["genes"] == N_GENES) & (table["processes"] == 1)]
        blocks["docs/how_to/atlas.md", f"end_to_end: costs of {cells}"] = costs_of(rows)
        blocks["docs/how_to/atlas.md", f"end_to_end: quality of {cells}"] = quality_of(rows)
    return blocks


def learning_curves(table: pd.DataFrame) -> Blocks:
    """Write quality, minutes and memory by number of cells, and by numbers of genes and types."""
    worlds = columns_of(table)
    wide = of_default_world(worlds)
    floor = wide.xs(REAL, level="method").iloc[[0]]
    models = wide.loc[[key for method in METHODS for key in sorted(wide.index) if key[0] == method]]
    models.index = [f"{method}, {cells:,}" for method, cells in models.index]
    shown = pd.concat([floor.set_axis([REAL]), models])
    costs = list(COSTS.values())
    left_out = [*costs, "F1", "distance", "copies"]  # hardly differ
    columns = {name: name for name in shown if name not in left_out}
    quality = _table(shown, {name: name for name in shown.index}, columns, corner="training cells")
    minutes, peak = (wide[name].dropna().unstack("method").sort_index() for name in costs)
    lines = [
        [f"{cells:,}", *(_cost(values.get(method, {}).get(cells)) for method in METHODS for values in (minutes, peak))]
        for cells in minutes.index
    ]
    header = ["training cells", *(f"{method}: {name}" for method in METHODS for name in ("minutes", "GiB"))]
    rows = {
        f"{name}, {genes:,} genes, {types} types": (method, 8_000, DEFAULT, genes, types)
        for genes, types in sorted({key[3:] for key in worlds.index})
        for method, name in {**{name: name for name in (REAL, *METHODS)}, "NB-copula": "NB copula per label"}.items()
    }
    rows = {name: key for name, key in rows.items() if key in worlds.index}
    columns = {name: name for name in [*columns, *costs] if not name.endswith("type")}
    genes_and_types = _table(worlds, rows, columns, corner="8,000 training cells")
    return {
        (HOW_MANY_CELLS, "learning_curves: quality"): quality,
        (HOW_MANY_CELLS, "learning_curves: costs"): markdown_table(header, lines),
        (HOW_MANY_CELLS, "learning_curves: genes and types"): genes_and_types,
    }


def _cost(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def many_labels(table: pd.DataFrame) -> Blocks:
    """Write how often type and donor are right, by number of training cells of the combination."""
    means = table.pivot_table(index=["model", "cells"], columns="n_train", values="confirmed")
    rows = {
        "real cells": ("SCLDM", REAL_CELLS),
        **{name: (name, GENERATED) for name in ("SCLDM", "SCRDIT")},
        **{f"{name}, `guidance_scale=1.5`": (name, "guidance 1.5") for name in ("SCLDM", "SCRDIT")},
        "NB copula per label": ("NB-copula", GENERATED),
    }
    text = _table(means, rows, {f"{name} training cells": name for name in GROUPS})
    return {("docs/user_guide/scldm.md", "many labels"): text}


def _table(
    values: pd.DataFrame,
    rows: Mapping[str, object],
    columns: Mapping[str, object],
    *,
    corner: str = "",
    write: str = "{:.2f}",
) -> str:
    """Write some rows and columns under other names; what was not measured stays empty."""
    lines = []
    for name, row in rows.items():
        found = [values[column].get(row) for column in columns.values()]
        lines.append(
            [name, *("" if pd.isna(value) else re.sub(r"^-(?=[0.]+$)", "", write.format(value)) for value in found)]
        )
    return markdown_table([corner, *columns], lines)


#: By the file of results.
BLOCKS: dict[str, Callable[[pd.DataFrame], Blocks]] = {
    "perturbation": perturbation,
    "end_to_end": end_to_end,
    "learning_curves": learning_curves,
    "hours": hours,
    "perturbation_combinations": perturbation_combinations,
    "many_labels": many_labels,
}
