"""Plots of perturbations: changes of genes, predicted and real, and how well methods predict."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, islice
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import seaborn as sns
from matplotlib.lines import Line2D

from scgen_diffusion._arguments import check_count
from scgen_diffusion.metrics import correlation, gene_changes

from ._figures import (
    MOST_VECTORS,
    N_COLUMNS,
    SIGNS,
    SOURCES,
    choose,
    finish,
    ink,
    legend_beside,
    panels,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

#: Okabe and Ito's colours, ordered so that neighbours also differ in lightness.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
LETTER, NAME_LETTER, LEGEND = 0.08, 0.066, 1.4  # inches, of labels, names of genes, and the legend
TITLE_LENGTH = 26  # letters, and gaps after underscores, above which a title gets a second line
TOP_COLOR = COLORS[1]  # for the genes that change most
CHANGE = "mean change, ln(1 + CP10k)"
MARGIN = 0.06  # around the points, as a share of the range

#: Columns of the table of scores that are not methods.
NOT_METHODS = ("metric", "perturbation", "group", "real", "better")
GREYS = {"no_change": 0.6, "mean_shift": 0.42, "additive": 0.24}  # for the baselines, as shares of ink
METRICS = ("energy_distance", "mean_change_correlation", "de_overlap_top_100")
SPREAD = 0.6  # share of a row's height over which its methods are spread


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
    arrow = {"arrowstyle": "-", "color": ink(0.4), "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2, "relpos": (0, 0.5)}
    options = {"textcoords": "axes fraction", "va": "center", "fontsize": 7, "arrowprops": arrow, "zorder": 1.5}
    for place, (name, gene) in enumerate(named.iterrows()):
        ax.annotate(name, (gene["real"], gene["predicted"]), (1.03, (place + 0.5) / len(named)), **options)
    ax.legend(loc="upper left", fontsize="small", handletextpad=0.2, borderaxespad=0.2, edgecolor="none")
    sns.despine(ax=ax)
    return finish(ax, show)


def perturbation_scores(
    table: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    methods: Sequence[str] | Mapping[str, str] | None = None,
    axs: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
) -> list[Axes] | None:
    """Plot how well methods predict perturbations, next to baselines: one panel per metric, one row per case.

    A case is a perturbation in a group. Baselines are grey. The black line is the score of real cells as a prediction
    of each other. Of several rows for one metric and case, such as several seeds, the mean and the range are shown. The
    sign behind a metric shows which direction is better.

    Parameters
    ----------
    table
        Table from :func:`~scgen_diffusion.metrics.evaluate` with ``control``, or several tables concatenated.
    metrics
        Metrics to show. Default: energy distance, correlation of mean changes, and overlap of the 100 genes that change
        most; the first metrics of the table if it has none of these.
    cases
        Cases to show, from the top: ``"perturbation, group"``; without the perturbation if the groups alone differ, and
        without the group ``"all"``. Default: all.
    methods
        Columns of the table, or a mapping from columns to names in the plot. Default: all, with ``"predicted"`` as the
        name of ``"value"``.
    axs
        Axes to draw on, one per metric.
    show
        Whether to show the figure instead of returning the axes. Default: scanpy's ``settings.autoshow``.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes, or None if the figure is shown.

    Raises
    ------
    ValueError
        If a metric, case or method is unknown, or the table is another one.

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
    cases = choose("cases", cases, labels.unique())
    known = [name for name in table.select_dtypes("floating") if name not in NOT_METHODS]
    columns = choose("methods", table[known].dropna(axis=1, how="all") if methods is None else methods, known)
    columns = sorted(columns, key=lambda column: column in GREYS)  # baselines last; else in the same order
    names = methods if isinstance(methods, Mapping) else {"value": "predicted"}
    colors = dict(zip(columns, cycle(COLORS), strict=False)) | {name: ink(share) for name, share in GREYS.items()}
    palette, markers = [colors[name] for name in columns], [*islice(cycle(MARKERS), len(columns))]
    rows = table.assign(case=labels).melt(["metric", "case", "real"], columns, "method", "score")
    width = 2.5 + (LETTER * max(map(len, cases)) + LEGEND) / min(len(metrics), N_COLUMNS)  # beside the panels
    axes = panels(len(metrics), axs, size=(width, 1.3 + 0.42 * len(cases)))
    look = {"dodge": SPREAD, "errorbar": ("pi", 100), "linestyle": "none", "markersize": 5.5, "linewidth": 1}
    look |= {"order": cases, "hue_order": columns, "palette": palette, "markers": markers, "legend": False}
    better = table.drop_duplicates("metric").set_index("metric")["better"]
    for ax, metric in zip(axes, metrics, strict=True):
        own = rows[(rows["metric"] == metric) & rows["case"].isin(cases)]
        real = own.groupby("case")["real"].mean().reindex(cases)
        ax.vlines(real, np.arange(len(cases)) - 0.45, np.arange(len(cases)) + 0.45, color=ink(), linewidth=1.2)
        sns.pointplot(own, x="score", y="case", hue="method", ax=ax, **look)
        title = fill(metric.replace("_", "_ "), TITLE_LENGTH).replace("_ ", "_")
        ax.set_title(f"{title} {SIGNS[better[metric]]}", fontsize="small")
        ax.set(ylim=(len(cases) - 0.5, -0.5), axisbelow=True, xlabel="", ylabel="")
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", color=ink(0.1), linewidth=0.6)
        sns.despine(ax=ax, left=True)
    handles = [
        Line2D([], [], linestyle="", label=names.get(column, column.replace("_", " ")), color=color, marker=marker)
        for column, color, marker in zip(columns, palette, markers, strict=True)
    ]
    look = {"marker": "|", "markersize": 12, "markeredgewidth": 1.2, "color": ink()}
    line = Line2D([], [], linestyle="", label="real cells\nagainst real cells", **look)
    shown = [name for name in ("lower", "higher") if name in set(better[metrics])]
    signs = [Line2D([], [], linestyle="", label=f"{SIGNS[name]} {name} is better") for name in shown]
    legend_beside(axes[:N_COLUMNS][-1], [*handles, line, *signs])
    return finish(axes, show)
