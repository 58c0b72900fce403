"""The tables of the gene-space study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.tables import markdown_table

if TYPE_CHECKING:
    import pandas as pd

TITLES = {
    "zero_value": "Which value should stand for zero? (default architecture)",
    "zero_value_regression": "Which value should stand for zero? (one scale for all values, the network predicts v)",
    "zero_value_published": "Which value should stand for zero? (published: no scaling, the network predicts noise)",
    "backbones": "Which network?",
    "samplers": "Which sampler, and how many network evaluations?",
    "one_model": "One conditional model, or one model per type?",
    "gene_order": "Does it matter which genes share a patch?",
    "targets": "Which path, and what should the network predict?",
}
FIGURES = {
    "auc_pcs": "AUC (PCs)",
    "auc_genes": "AUC (genes)",
    "precision": "precision",
    "recall": "recall",
    "w2": "W2",
    "mmd2": "MMD²",
    "within_label_correlation": "within-label corr.",
    "share_of_zeros": "zeros",
    "transfer_f1": "transfer F1",
    "nearest_train_ratio": "nearest-train ratio",
    "n_parameters": "parameters",
    "steps": "steps",
    "seconds_per_step": "s/step",
    "train_seconds": "train s",
    "generation_seconds": "generation s",
    "generated_cells_per_second": "cells/s",
    "diverged": "diverged",
}


def summarise(table: pd.DataFrame) -> str:
    """Write one markdown table per data set and experiment: means over seeds +- half the range, beside the floor."""
    parts = [
        "# The gene-space models' open questions",
        "",
        "Mean over seeds ± half the range. The floor is what real training cells score in place of generated ones. Written by "
        "`python -m benchmarks.studies.gene_space`.",
        "",
    ]
    for (dataset, experiment), rows in table.groupby(["dataset", "experiment"], sort=False):
        n_seeds = rows["seed"].nunique()
        parts += [
            f"## {TITLES.get(experiment, experiment)}",
            "",
            f"Data set `{dataset}`; number of seeds: {n_seeds}.",
            "",
        ]
        parts += [experiment_table(rows), ""]
    parts += [f"Measured with {'; '.join(table['versions'].unique())}, on {'; '.join(table['machine'].unique())}.", ""]
    return "\n".join(parts)


def experiment_table(rows: pd.DataFrame) -> str:
    """Write the table of one experiment: configurations below the floor of the cells that they were compared with."""
    figures = [name for name in FIGURES if name in set(rows["metric"])]
    lines = []
    for judged_on, group in rows.groupby("judged_on", sort=False):
        lines.append([f"*floor: {judged_on}*", *(_spread(group, name, "floor") for name in figures)])
        for name, configuration in group.groupby("configuration", sort=False):
            lines.append([name, *(_spread(configuration, figure, "value") for figure in figures)])
    return markdown_table(["", *(FIGURES[name] for name in figures)], lines)


def _spread(rows: pd.DataFrame, metric: str, column: str) -> str:
    """Write mean +- half range over seeds; nothing where there is no value."""
    values = rows[rows["metric"] == metric].groupby("seed")[column].mean().dropna()
    if values.empty:
        return ""
    mean, half = values.mean(), np.ptp(values) / 2
    return number(mean) if half == 0 else f"{number(mean)} ± {number(half)}"


def number(value: float) -> str:
    """Write a number in three or four digits."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if size >= 1 else f"{value:.3f}" if size >= 0.01 or size == 0 else f"{value:.2g}"
