"""Marker genes of real cells, in real and in synthetic ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize

from scgen_diffusion.metrics import marker_genes

from ._figures import chosen, finish, one_axis
from ._pairs import MISSING, SOURCES, Side, label_order, labels_of, pair_of

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

LARGEST_DOT = 130.0  # points squared, of a gene that every cell expresses
SHARES = (0.25, 0.5, 0.75, 1.0)
COLORS = "Reds"
SHIFTS = (-0.22, 0.22)  # of the row of real and of synthetic cells within a label


def marker_dotplot(
    real: AnnData,
    synthetic: AnnData,
    *,
    groupby: str,
    n_genes: int = 3,
    genes: Sequence[str] | None = None,
    layer: str | None = None,
    max_cells: int = 20_000,
    seed: int = 0,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Plot the expression of marker genes as dots: for each label a row of real above a row of synthetic cells.

    Areas of dots are shares of cells that express the gene, colours its mean log-normalised expression. Markers are those of real
    cells (:func:`~scgen_diffusion.metrics.marker_genes`), from the first label to the last; a gene that marks several labels
    is drawn once, with the first of them.

    Parameters
    ----------
    real, synthetic
        Cells with the same genes: counts, or `log1p` values where ``uns["log1p"]`` says so. They are not changed.
    groupby
        Column of `obs` with the labels.
    n_genes
        Markers per label.
    genes
        These genes instead.
    layer
        Layer with the counts. Default: ``"counts"`` if there is one, else `X`.
    max_cells
        A random part of each set, where it has more.
    seed
        Decides the part of the cells.
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
    KeyError
        If `groupby` is no column of both.
    ValueError
        For unknown genes, or if there are no markers.

    See Also
    --------
    scgen_diffusion.metrics.marker_agreement : Figures for it.
    """
    a, b = pair_of(real, synthetic, layer=layer, max_cells=max_cells, seed=seed)
    labels = {name: labels_of(side.cells, groupby, name) for name, side in zip(SOURCES, (a, b), strict=True)}
    order = label_order(real, groupby, *labels.values())
    if genes is None:
        genes = markers_of(a.cells, labels["real"], order, n_genes, layer)
    genes = chosen("genes", genes, real.var_names)
    dots = {name: dots_of(side, labels[name], genes) for name, side in zip(SOURCES, (a, b), strict=True)}
    ax = one_axis(ax, size=(5.2 + 0.24 * len(genes), 1.3 + 0.44 * len(order)))
    draw_dots(ax, dots, order, genes)
    name_rows(ax, order)
    ax.set_xticks(range(len(genes)), genes, rotation=90, fontsize="small")
    ax.set(xlim=(-0.7, len(genes) - 0.3), ylim=(len(order) - 0.4, -0.6), title="Marker genes of real cells")
    return finish(ax, show, save)


def markers_of(real: AnnData, labels: pd.Series, order: Sequence[str], n_genes: int, layer: str | None) -> list[str]:
    """Return the markers of every label in turn.

    Raises
    ------
    ValueError
        If there are none, for lack of cells or of labels.
    """
    is_labelled = (labels != MISSING).to_numpy()
    labelled = real if is_labelled.all() else real[is_labelled]
    table = marker_genes(labelled, labels.name, n_genes=n_genes, layer=layer)
    of_label = {label: list(rows) for label, rows in table.groupby("label")["gene"]}
    genes = list(dict.fromkeys(gene for label in order for gene in of_label.get(label, [])))
    if not genes:
        msg = f"There are no marker genes of {labels.name!r}: two labels with at least two cells each are needed."
        raise ValueError(msg)
    return genes


def dots_of(side: Side, labels: pd.Series, genes: Sequence[str]) -> pd.DataFrame:
    """Return mean and share of expressing cells of every label (rows) and gene."""
    places = side.cells.var_names.get_indexer(genes)
    values = pd.DataFrame(side.expression.values[:, places].toarray(), columns=genes)
    groups = labels.to_numpy()
    return pd.concat({"mean": values.groupby(groups).mean(), "share": (values > 0).groupby(groups).mean()}, axis=1)


def draw_dots(ax: Axes, dots: dict[str, pd.DataFrame], order: Sequence[str], genes: Sequence[str]) -> None:
    """Draw the dots of both sets on the same scales, and what their colours and sizes mean."""
    norm = Normalize(0, max(table["mean"].to_numpy().max() for table in dots.values()) or 1)
    for place in range(0, len(order), 2):
        ax.axhspan(place - 0.5, place + 0.5, color="0.95", zorder=0, linewidth=0)
    for shift, table in zip(SHIFTS, dots.values(), strict=True):
        places = [place for place, label in enumerate(order) if label in table.index]
        rows = table.loc[[order[place] for place in places]]
        x, y = np.meshgrid(range(len(genes)), np.add(places, shift))
        look = {"cmap": COLORS, "norm": norm, "edgecolors": "0.4", "linewidths": 0.4}
        image = ax.scatter(x, y, s=LARGEST_DOT * rows["share"].to_numpy(), c=rows["mean"].to_numpy(), **look)
        for place in set(range(len(order))) - set(places):
            ax.annotate("no cells", (0, place + shift), (-8, 0), textcoords="offset points", va="center", fontsize=7)
    explain_dots(ax, image)


def explain_dots(ax: Axes, image: object) -> None:
    """Say to the right what sizes and colours mean."""
    inch = ax.figure.dpi / ax.get_window_extent().width  # in widths of the axis
    bar = ax.inset_axes((1 + 0.15 * inch, 0, 0.13 * inch, 0.45))
    ax.figure.colorbar(image, cax=bar, label="mean expression,\nln(1 + CP10k)")
    handles = [
        ax.scatter([], [], s=LARGEST_DOT * share, color="0.6", edgecolors="0.4", linewidths=0.4, label=f"{share:.0%}")
        for share in SHARES
    ]
    look = {"alignment": "left", "frameon": False, "borderaxespad": 0, "fontsize": "small", "title_fontsize": "small"}
    ax.legend(handles=handles, title="cells expressing", loc="upper left", bbox_to_anchor=(1 + 0.1 * inch, 1), **look)


def name_rows(ax: Axes, order: Sequence[str]) -> None:
    """Name labels to the left, and the sets, in their colours, between them and the dots."""
    ax.set_yticks(range(len(order)), order)
    ax.tick_params(axis="y", length=0, pad=52)
    for place in range(len(order)):
        for shift, (name, color) in zip(SHIFTS, SOURCES.items(), strict=True):
            where = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points"}
            ax.annotate(name, (0, place + shift), (-4, 0), ha="right", va="center", fontsize=7, color=color, **where)
    ax.spines[["top", "right"]].set_visible(False)
