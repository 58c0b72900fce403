"""How well methods predict perturbations: every method beside the baselines and the floor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D

from ._figures import chosen, finish, panels
from ._scores import SIGNS

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes

#: Columns of the table that are no method.
NOT_METHODS = ("metric", "perturbation", "group", "floor", "better")
BASELINES = ("no_change", "mean_shift", "additive")
METRICS = ("energy_distance", "w2", "mean_change_correlation", "de_overlap_top_100")
#: Of Okabe and Ito, in an order in which neighbours differ in lightness, too; baselines are grey.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
GREYS = ("0.15", "0.45", "0.7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
HEIGHT_OF_ALL = 0.7  # of a row, over which methods are spread
FLOOR = {"color": "black", "linewidth": 1.2}


def perturbation_scores(
    table: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    methods: Sequence[str] | Mapping[str, str] | None = None,
    axs: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Plot the table of :func:`~scgen_diffusion.metrics.evaluate_perturbation`: methods, baselines and floor, one panel per metric and one row per case.

    A case is a perturbation in a group. Baselines are grey; the black stroke is the floor, what real cells score as prediction of each other. Several rows of one metric and
    case, such as those of several seeds, are small points beside their mean. An arrow says which way is better.

    Parameters
    ----------
    table
        Table of :func:`~scgen_diffusion.metrics.evaluate_perturbation`, or several, one below the other.
    metrics
        Which of them; default: energy distance, Wasserstein distance, correlation of mean changes, and overlap of differential genes, as far as they are there.
    cases
        Which of them, in this order from the top: groups or perturbations (what tells the rows apart), or ``"perturbation, group"``; default: all.
    methods
        Columns of the table, or a mapping from columns to what they shall be called; default: all. The column ``"value"`` is called ``"predicted"``.
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
        For unknown metrics, cases and methods, and for more methods than can be told apart.

    Examples
    --------
    >>> import pandas as pd, scgen_diffusion as scgd
    >>> row = {"metric": "w2", "perturbation": "IFNB", "group": "B", "better": "lower"}
    >>> table = pd.DataFrame([{**row, "value": 8.5, "floor": 8.0, "no_change": 13.8}])
    >>> axes = scgd.pl.perturbation_scores(table, show=False)
    """
    known = list(table["metric"].unique())
    metrics = [name for name in METRICS if name in known] or known[:4] if metrics is None else metrics
    metrics = chosen("metrics", metrics, known)
    labels = case_labels(table)
    cases = chosen("cases", cases, list(labels.unique()))
    names = method_names(table, methods)
    styles = styles_of(list(names))
    axes = panels(len(metrics), axs, size=(2.7, 1.3 + 0.42 * len(cases)))
    for ax, metric in zip(axes, metrics, strict=True):
        rows = table[table["metric"] == metric]
        draw_metric(ax, rows.set_index(labels[rows.index]), cases, styles)
        ax.set_title(f"{metric} {SIGNS[rows['better'].iloc[0]]}", fontsize="small")
    axes[0].set_yticks(range(len(cases)), cases)
    axes[0].set_ylim(len(cases) - 0.5, -0.5)  # the first case at the top
    explain(axes[-1], {names[column]: style for column, style in styles.items()})
    return finish(axes, show, save)


def case_labels(table: pd.DataFrame) -> pd.Series:
    """Name every row by what tells cases apart: the group, the perturbation, or both."""
    differing = [key for key in ("perturbation", "group") if table[key].nunique() > 1] or ["perturbation"]
    return table[differing].astype(str).agg(", ".join, axis=1)


def method_names(table: pd.DataFrame, methods: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """Return what the columns of methods are called; baselines last.

    Raises
    ------
    ValueError
        For columns that are no methods.
    """
    known = [column for column in table if column not in NOT_METHODS and table[column].dtype.kind == "f"]
    there = [column for column in known if table[column].notna().any()]
    columns = there if methods is None else chosen("methods", list(methods), known)
    called = methods if hasattr(methods, "keys") else {}
    columns = sorted(columns, key=lambda column: column in BASELINES)  # keeps the order otherwise
    return {
        column: called.get(column, "predicted" if column == "value" else column.replace("_", " ")) for column in columns
    }


def styles_of(columns: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Give every method a colour and a marker, baselines greys.

    Raises
    ------
    ValueError
        If there are too many.
    """
    own = [column for column in columns if column not in BASELINES]
    if len(own) > len(COLORS):
        msg = (
            f"At most {len(COLORS)} `methods` besides the baselines can be told apart, but there are {len(own)}: {own}."
        )
        raise ValueError(msg)
    colors = dict(zip(own, COLORS, strict=False)) | dict(zip(BASELINES, GREYS, strict=True))
    return {column: (colors[column], marker) for column, marker in zip(columns, MARKERS, strict=False)}


def draw_metric(ax: Axes, rows: pd.DataFrame, cases: Sequence[str], styles: Mapping[str, tuple[str, str]]) -> None:
    """Draw the methods of every case, and its floor."""
    offsets = (np.arange(len(styles)) - (len(styles) - 1) / 2) * HEIGHT_OF_ALL / max(len(styles), 2)
    for place, case in enumerate(cases):
        here = rows.loc[[case]] if case in rows.index else rows.iloc[:0]
        if place % 2:
            ax.axhspan(place - 0.5, place + 0.5, color="0.96", zorder=0)
        ax.vlines(here["floor"].mean(), place - 0.45, place + 0.45, zorder=1, **FLOOR)
        for offset, (column, (color, marker)) in zip(offsets, styles.items(), strict=True):
            values = here[column].dropna()
            if len(values) > 1:
                ax.scatter(values, np.full(len(values), place + offset), s=7, color=color, alpha=0.5, linewidths=0)
            if len(values):
                ax.scatter(values.mean(), place + offset, s=30, color=color, marker=marker, linewidths=0, zorder=3)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)


def explain(ax: Axes, styles: Mapping[str, tuple[str, str]]) -> None:
    """Say to the right of a panel what points and strokes are."""
    handles = [
        Line2D([], [], linestyle="", color=color, marker=marker, markersize=5.5, label=name)
        for name, (color, marker) in styles.items()
    ]
    handles.append(
        Line2D(
            [],
            [],
            linestyle="",
            marker="|",
            markersize=12,
            markeredgewidth=1.2,
            color="black",
            label="floor: real\nagainst real cells",
        )
    )
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize="small")
