"""Rows of the table, from the comparisons of all cells and of every group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._resampling import interval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ._catalogue import Metric
    from ._comparison import Comparison
    from ._resampling import Trial

COLUMNS = ["metric", "group", "value", "floor", "shuffled", "low", "high", "better"]
ALL = "all"
UNKNOWN = float("nan")


def rows_of_all(metrics: Sequence[Metric], trial: Trial) -> list[dict[str, object]]:
    """Return one row per metric for all cells."""
    return [_named(metric, ALL, _row(metric, trial)) for metric in metrics]


def rows_of_group(metrics: Sequence[Metric], group: str, trial: Trial | None) -> list[dict[str, object]]:
    """Return one row per metric that is measured in a group alone; without figures where there are too few cells."""
    return [
        _named(metric, group, {} if trial is None else _row(metric, trial)) for metric in metrics if metric.per_group
    ]


def rows_by_group(metrics: Sequence[Metric], groups: Sequence[str], trial: Trial) -> list[dict[str, object]]:
    """Return a row per group for the metrics that measure each group among all others."""
    return [
        _named(metric, group, row)
        for metric in metrics
        if metric.by_group is not None
        for group, row in _rows_by_group(metric, groups, trial).items()
    ]


def as_table(rows: list[dict[str, object]], metrics: Sequence[Metric]) -> pd.DataFrame:
    """Lay rows out: all cells first, then group by group, metrics in the order of the catalogue."""
    table = pd.DataFrame(rows, columns=COLUMNS)
    group_order = {
        group: place for place, group in enumerate(dict.fromkeys([ALL, *sorted(set(table["group"]) - {ALL})]))
    }
    metric_order = {metric.name: place for place, metric in enumerate(metrics)}
    order = np.lexsort([table["metric"].map(metric_order), table["group"].map(group_order)])
    return table.iloc[order].reset_index(drop=True)


def _named(metric: Metric, group: str, figures: Mapping[str, float]) -> dict[str, object]:
    nothing = dict.fromkeys(COLUMNS[2:-1], UNKNOWN)
    return {"metric": metric.name, "group": group, **nothing, **figures, "better": metric.better}


def _row(metric: Metric, trial: Trial) -> dict[str, float]:
    value = metric.measure(trial.value)
    floors = trial.held_out_floors if metric.against_training else trial.floors
    low, high = interval(value, _half_values(metric, trial), metric.bounds)
    return {
        "value": value,
        "floor": _mean([metric.measure(floor) for floor in floors[: 1 if metric.slow else None]]),
        "shuffled": UNKNOWN if trial.shuffled is None else metric.measure(trial.shuffled),
        "low": low,
        "high": high,
    }


def _half_values(metric: Metric, trial: Trial) -> list[float]:
    if not metric.has_interval:
        return []
    if metric.scores is None:
        return [metric.measure(half.comparison) for half in trial.halves]
    scores = trial.value.once(metric.scores)
    return [metric.summary(scores.real[half.real_rows], scores.synthetic[half.synthetic_rows]) for half in trial.halves]


def _rows_by_group(metric: Metric, groups: Sequence[str], trial: Trial) -> dict[str, dict[str, float]]:
    value, *halves = _figures(metric.by_group, [trial.value, *(half.comparison for half in trial.halves)], groups)
    floors = _figures(metric.by_group, trial.floors, groups)
    shuffled = _figures(metric.by_group, [] if trial.shuffled is None else [trial.shuffled], groups)
    rows = {}
    for group in groups:
        low, high = interval(value[group], [half[group] for half in halves], metric.bounds)
        rows[group] = {
            "value": value[group],
            "floor": _mean([floor[group] for floor in floors]),
            "shuffled": _mean([figures[group] for figures in shuffled]),
            "low": low,
            "high": high,
        }
    return rows


def _figures(
    by_group: Callable[[Comparison], Mapping[str, float]], comparisons: Sequence[Comparison], groups: Sequence[str]
) -> list[dict[str, float]]:
    found = [comparison.once(by_group) for comparison in comparisons]
    return [{group: figures.get(group, UNKNOWN) for group in groups} for figures in found]


def _mean(values: Sequence[float]) -> float:
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else UNKNOWN
