"""Plot of metrics: all figures of one evaluation, or of several side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize

from scgen_diffusion.data import check_one_modality
from scgen_diffusion.metrics import FIGURES, MIN_CELLS_PER_GROUP, excess_over_real

from ._figures import SIGNS, choose, finish, panels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

COLUMNS = {"metric", "group", *FIGURES, "better"}
KEY = (
    "↓ lower is better   ↑ higher is better   = best where real cells are\n"
    f"grey: no value, of the synthetic or of the real cells (labels need {MIN_CELLS_PER_GROUP} cells)\n"
    "* shuffling does no clear harm: darkest at twice the value of real cells"
)
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

    The text is the value. The colour shows how much worse it is than the value of real cells, on the way to cells with
    shuffled genes:

    .. math:: \text{badness} =
        \min\Bigl(1, \frac{\text{worse}(\text{value})}{\text{worse}(\text{shuffled})}\Bigr), \qquad
        \text{worse}(x) = \max(0, \pm (x - \text{real}))

    with the sign in which the metric gets worse, or both signs if the best value is that of real cells. For
    ``within_label_slope``, worse is farther from 1; for an AUC, farther from guessing (0.5). Metrics with a star, such
    as total counts, are hardly harmed by shuffling (less than two half-widths of the metric's typical interval); there,
    and for ``density``, the value of real cells takes the place of :math:`\text{worse}(\text{shuffled})`. No scale is
    shorter than two half-widths of the typical interval.

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
        If a column, metric or group is unknown, nothing is left to show, or the table has several rows or modalities
        for the same metric and column of the heat map.

    Examples
    --------
    >>> import pandas as pd, scgen_diffusion as scgd
    >>> table = pd.DataFrame({"model": ["SCLDM", "scVI"], "value": [0.8, 0.7]})
    >>> table = table.assign(metric="recall", group="all", better="higher")
    >>> table = table.assign(low=0.6, high=0.9, real=0.9, shuffled=0.2)
    >>> axis = scgd.pl.scores(table, by="model", show=False)
    """
    if not isinstance(table, pd.DataFrame) or not set(table) >= COLUMNS:
        msg = f"`table` must come from `evaluate` without `control`, with the columns {sorted(COLUMNS)}."
        raise ValueError(msg)
    if by is not None:
        choose("by", [by], [name for name in table if name not in COLUMNS])
    metrics = choose("metrics", metrics, table["metric"].unique())
    groups = choose("groups", ["all"] if by and groups is None else groups, table["group"].unique())
    check_one_modality(table)
    signs = table.drop_duplicates("metric").set_index("metric")["better"].map(SIGNS)
    table = table[table["group"].isin(groups)]
    column = by or "group"
    names = choose("by", None, table[by].unique()) if by else groups
    if (repeated := table.duplicated(["metric", column])).any():
        metric, name = table.loc[repeated, ["metric", column]].iloc[0]
        msg = f"`table` has several rows of {metric!r} and {name!r}; name the column that tells them apart in `by`."
        raise ValueError(msg)
    table = table.assign(**badness(table))
    signs[table.loc[table["by_real"], "metric"].unique()] += "*"
    cells = table.pivot(index="metric", columns=column, values=["value", "bad"])
    values, bad = (cells[name].reindex(metrics, columns=names).to_numpy(float) for name in ("value", "bad"))
    (ax,) = panels(1, ax, size=(3.6 + 0.62 * len(names), 2.0 + 0.26 * len(metrics)))
    image = ax.imshow(np.ma.masked_invalid(bad), cmap="YlOrBr", norm=Normalize(0, 1), aspect="auto")
    ax.set_facecolor("0.9")
    for (row, place), value in np.ndenumerate(values):
        color = "white" if bad[row, place] > DARK else "black"
        text = "" if np.isnan(value) else f"{value:.3g}"
        ax.text(place, row, text, ha="center", va="center", fontsize=7, color=color)
    ax.set_yticks(range(len(metrics)), [f"{metric} {signs[metric]}" for metric in metrics], fontsize="small")
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize="small")
    ax.tick_params(length=0)
    ax.set_title("Synthetic cells against real ones", fontsize="medium")
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.6, ticks=[0, 1], aspect=24)
    bar.ax.set_yticklabels(["as real cells,\nor better", "as shuffled genes*,\nor worse"], fontsize="small")
    ax.set_xlabel(KEY, fontsize="small", labelpad=10)
    return finish(ax, show)


def badness(table: pd.DataFrame) -> pd.DataFrame:
    """Return how bad each value is, from 0 to 1 or NaN, and whether its scale is the value of real cells."""

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
    bad = share.clip(upper=1).where(worse.notna())
    return pd.DataFrame({"bad": bad, "by_real": by_real & bad.notna()})
