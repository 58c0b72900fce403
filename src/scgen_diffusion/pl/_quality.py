"""Quality against what one turns: guidance, steps, cells, epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.lines import Line2D
from pandas.api.types import is_numeric_dtype

from ._figures import N_COLUMNS, chosen, finish, own_panels, plain_numbers
from ._scores import SIGNS

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes

#: Of Okabe and Ito, in an order in which neighbours differ in lightness, too.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
SPAN_OF_LOG = 8
FLOOR = {"color": "0.35", "linestyle": "--", "linewidth": 1.2}
WORDS = {"lower": "lower is better", "higher": "higher is better", "floor": "best at the floor"}


def quality_curve(
    table: pd.DataFrame,
    x: str,
    *,
    metrics: str | Sequence[str] | None = None,
    group: str = "all",
    hue: str | None = None,
    log: bool | None = None,
    axs: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Plot figures of several evaluations against a number that they differ in, one panel per metric.

    Bands are the intervals ``low`` to ``high``, dashed lines the floor: what real cells score against real cells. Several rows at
    one place, such as those of several seeds, are averaged, and so are their intervals and floors.

    Parameters
    ----------
    table
        Tables of :func:`~scgen_diffusion.metrics.evaluate`, one below the other, with a column for `x`.
    x
        Column of numbers, such as ``"guidance_scale"`` or ``"n_steps"``.
    metrics
        Which of them; default: all.
    group
        Which group.
    hue
        Column that tells lines apart, such as ``"sampler"``; at most six. Default: one line.
    log
        Whether `x` has a logarithmic axis. Default: where it is positive and spans more than a factor of eight.
    axs
        Axes to draw on, one per metric.
    show
        Whether to show the figure; default: scanpy's ``settings.autoshow``.
    save
        File to write the figure to.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes, if they are not shown.

    Raises
    ------
    ValueError
        For unknown columns, metrics and groups, `x` that holds no numbers, and more lines than can be told apart.

    Examples
    --------
    >>> import pandas as pd, scgen_diffusion as scgd
    >>> row = {"metric": "recall", "group": "all", "floor": 0.9, "shuffled": 0.2, "better": "higher"}
    >>> table = pd.DataFrame([{**row, "n_steps": 5, "value": 0.7, "low": 0.6, "high": 0.8}])
    >>> axes = scgd.pl.quality_curve(table, x="n_steps", show=False)
    """
    for name, column in {"x": x, "hue": hue}.items():
        chosen(name, [] if column is None else [column], list(table))
    if not is_numeric_dtype(table[x]):
        msg = f"`x` must name a column of numbers, but {x!r} holds {table[x].dtype}."
        raise ValueError(msg)
    chosen("group", [group], list(table["group"].unique()))
    table = table[table["group"] == group]
    known = list(table["metric"].unique())
    metrics = chosen("metrics", [metrics] if isinstance(metrics, str) else metrics, known)
    lines = lines_of(table, hue)
    axes = own_panels(len(metrics), axs, size=(3.2, 2.9))
    for ax, metric in zip(axes, metrics, strict=True):
        draw_metric(ax, table[table["metric"] == metric], x, lines, hue)
        if is_log(table[x]) if log is None else log:
            ax.set_xscale("log")
            plain_numbers(ax.xaxis)
    explain(axes[min(len(axes), N_COLUMNS) - 1], lines)
    return finish(axes, show, save)


def lines_of(table: pd.DataFrame, hue: str | None) -> dict[object, tuple[str, str]]:
    """Give every line a colour and a marker.

    Raises
    ------
    ValueError
        If there are too many.
    """
    values = [""] if hue is None else list(table[hue].unique())
    if len(values) > len(COLORS):
        msg = f"At most {len(COLORS)} values of `hue` can be told apart, but {hue!r} has {len(values)}."
        raise ValueError(msg)
    return {value: (COLORS[number], MARKERS[number]) for number, value in enumerate(values)}


def draw_metric(ax: Axes, table: pd.DataFrame, x: str, lines: dict[object, tuple[str, str]], hue: str | None) -> None:
    """Draw the lines of one metric, their intervals, and the floor."""
    numbers = ["value", "low", "high", "floor"]
    floor = table.groupby(x)["floor"].mean().dropna()
    if len(floor) == 1:
        ax.axhline(floor.iloc[0], **FLOOR)
    else:
        ax.plot(floor.index, floor, **FLOOR)
    for value, (color, marker) in lines.items():
        rows = table if hue is None else table[table[hue] == value]
        means = rows.groupby(x)[numbers].mean()
        ax.fill_between(means.index, means["low"], means["high"], color=color, alpha=0.18, linewidth=0)
        ax.plot(means.index, means["value"], color=color, marker=marker, markersize=4.5, linewidth=1.6)
    better = table["better"].iloc[0]
    ax.set(title=table["metric"].iloc[0], xlabel=x.replace("_", " "), ylabel=f"{SIGNS[better]} {WORDS[better]}")
    ax.spines[["top", "right"]].set_visible(False)


def is_log(values: pd.Series) -> bool:
    """Say whether numbers suit a logarithmic axis."""
    return bool(values.min() > 0 and values.max() > SPAN_OF_LOG * values.min())


def explain(ax: Axes, lines: dict[object, tuple[str, str]]) -> None:
    """Say to the right of a panel what lines are."""
    handles = [
        Line2D([], [], color=color, marker=marker, markersize=4.5, label=str(value) or "synthetic cells")
        for value, (color, marker) in lines.items()
    ]
    handles.append(Line2D([], [], label="floor: real\nagainst real cells", **FLOOR))
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize="small")
