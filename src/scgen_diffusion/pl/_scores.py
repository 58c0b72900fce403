"""Plot of metrics: all figures of one evaluation, or of several side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize

from scgen_diffusion.metrics import COLUMNS, check_columns, check_one_row_each, excess_over_real

from ._figures import SIGNS, choose, finish, panels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

DARK = 0.6  # badness above which the text is white
CLEAR = 2.0  # half-intervals by which cells must be worse than real ones to be clearly worse
OF_REAL = {"density"}  # whose scale is the value of real cells: shuffled ones are nearly as dense


def scores(
    table: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    by: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    r"""Plot all metrics of one evaluation, or of several, as a heat map that is coloured by how bad they are.

    The text is the value. The colour shows how much worse it is than that of real cells, on the way to cells with
    shuffled genes:

    .. math:: \text{badness} =
        \min\Bigl(1, \frac{\text{worse}(\text{value})}{\text{worse}(\text{shuffled})}\Bigr), \qquad
        \text{worse}(x) = \max(0, \pm (x - \text{real}))

    with the sign in which the metric gets worse, or both signs if the best value is that of real cells. For
    ``within_label_slope``, worse is farther from 1; for an AUC, farther from guessing (0.5). Where shuffling does
    hardly any harm (less than two half-widths of the metric's typical interval), as to total counts, and for
    ``density``, the value of real cells takes the place of :math:`\text{worse}(\text{shuffled})`. No scale is shorter
    than two half-widths of the typical interval. Grey means that synthetic or real cells have no value, as of labels
    with few cells.

    Parameters
    ----------
    table
        Table from :func:`~scgen_diffusion.metrics.evaluate`, or several such tables, concatenated.
    metrics, groups
        Metrics and groups to show, in this order. Default: all; with ``by``, the group ``"all"``.
    by
        Column that tells several evaluations apart, such as ``"model"``. The heat map then has a column for each of its
        values, in the order of the table, and shows one group. Default: a column for each group.
    ax
        Axis to draw on.
    show
        Whether to show the figure instead of returning the axes. Default: scanpy's ``settings.autoshow``.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axis, or None if the figure is shown.

    Raises
    ------
    ValueError
        If a column, metric or group is unknown, nothing is left to show, or the table has several rows of a metric for
        a column of the heat map.

    Examples
    --------
    >>> import pandas as pd, scgen_diffusion as scgd
    >>> table = pd.DataFrame({"model": ["SCLDM", "scVI"], "value": [0.8, 0.7]})
    >>> table = table.assign(metric="recall", group="all", better="higher")
    >>> table = table.assign(low=0.6, high=0.9, real=0.9, shuffled=0.2)
    >>> axis = scgd.pl.scores(table, by="model", show=False)
    """
    check_columns(table)
    if by is not None:
        choose("by", [by], [name for name in table if name not in COLUMNS])
    metrics = choose("metrics", metrics, table["metric"].unique())
    groups = choose("groups", ["all"] if by and groups is None else groups, table["group"].unique())
    signs = table.drop_duplicates("metric").set_index("metric")["better"].map(SIGNS)
    table = table[table["group"].isin(groups)]
    column, names = (by, choose("by", None, table[by].unique())) if by else ("group", groups)
    check_one_row_each(table, column)
    cells = table.assign(bad=badness(table)).pivot(index="metric", columns=column, values=["value", "bad"])
    values, bad = (cells[name].reindex(metrics, columns=names).to_numpy(float) for name in ("value", "bad"))
    (ax,) = panels(1, ax, size=(3.6 + 0.62 * len(names), 1.6 + 0.26 * len(metrics)))
    image = ax.imshow(np.ma.masked_invalid(bad), cmap="YlOrBr", norm=Normalize(0, 1), aspect="auto")
    ax.set_facecolor("0.9")
    for (row, place), value in np.ndenumerate(values):
        color = "white" if bad[row, place] > DARK else "black"
        text = "" if np.isnan(value) else f"{value:.3g}"
        ax.text(place, row, text, ha="center", va="center", fontsize=7, color=color)
    ax.set_yticks(range(len(metrics)), [f"{metric} {signs[metric]}" for metric in metrics], fontsize="small")
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize="small")
    ax.tick_params(length=0)
    ax.set_title("Scores of synthetic cells\n(↑ higher is better, ↓ lower is better)", fontsize="medium")
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.6, ticks=[0, 1], aspect=24)
    bar.ax.set_yticklabels(["as real cells,\nor better", "far worse than\nreal cells"], fontsize="small")
    return finish(ax, show)


def badness(table: pd.DataFrame) -> pd.Series:
    """Return how bad each value is, from 0 to 1; NaN if it is not known."""

    def worse_than_real(column: str) -> pd.Series:
        rows = table[["metric", "better", column, "real"]].itertuples(index=False, name=None)
        return pd.Series([excess_over_real(*row) for row in rows], table.index, dtype=float).clip(lower=0)

    def typical(numbers: pd.Series) -> pd.Series:
        return numbers.groupby(table["metric"].to_numpy()).transform("median")

    worse, of_shuffled = worse_than_real("value"), worse_than_real("shuffled")
    clear = CLEAR * typical((table["high"] - table["low"]).fillna(0) / 2)
    by_real = ~(typical(of_shuffled) > clear) | of_shuffled.isna() | table["metric"].isin(OF_REAL)
    scale = np.maximum(of_shuffled.where(~by_real, table["real"].abs()), clear)
    share = (worse / scale).where(scale > 0, np.inf).where(worse > 0, 0.0)
    return share.clip(upper=1).where(worse.notna())
