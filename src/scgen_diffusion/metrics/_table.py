"""Rows of a table, from contexts: who is compared with whom, and what each metric says of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from ._catalogue import Comparison, Metric

ALL = "all"
UNKNOWN = float("nan")
QUANTILE = 1.959964  # of the normal distribution, for 95 %


@dataclass(frozen=True)
class Half:
    """Half of the cells of both sides.

    Attributes
    ----------
    real_rows, synthetic_rows
        Positions of the cells.
    comparison
        Their comparison.
    """

    real_rows: NDArray[np.intp]
    synthetic_rows: NDArray[np.intp]
    comparison: Comparison


@dataclass(frozen=True)
class Context:
    """A group, a perturbation, a pair of modalities, or all cells: who plays the synthetic cells there.

    Attributes
    ----------
    names
        Columns that say what a row is of, such as the group.
    players
        By column of the table, the comparisons of which the mean stands there: ``value`` for synthetic cells, ``floor`` for other real ones, and so on.
    held_out_floors
        The floors of metrics that look at training cells: both sides are cells that no model has learned from.
    equal_players
        The players of metrics that depend on the number of cells, with equally many cells each, where `players` have not.
    halves
        Half-samples of ``value``, for the interval.
    """

    names: Mapping[str, str]
    players: Mapping[str, Sequence[Comparison]]
    held_out_floors: Sequence[Comparison] = ()
    equal_players: Mapping[str, Sequence[Comparison]] = field(default_factory=dict)
    halves: Sequence[Half] = ()

    def row(self, metric: Metric, group: str | None = None) -> dict[str, object]:
        """Return the row of a metric, or that of one group by a metric that measures each group among all others."""
        players = self.equal_players if metric.equal_cells else self.players
        if metric.against_training:
            players = {**players, "floor": self.held_out_floors}
        measure = metric.measure if group is None else lambda c: c.once(metric.by_group).get(group, UNKNOWN)
        figures = {
            player: _mean([measure(comparison) for comparison in comparisons[: 1 if metric.slow else None]])
            for player, comparisons in players.items()
        }
        if not metric.has_interval:
            halves = []
        elif metric.scores is None:
            halves = [measure(half.comparison) for half in self.halves]
        else:
            scores = self.players["value"][0].once(metric.scores)
            halves = [metric.summary(scores.real[h.real_rows], scores.synthetic[h.synthetic_rows]) for h in self.halves]
        low, high = interval(figures["value"], halves, metric.bounds)
        names = self.names if group is None else {**self.names, "group": group}
        return {**names, "metric": metric.name, **figures, "low": low, "high": high, "better": metric.better}


def interval(value: float, halves: Sequence[float], bounds: tuple[float, float]) -> tuple[float, float]:
    """Return `value` -/+ 1.96 standard deviations of the half-samples around their mean, within the bounds."""
    known = np.asarray(halves, dtype=float)
    known = known[np.isfinite(known)]
    if len(known) < 2 or not np.isfinite(value):
        return UNKNOWN, UNKNOWN
    reach = QUANTILE * known.std(ddof=1)
    return float(max(value - reach, bounds[0])), float(min(value + reach, bounds[1]))


def _mean(values: Sequence[float]) -> float:
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else UNKNOWN
