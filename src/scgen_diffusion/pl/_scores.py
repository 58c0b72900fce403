"""All figures of an evaluation at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize

from ._figures import chosen, finish, one_axis

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

COLUMNS = {"metric", "group", "value", "floor", "shuffled", "low", "high", "better"}
SIGNS = {"lower": "↓", "higher": "↑", "floor": "="}
KEY = "↓ lower is better   ↑ higher is better   = best at the floor\ngrey: too few cells for a floor, or no value"
COLORS = "YlOrBr"
DARK = 0.6  # of the scale: white text from here on
CLEAR = 2.0  # half-intervals by which shuffled cells must be worse than the floor, to be a measure of what is bad


def scores(
    table: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    r"""Plot the table of :func:`~scgen_diffusion.metrics.evaluate` as a heat map: metrics by groups, coloured by how bad they are.

    The text is the value. The colour tells how far it is from its floor (what real cells score against real cells) on the way
    to cells with shuffled genes:

    .. math:: \text{badness} = \min\Bigl(1, \frac{\text{worse}(\text{value})}{\text{worse}(\text{shuffled})}\Bigr), \qquad
        \text{worse}(x) = \max(0, \pm (x - \text{floor}))

    with the sign by which values are bad, or both where the best value is the floor. Where shuffling does not harm (clearly, by two half
    widths of the value's interval), twice the floor takes the place of the shuffled value, such as for total counts. The
    colour is 0 for values better than their floor.

    Parameters
    ----------
    table
        Columns ``metric``, ``group``, ``value``, ``floor``, ``shuffled``, ``low``, ``high`` and ``better``.
    metrics, groups
        Which of them, in this order; default: all.
    ax
        Axis to draw on.
    show
        Whether to show the figure; default: scanpy's ``settings.autoshow``.
    save
        File to write the figure to.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axis, if it is not shown.

    Raises
    ------
    ValueError
        For unknown metrics and groups, and if the table has several rows for one of each.
    """
    if not isinstance(table, pd.DataFrame) or not COLUMNS <= set(table):
        msg = f"`table` must be what `evaluate` returns, with the columns {sorted(COLUMNS)}."
        raise ValueError(msg)
    metrics = chosen("metrics", metrics, list(table["metric"].unique()))
    groups = chosen("groups", groups, list(table["group"].unique()))
    check_single_rows(table)
    values = matrix_of(table, table["value"], metrics, groups)
    bad = matrix_of(table, badness(table), metrics, groups)
    ax = one_axis(ax, size=(3.6 + 0.62 * len(groups), 2.0 + 0.26 * len(metrics)))
    image = ax.imshow(np.ma.masked_invalid(bad), cmap=COLORS, norm=Normalize(0, 1), aspect="auto")
    ax.set_facecolor("0.9")
    write_values(ax, values, bad)
    signs = table.drop_duplicates("metric").set_index("metric")["better"].map(SIGNS)
    ax.set_yticks(range(len(metrics)), [f"{metric} {signs[metric]}" for metric in metrics], fontsize="small")
    ax.set_xticks(range(len(groups)), groups, rotation=45, ha="right", rotation_mode="anchor", fontsize="small")
    ax.tick_params(length=0)
    ax.set_title("Synthetic cells against real ones", fontsize="medium")
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.6, ticks=[0, 1], aspect=24)
    bar.ax.set_yticklabels(["as real cells,\nor better", "as shuffled genes,\nor worse"], fontsize="small")
    ax.set_xlabel(KEY, fontsize="small", labelpad=10)
    return finish(ax, show, save)


def badness(table: pd.DataFrame) -> pd.Series:
    """Return how far each value is from its floor towards shuffled cells, from 0 to 1; NaN without value or floor."""
    worse = worse_than_floor(table, table["value"])
    of_shuffled = worse_than_floor(table, table["shuffled"])
    noise = (table["high"] - table["low"]).fillna(0) / 2
    scale = of_shuffled.where(of_shuffled > CLEAR * noise, np.maximum(table["floor"].abs(), CLEAR * noise))
    share = (worse / scale).where(scale > 0, np.inf).where(worse > 0, 0.0)
    return share.clip(upper=1).where(worse.notna())


def worse_than_floor(table: pd.DataFrame, values: pd.Series) -> pd.Series:
    """Return by how much values are worse than their floors, 0 if they are not."""
    beyond = values - table["floor"]
    worse = beyond.where(table["better"] == "lower", -beyond).where(table["better"] != "floor", beyond.abs())
    return worse.clip(lower=0)


def matrix_of(table: pd.DataFrame, column: pd.Series, metrics: Sequence[str], groups: Sequence[str]) -> NDArray:
    """Lay a column out, metrics by groups; NaN where there is no row."""
    frame = table[["metric", "group"]].assign(column=column)
    return frame.pivot(index="metric", columns="group", values="column").reindex(metrics, columns=groups).to_numpy()


def check_single_rows(table: pd.DataFrame) -> None:
    """Raise if a metric has more than one row of a group."""
    repeated = table.duplicated(["metric", "group"])
    if repeated.any():
        first = table[repeated].iloc[0]
        msg = (
            f"`table` has several rows of the metric {first['metric']!r} and the group {first['group']!r}; plot the table of "
            "one evaluation at a time, or compare several with `quality_curve`."
        )
        raise ValueError(msg)


def write_values(ax: Axes, values: NDArray, bad: NDArray) -> None:
    """Write the numbers, white on dark colours."""
    for (row, column), value in np.ndenumerate(values):
        color = "white" if bad[row, column] > DARK else "black"
        ax.text(column, row, short(value), ha="center", va="center", fontsize=7, color=color)


def short(value: float) -> str:
    """Write a number with three digits, and nothing for NaN."""
    if np.isnan(value):
        return ""
    if 0 < abs(value) < 0.0005:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.3f}" if abs(value) < 1 else f"{value:#.3g}".rstrip(".")
