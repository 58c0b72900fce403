"""The summary of the study of several modalities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.tables import markdown_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

TITLES = {
    "rna": "RNA",
    "prot": "Surface proteins",
    "atac": "Open chromatin",
    "rna+prot": "RNA and proteins together",
    "rna+atac": "RNA and chromatin together",
    "pair": "Correlation of a gene with its protein",
    "imputation": "Other modality predicted from RNA alone, correlation with the measured one over held-out cells",
    "cost": "Cost",
}


def summarise(table: pd.DataFrame, methods: Sequence[str]) -> str:
    """Write one table per data set and part, means over seeds, with a column for every method that has figures of it."""
    lines = ["# Several modalities", "", "Means over seeds. Written by `python -m benchmarks.studies.multimodal`.", ""]
    for dataset, rows in table.groupby("dataset", sort=False):
        lines += [f"## {dataset}", "", f"{rows['seed'].nunique()} seed(s).", ""]
        for part in (name for name in TITLES if name in set(rows["part"])):
            lines += [f"### {TITLES[part]}", "", _part(rows[rows["part"] == part], methods), ""]
    sources = ("versions", "machine", "date")
    lines.append(f"Measured with {'; '.join(', '.join(map(str, table[name].unique())) for name in sources)}.")
    return "\n".join(lines) + "\n"


def _part(rows: pd.DataFrame, methods: Sequence[str]) -> str:
    values = rows.pivot_table(index="metric", columns="method", values="value", sort=False)
    shown = [method for method in methods if method in values]
    body = [[metric, *(_number(row[method]) for method in shown)] for metric, row in values.iterrows()]
    return markdown_table(["figure", *shown], body)


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
