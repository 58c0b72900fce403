"""Plots of perturbations: changes of genes, predicted and real, and how well methods predict."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D

from scgen_diffusion._arguments import check_count
from scgen_diffusion.metrics import correlation, gene_changes

from ._figures import (
    COLORS,
    MARKERS,
    MOST_VECTORS,
    N_COLUMNS,
    REAL_LABEL,
    SIGNS,
    SOURCES,
    choose,
    end_of_first_row,
    finish,
    first_column,
    ink,
    legend_beside,
    panels,
    without_frame,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

MOST_CASES = 200  # rows of a figure, which is then 7 feet high
LETTER, NAME_LETTER = 0.08, 0.066  # inches, of labels and of names of genes
TITLE_LENGTH = 26  # letters, and gaps after underscores, above which a title gets a second line
WORDS = {"lower": "lower is better", "higher": "higher is better", "real": "best where real cells are"}
TOP_COLOR = COLORS[1]  # for the genes that change most
CHANGE = "mean change, ln(1 + CP10k)"
MARGIN = 0.06  # around the points, as a share of the range
LINE_HEIGHT = 0.055  # between names, as a share of the axis

#: Columns of the table of scores that are not methods.
NOT_METHODS = ("metric", "perturbation", "group", "real", "better")
GREYS = {"no_change": 0.6, "mean_shift": 0.42, "additive": 0.24}  # for the baselines, as shares of ink
METRICS = ("energy_distance", "mean_change_correlation", "de_overlap_top_100")
SPREAD = 0.7  # share of a row's height over which its methods are spread


def mean_change(
    real: AnnData,
    predicted: AnnData,
    control: AnnData,
    *,
    n_top: int = 100,
    n_names: int = 10,
    layer: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Plot every gene's mean change against control, predicted against real, and name the genes that change most.

    Genes on the dashed diagonal change as much as in real cells. For genes that go up, points below it mean that the
    predicted effect is too small. The legend has Pearson's correlation over all genes and over the top genes, in blue:
    those with the largest Welch *t* in real cells. Pass cells of one type to see its effect alone.

    Parameters
    ----------
    real, predicted, control
        Real and predicted perturbed cells, and real unperturbed cells, with the same genes: counts, or `log1p` values
        with ``uns["log1p"]`` set. They are not changed.
    n_top
        Number of top genes.
    n_names
        Number of top genes to name.
    layer
        Layer with the counts. Default: ``"counts"`` if it exists, else `X`.
    ax
        Axes to draw on, with room for names to the right.
    show
        Whether to show the figure instead of returning the axes. Default: scanpy's ``settings.autoshow``.
    save
        File to write the figure to.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes, or None if the figure is shown.

    Raises
    ------
    ValueError
        If the genes differ, `n_top` is below 1, or `n_names` below 0.

    See Also
    --------
    scgen_diffusion.metrics.gene_changes : The changes as a table.
    scgen_diffusion.metrics.mean_change_correlation : The correlations.
    """
    check_count("n_top", n_top)
    check_count("n_names", n_names, least=0)
    table = gene_changes(real, predicted, control, layer=layer)
    top, changes = table.iloc[:n_top], table[["real", "predicted"]].to_numpy()
    letters = max([len(str(name)) for name in top.index[:n_names]], default=0)
    (ax,) = panels(1, ax, size=(3.4 + NAME_LETTER * letters, 3.5))
    margin = MARGIN * max(np.ptp(changes), 1e-6)
    limits = (changes.min() - margin, changes.max() + margin)
    ax.set(xlim=limits, ylim=limits, xlabel=f"real {CHANGE}", ylabel=f"predicted {CHANGE}")
    ax.set(aspect="equal", anchor="E")  # on the right of its place, so that the layout leaves room for all names
    ax.axhline(0, color=ink(0.15), linewidth=0.8, zorder=0)
    ax.axvline(0, color=ink(0.15), linewidth=0.8, zorder=0)
    ax.axline((0, 0), slope=1, color=ink(), linewidth=0.8, linestyle="--", zorder=1)
    looks = {
        "all genes": {"s": 5, "color": SOURCES["real"], "alpha": 0.4, "rasterized": len(table) > MOST_VECTORS},
        f"top {len(top)} genes": {"s": 12, "color": TOP_COLOR},
    }
    for (name, look), part in zip(looks.items(), (table, top), strict=True):
        r = correlation(part["real"].to_numpy(), part["predicted"].to_numpy())
        ax.scatter(part["real"], part["predicted"], linewidths=0, label=f"{name}: r = {r:.2f}", **look)
    named = top.iloc[:n_names].sort_values("predicted")
    places = ax.transAxes.inverted().transform(ax.transData.transform(named[["real", "predicted"]]))
    heights = spread_out(places[:, 1], min(LINE_HEIGHT, 1 / max(len(named), 1)), 0, 1)
    arrow = {"arrowstyle": "-", "color": ink(0.4), "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2, "relpos": (0, 0.5)}
    options = {"textcoords": "axes fraction", "va": "center", "fontsize": 7, "arrowprops": arrow, "zorder": 1.5}
    for height, (name, gene) in zip(heights, named.iterrows(), strict=True):
        ax.annotate(name, (gene["real"], gene["predicted"]), (1.03, height), **options)
    ax.legend(loc="upper left", fontsize="small", handletextpad=0.2, borderaxespad=0.2, edgecolor="none")
    without_frame(ax)
    return finish(ax, show, save)


def spread_out(heights: NDArray, gap: float, low: float, high: float) -> NDArray[np.float64]:
    """Move ascending heights apart by at least a gap, within bounds if they fit."""
    heights = np.array(heights, dtype=np.float64)
    steps = gap * np.arange(len(heights))
    heights = np.maximum.accumulate(heights - steps) + steps
    ceiling = high - gap / 2 - steps[::-1]
    return np.maximum(np.minimum(heights, ceiling), low + gap / 2 + steps)


def perturbation_scores(
    table: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    methods: Sequence[str] | Mapping[str, str] | None = None,
    axs: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Plot how well methods predict perturbations, next to baselines: one panel per metric, one row per case.

    A case is a perturbation in a group. Baselines are grey. The black line is the score of real cells as a prediction
    of each other. Several rows for one metric and case, such as several seeds, are small points next to
    their mean. The sign behind a metric shows which direction is better.

    Parameters
    ----------
    table
        Table from :func:`~scgen_diffusion.metrics.evaluate` with ``control``, or several tables concatenated.
    metrics
        Metrics to show. Default: energy distance, correlation of mean changes, and overlap of the 100 genes that change
        most; the first metrics of the table if it has none of these.
    cases
        Cases to show, from the top: ``"perturbation, group"``; without the perturbation if the groups alone differ, and
        without the group ``"all"``. At most 200. Default: all.
    methods
        Columns of the table, or a mapping from columns to names in the plot. Default: all, with ``"predicted"`` as the
        name of ``"value"``.
    axs
        Axes to draw on, one per metric.
    show
        Whether to show the figure instead of returning the axes. Default: scanpy's ``settings.autoshow``.
    save
        File to write the figure to.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes, or None if the figure is shown.

    Raises
    ------
    ValueError
        If a metric, case or method is unknown, there are too many cases, or too many methods, or the table is
        another one.

    Examples
    --------
    >>> import pandas as pd, scgen_diffusion as scgd
    >>> row = {
    ...     "metric": "energy_distance",
    ...     "perturbation": "IFNB",
    ...     "group": "B",
    ...     "better": "lower",
    ... }
    >>> table = pd.DataFrame([{**row, "value": 0.5, "real": 0.1, "no_change": 13.8}])
    >>> axes = scgd.pl.perturbation_scores(table, show=False)
    """
    if not set(NOT_METHODS) <= set(table):
        msg = f"`table` must come from `evaluate` with `control`, with the columns {list(NOT_METHODS)}."
        raise ValueError(msg)
    known = list(table["metric"].unique())
    metrics = [name for name in METRICS if name in known] or known[:4] if metrics is None else metrics
    metrics = choose("metrics", metrics, known)
    is_one = table["perturbation"].nunique() == 1 < table["group"].nunique()
    labels = table["group"].astype(str)
    if not is_one:
        labels = (table["perturbation"].astype(str) + ", " + labels).str.removesuffix(", all")
    cases = choose("cases", cases, labels.unique(), most=MOST_CASES)
    known = [column for column in table if column not in NOT_METHODS and table[column].dtype.kind in "iuf"]
    if methods is None:
        methods = [column for column in known if table[column].dtype.kind == "f" and table[column].notna().any()]
    columns = choose("methods", methods, known, most=len(MARKERS))
    columns = sorted(columns, key=lambda column: column in GREYS)  # baselines last; else in the same order
    names = methods if isinstance(methods, Mapping) else {"value": "predicted"}
    styles = {
        column: {"color": ink(GREYS[column]) if column in GREYS else color, "marker": marker}
        for column, marker, color in zip(columns, MARKERS, cycle(COLORS), strict=False)
    }
    names_of_cases = LETTER * max(map(len, cases))  # beside the panels of a row
    width = 2.5 + names_of_cases / min(len(metrics), N_COLUMNS)
    axes = panels(len(metrics), axs, size=(width, 1.3 + 0.42 * len(cases)))
    offsets = (np.arange(len(styles)) - (len(styles) - 1) / 2) * SPREAD / max(len(styles), 2)
    better = table.drop_duplicates("metric").set_index("metric")["better"]
    named = first_column(axes)
    for ax, metric in zip(axes, metrics, strict=True):
        for place, case in enumerate(cases):
            rows = table[(table["metric"] == metric) & (labels == case)]
            if place % 2:
                ax.axhspan(place - 0.5, place + 0.5, color=ink(0.04), linewidth=0, zorder=0)
            ax.vlines(rows["real"].mean(), place - 0.45, place + 0.45, zorder=1, color=ink(), linewidth=1.2)
            for offset, (column, look) in zip(offsets, styles.items(), strict=True):
                values, y, color = rows[column].dropna(), place + offset, look["color"]
                if len(values) > 1:
                    ax.scatter(values, np.full(len(values), y), s=7, color=color, alpha=0.5, linewidths=0)
                if len(values):
                    ax.scatter(values.mean(), y, s=30, linewidths=0, zorder=3, **look)
        title = fill(metric.replace("_", "_ "), TITLE_LENGTH).replace("_ ", "_")
        ax.set_title(f"{title} {SIGNS[better[metric]]}", fontsize="small")
        ax.set(ylim=(len(cases) - 0.5, -0.5), axisbelow=True)
        ax.set_yticks(range(len(cases)), cases)
        ax.tick_params(axis="y", length=0, labelleft=ax in named)
        ax.grid(axis="x", color=ink(0.1), linewidth=0.6)
        ax.spines[["top", "right", "left"]].set_visible(False)
    handles = [
        Line2D([], [], linestyle="", markersize=5.5, label=names.get(column, column.replace("_", " ")), **look)
        for column, look in styles.items()
    ]
    line = Line2D([], [], linestyle="", marker="|", markersize=12, markeredgewidth=1.2, color=ink(), label=REAL_LABEL)
    signs = [Line2D([], [], linestyle="", label=f"{SIGNS[n]} {WORDS[n]}") for n in better[metrics].unique()]
    legend_beside(end_of_first_row(axes), [*handles, line, *signs])
    return finish(axes, show, save)
