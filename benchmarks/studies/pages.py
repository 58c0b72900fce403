"""Short tables of the studies for the documentation; `python -m benchmarks.pages` writes them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.quality.report import IN_SHORT
from benchmarks.studies.end_to_end import costs_of
from benchmarks.studies.known_world import GENERATED, GROUPS
from benchmarks.studies.learning_curves import COSTS, columns_of, of_default_world
from benchmarks.studies.left_open import ANSWERS, FIGURES, SHOWN
from benchmarks.studies.perturbation import NAMES
from benchmarks.studies.world import N_GENES
from benchmarks.tables import REAL, markdown_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Blocks = dict[tuple[str, str], str]
GUIDE = "docs/user_guide"


#: Methods of each question, in the order of its table.
OF_TYPES = (
    *(
        "real",
        "scldm_perturbation_flow",
        "latent_arithmetic",
        "scvi_arithmetic",
        "scgen",
        "cpa",
        "cellflow",
        "mean_shift",
    ),
    *("linear_additive", "no_change"),
)
OF_CELLS = ("SCLDM", "scVI-prior")
OF_PAIRS = ("real", "scldm_perturbation_flow", "additive", "cpa", "cellflow", "mean_shift", "no_change")
OF_HOURS = (
    *(
        "real",
        "scldm_perturbation_flow",
        "scldm_generate",
        "mean_shift",
        "proportional",
        "cpa",
        "cellflow",
        "no_change",
    ),
)
METRICS = {
    "energy distance": "energy_distance",
    "correlation": "mean_change_correlation",
    "slope": "mean_change_slope",
    "squared error": "mean_change_debiased_error",
    "variances": "variance_error",
}


def perturbation(table: pd.DataFrame) -> Blocks:
    """Write the means over the left-out types that all methods predicted, of pairs and of hours."""
    of = dict(iter(table.groupby("question")))
    by_type = of["types"].groupby(["metric", "method", "left_out"])["value"].mean().unstack()
    common = by_type.loc["energy_distance"].loc[list(OF_TYPES)].dropna(axis=1).columns
    means = by_type[common].mean(axis=1, skipna=False).unstack("metric")
    overall = _table(means, {NAMES[name]: name for name in OF_TYPES}, METRICS)

    means = of["pairs"].pivot_table(index="method", columns="metric", values="value")
    columns = {name: metric for name, metric in METRICS.items() if name != "slope"}
    rows = {NAMES[name]: name for name in OF_PAIRS}
    pairs = _table(means, rows, columns, corner="pairs of genes", write="{:.3f}")

    means = of["hours"].pivot_table(index="method", columns=["metric", "left_out"], values="value")
    columns = {
        f"{hour}: {name}": (METRICS[name], hour)
        for hour in ("1 h", "3 h")
        for name in ("energy distance", "correlation", "slope")
    }
    rows = {"change at the other hour" if name == "mean_shift" else NAMES[name]: name for name in OF_HOURS}
    hours = _table(means, rows, columns, corner="cells of the hour left out")
    return {
        (f"{GUIDE}/perturbations.md", "perturbation"): overall,
        (f"{GUIDE}/perturbations.md", "perturbation: pairs"): pairs,
        (f"{GUIDE}/numbers.md", "perturbation: hours"): hours,
    }


def end_to_end(table: pd.DataFrame) -> Blocks:
    """Write what the steps from files to a report cost with 200,000 and a million cells."""
    rows = table[(table["genes"] == N_GENES) & (table["processes"] == 1)]
    return {("docs/how_to/larger_than_memory.md", "end_to_end"): costs_of(rows, (200_000, 1_000_000))}


def learning_curves(table: pd.DataFrame) -> Blocks:
    """Write quality, minutes and memory by number of cells."""
    worlds = columns_of(table)
    wide = of_default_world(worlds)
    of_real = wide.xs(REAL, level="method").iloc[[0]]
    models = wide.loc[[key for method in OF_CELLS for key in sorted(wide.index) if key[0] == method]]
    models.index = [f"{method}, {cells:,}" for method, cells in models.index]
    shown = pd.concat([of_real.set_axis([REAL]), models])
    costs = list(COSTS.values())
    left_out = [*costs, "fold changes", "F1", "distance", "copies"]  # hardly differ
    columns = {name: name for name in shown if name not in left_out}
    quality = _table(shown, {name: name for name in shown.index}, columns, corner="training cells")
    minutes, peak = (wide[name].dropna().unstack("method").sort_index() for name in costs)
    lines = [
        [f"{cells:,}", *(_cost(values.get(method, {}).get(cells)) for method in OF_CELLS for values in (minutes, peak))]
        for cells in minutes.index
    ]
    header = ["training cells", *(f"{method}: {name}" for method in OF_CELLS for name in ("minutes", "GiB"))]
    page = f"{GUIDE}/how_many_cells.md"
    return {
        (page, "learning_curves: quality"): quality,
        (page, "learning_curves: costs"): markdown_table(header, lines),
    }


def _cost(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def many_labels(table: pd.DataFrame) -> Blocks:
    """Write how often type and donor are right, by number of training cells of the combination."""
    means = table.pivot_table(index=["model", "cells"], columns="n_train", values="confirmed")
    rows = {
        REAL: ("SCLDM", REAL),
        "SCLDM": ("SCLDM", GENERATED),
        "SCLDM, `guidance_scale=1.5`": ("SCLDM", "guidance 1.5"),
        "NB copula per label": ("NB-copula", GENERATED),
    }
    text = _table(means, rows, {f"{name} training cells": name for name in GROUPS})
    return {(f"{GUIDE}/scldm.md", "many labels"): text}


def left_open(table: pd.DataFrame) -> Blocks:
    """Write the answers to each question: means over data sets and seeds."""
    blocks = {}
    for question, rows in table.groupby("question"):
        means = rows.pivot_table(index="answer", columns="metric", values="value")
        means.loc[REAL] = rows.groupby("metric")["real"].mean()
        columns = {IN_SHORT.get(name, name): name for name in (*FIGURES, *SHOWN[question])}
        shown = {name: name for name in (REAL, *ANSWERS[question])}
        blocks[f"{GUIDE}/left_open.md", f"left open: {question}"] = _table(means, shown, columns, corner=question)
    return blocks


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
    "many_labels": many_labels,
    "left_open": left_open,
}
