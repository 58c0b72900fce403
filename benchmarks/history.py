"""Figures of speed over versions: what is stored, and whether something became slower.

A CSV, not asv: the figures need a quiet machine and sometimes a GPU, so that they are run by hand at some commits, not for each on a server; the same rows
serve the tables in the guide; and the check below is all that is asked of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from results import markdown_table

if TYPE_CHECKING:
    from pathlib import Path

#: What must be equal for two figures to be of the same thing, and what stands for a value that older rows lack.
SAME = {
    "processor": "",
    "threads": 0,
    "device": "cpu",
    "precision": "float32",
    "compile": False,
    "system": "",
    "stage": "",
    "genes": 0,
    "expressed": 0,
    "batch": 0,
    "cells": 0,
    "steps": 0,
}
TOLERANCE = 0.3
FASTER, SLOWER, LIKE, NEW = "faster", "SLOWER", "as before", "new"


def compare(rows: pd.DataFrame, stored: pd.DataFrame, tolerance: float = TOLERANCE) -> pd.DataFrame:
    """Set each figure beside the last one that was stored of the same thing.

    A machine that multiplies matrices more slowly than it did then (another process, another virtual machine of the same name) is
    forgiven as much.

    Parameters
    ----------
    rows, stored
        Measured now, and before.
    tolerance
        Share of the speed that may be lost.

    Returns
    -------
    pandas.DataFrame
        The rows, with ``before``, ``ratio`` (now over before, in speed), ``machine`` (the same of the matrix product) and ``verdict``.
    """
    last = dict(zip(_keys(stored), stored.to_dict("records"), strict=True))  # of equal keys, the last stays
    found = [
        row | _change(row, last.get(key, {}), tolerance)
        for row, key in zip(rows.to_dict("records"), _keys(rows), strict=True)
    ]
    return pd.DataFrame(found)


def _change(row: dict, before: dict, tolerance: float) -> dict[str, object]:
    if not before or not np.isfinite(_speed(before)):
        return {"before": np.nan, "ratio": np.nan, "machine": np.nan, "verdict": NEW}
    ratio = _speed(row) / _speed(before)
    machine = row.get("matrix_rate", np.nan) / before.get("matrix_rate", np.nan)
    allowance = min(machine, 1.0) if np.isfinite(machine) else 1.0
    verdict = SLOWER if ratio < (1 - tolerance) * allowance else FASTER if ratio * (1 - tolerance) > 1 else LIKE
    return {"before": _speed(before), "ratio": ratio, "machine": machine, "verdict": verdict}


def tabulate_changes(changes: pd.DataFrame) -> str:
    """Write a comparison as a table."""
    lines = [
        [
            f"{row.stage}, {row.system}, {row.genes} genes, batch {row.batch}",
            _figure(row.before),
            _figure(_speed(row._asdict())),
            _figure(row.ratio),
            _figure(row.machine),
            row.verdict,
        ]
        for row in changes.itertuples()
    ]
    return markdown_table(["cells/s (calls/s where no cells are)", "before", "now", "ratio", "machine", ""], lines)


def draw_history(stored: pd.DataFrame, path: Path) -> None:
    """Draw the speed of every figure that was stored more than once, relative to its first, over its commits."""
    series = stored.assign(key=_keys(stored), speed=[_speed(row) for row in stored.to_dict("records")])
    series = series[series.groupby("key")["speed"].transform("count") > 1]
    figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for _, rows in series.groupby("key", sort=False):
        name = f"{rows['system'].iloc[0]} {rows['stage'].iloc[0]}, {rows['threads'].iloc[0]:.0f} threads"
        ax.plot(range(1, 1 + len(rows)), rows["speed"] / rows["speed"].iloc[0], marker="o", ms=3, lw=1, label=name)
    ax.axhline(1, color="0.7", lw=1, zorder=0)
    ax.set(xlabel="measurement", ylabel="speed over the first")
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(series):
        ax.legend(fontsize=6, ncols=2, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _keys(rows: pd.DataFrame) -> list[tuple[object, ...]]:
    """Return what each row is about, with missing values as their stand-ins."""
    return [tuple(_plain(row.get(name), other) for name, other in SAME.items()) for row in rows.to_dict("records")]


def _plain(value: Any, other: Any) -> Any:
    return other if value is None or value != value else type(other)(value)


def _speed(row: dict) -> float:
    """Return cells per second, or calls per second of what has no cells."""
    speed = float(row["cells_per_second"])
    return speed if np.isfinite(speed) else 1 / float(row.get("seconds", np.nan))


def _figure(value: float) -> str:
    if not np.isfinite(value):
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
