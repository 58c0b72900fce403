"""Reading the table of `evaluate` for a verdict: how much worse than real cells a figure is, and whether that is more than chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from ._table import ALL, COLUMNS

FIGURES = ["value", "floor", "shuffled", "low", "high"]

Level: TypeAlias = Literal["ok", "note", "warning"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning")

QUANTILE = 1.959964  # of the normal distribution: the table's intervals are 95 % ones
#: So many standard deviations must lie between value and floor. The floor varies about as the value does, so that this is two standard
#: deviations of their difference; and what matters has to be large besides, so that 20 topics seldom raise a false alarm.
N_DEVIATIONS = 3.0


@dataclass(frozen=True)
class Limits:
    """By how much a figure may be worse than the floor.

    Attributes
    ----------
    note, warning
        From where it is worth a note or a warning.
    relative
        Whether these are multiples of the floor instead of absolute numbers.
    """

    note: float
    warning: float
    relative: bool = False


@dataclass(frozen=True)
class Figure:
    """A row of the table."""

    metric: str
    group: str
    value: float
    floor: float
    shuffled: float
    low: float
    high: float
    better: str

    @property
    def deviation(self) -> float:
        """The standard deviation that the interval stands for; the longer side, as bounds cut the other. 0 without an interval."""
        reach = max(self.high - self.value, self.value - self.low)
        return reach / QUANTILE if np.isfinite(reach) else 0.0

    @property
    def excess(self) -> float:
        """By how much it is worse than the floor; negative if it is better."""
        if self.better == "floor":
            return abs(self.value - self.floor)
        return self.value - self.floor if self.better == "lower" else self.floor - self.value

    @property
    def is_clear(self) -> bool:
        """Whether it is worse than the floor by more than chance. Where real cells score exactly 0 (copies), chance gives none."""
        return self.excess > (0 if self.floor == 0 else N_DEVIATIONS * self.deviation)

    def level(self, limits: Limits) -> Level:
        """Judge the excess: it must be clear, and large enough."""
        if not self.is_clear:
            return "ok"
        unit = abs(self.floor) if limits.relative else 1.0
        if self.excess > limits.warning * unit:
            return "warning"
        return "note" if self.excess > limits.note * unit else "ok"


class Figures:
    """The rows of a table that have a value and a floor.

    Parameters
    ----------
    table
        As `evaluate` returns it, or read from a file.

    Raises
    ------
    TypeError
        If it is no table.
    ValueError
        If the table has other columns, figures that are no numbers, rows without a group, or several rows of a metric and group.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        if not isinstance(table, pd.DataFrame):
            msg = f"`table` must be what `evaluate` returns, a DataFrame, but is {type(table).__name__}."
            raise TypeError(msg)
        missing = [column for column in COLUMNS if column not in table]
        if missing:
            msg = f"`table` must be what `evaluate` returns, but lacks the columns {missing}; there are {list(table.columns)}."
            raise ValueError(msg)
        if len(table) and not all(is_numeric_dtype(table[column]) for column in FIGURES) or table["group"].isna().any():
            msg = f"`table` must have numbers in {FIGURES}, and a group in each row. Was it read from a file in which a group is called 'NA' or 'nan'?"
            raise ValueError(msg)
        if (repeated := table.duplicated(["metric", "group"])).any():
            first = table[repeated].iloc[0]
            msg = (
                f"`table` has several rows of the metric {first['metric']!r} and the group {first['group']!r}; judge one evaluation at a time, "
                "of several modalities one: table[table['modality'] == ...]."
            )
            raise ValueError(msg)
        rows = table[COLUMNS].to_dict("records")
        self._all = {(row["group"], row["metric"]): Figure(**row) for row in rows}

    def get(self, metric: str, group: str = ALL) -> Figure | None:
        """Return a figure; None where it was not measured, or has no floor to stand beside."""
        figure = self._all.get((group, metric))
        known = figure is not None and np.isfinite(figure.value) and np.isfinite(figure.floor)
        return figure if known else None

    def was_asked_for(self, metric: str, group: str = ALL) -> bool:
        """Say whether there is a row, with a value or without."""
        return (group, metric) in self._all

    def lacks_value(self, metric: str, group: str) -> bool:
        """Say whether there is a row without a value: enough real cells and too few synthetic ones."""
        figure = self._all.get((group, metric))
        return figure is not None and not np.isfinite(figure.value)

    @property
    def groups(self) -> list[str]:
        """All groups but that of all cells."""
        return sorted({group for group, _ in self._all} - {ALL})


def worst(levels: list[Level]) -> Level:
    """Return the most severe level."""
    return max(levels, key=LEVELS.index)
