"""Plots of total counts and genes of real and synthetic cells: means, variances, zeros, correlations and markers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
import seaborn as sns
from anndata import AnnData
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from scgen_diffusion.data import NO_LABEL
from scgen_diffusion.metrics import correlation, gene_correlations, gene_statistics, marker_genes

from ._figures import (
    SOURCES,
    choose,
    column_as_text,
    explain_colors,
    finish,
    ink,
    label_order,
    mixed_scatter,
    panels,
    plain_numbers,
    sides_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

MEAN = "mean expression, ln(1 + CP10k)"
VARIANCE = "variance, (ln(1 + CP10k))²"
LETTER = 0.085  # inches, of a label
N_TREND_POINTS = 20
MOST_NAMED = 60  # genes in a heat map, of which more would be hard to read
UNCLIPPED_SHARE = 0.99
ALL_CELLS = "all cells"
ROW = "label and kind of cells"  # unlike any gene


def library_size(
    real: AnnData,
    synthetic: AnnData,
    *,
    groupby: str | None = None,
    layer: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Plot the distribution of total counts in real and synthetic cells, on a logarithmic axis.

    Violins have lines at the quartiles. Cells without counts are left out.

    Parameters
    ----------
    real, synthetic
        Counts of the same genes. They are not changed.
    groupby
        Column of `obs`. Default: all cells together.
    layer
        Layer with the counts. Default: ``"counts"`` if it exists, else `X`.
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
    KeyError
        If `groupby` is not a column of both `obs`.
    ValueError
        If a set came log-normalised, or has no counts at all.

    See Also
    --------
    scgen_diffusion.metrics.library_size_ks : The difference as a number.
    """
    sides = sides_of(real, synthetic, layer)
    tables = []
    for name, side in sides.items():
        totals = side.expression.library_sizes
        if totals is None or not totals.any():
            msg = f"`{name}` holds no counts, or log-normalised values; set `layer` to the layer with counts."
            raise ValueError(msg)
        labels = ALL_CELLS if groupby is None else column_as_text(side.cells, groupby, name).to_numpy()
        tables.append(pd.DataFrame({"total": totals, "cells": name, "label": labels}))
    table = pd.concat(tables, ignore_index=True).query("total > 0")
    look = {"x": "total", "hue": "cells", "palette": SOURCES, "legend": False}
    order = [ALL_CELLS] if groupby is None else label_order(sides, groupby)
    (ax,) = panels(1, ax, size=(6.3 + LETTER * max(map(len, order)), 1.2 + 0.36 * len(order)))
    shapes = {"inner": "quart", "cut": 0, "density_norm": "width", "linewidth": 0.8, "log_scale": True}
    sns.violinplot(table, y="label", order=order, ax=ax, **look, **shapes)
    ax.set(xlabel="total counts per cell", ylabel="", title="Library size")
    plain_numbers(ax.xaxis)
    sns.despine(ax=ax)
    explain_colors(ax, SOURCES)
    return finish(ax, show)


def mean_variance(
    real: AnnData,
    synthetic: AnnData,
    *,
    layer: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Plot every gene's variance against its mean, in real and synthetic cells, on logarithmic axes.

    Values are log-normalised expression (counts per 10,000, natural logarithm). Lines are running medians over genes
    with similar means. Genes that no cell of a set expresses cannot be drawn; the legend gives the number that is
    drawn.

    Parameters
    ----------
    real, synthetic
        Cells with the same genes: counts, or `log1p` values with ``uns["log1p"]`` set. They are not changed.
    layer
        Layer with the counts. Default: ``"counts"`` if it exists, else `X`.
    ax
        Axis to draw on.
    show
        Whether to show the figure instead of returning the axes. Default: scanpy's ``settings.autoshow``.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axis, or None if the figure is shown.

    See Also
    --------
    scgen_diffusion.metrics.mean_variance_error : The difference as a number.
    """
    tables = tables_of(real, synthetic, layer)
    (ax,) = panels(1, ax, size=(5.0, 3.8))
    drawn = draw_genes(ax, tables, "variance")
    # the first line stays visible under the second
    for (name, table), width in zip(drawn.items(), (4.5, 1.8), strict=True):
        bins = np.arange(len(table)) * min(N_TREND_POINTS, len(table)) // len(table)
        medians = table.sort_values("mean").groupby(bins).median()
        ax.plot(medians["mean"], medians["variance"], color=ink(0), linewidth=width + 1.5)
        ax.plot(medians["mean"], medians["variance"], color=SOURCES[name], linewidth=width)
    ax.set(yscale="log", ylabel=VARIANCE, title="Mean and variance of genes")
    plain_numbers(ax.yaxis)
    return finish(ax, show)


def zero_fraction(
    real: AnnData,
    synthetic: AnnData,
    *,
    layer: str | None = None,
    axs: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
) -> list[Axes] | None:
    """Plot every gene's share of zeros: synthetic against real cells, and both against the gene's mean.

    In the left panel, genes below the dashed diagonal have too few zeros in synthetic cells. The right panel shows why:
    because they are expressed more, or because they are more evenly expressed than real genes with the same mean.

    Parameters
    ----------
    real, synthetic
        Cells with the same genes: counts, or `log1p` values with ``uns["log1p"]`` set. They are not changed.
    layer
        Layer with the counts. Default: ``"counts"`` if it exists, else `X`.
    axs
        Two axes to draw on.
    show
        Whether to show the figure instead of returning the axes. Default: scanpy's ``settings.autoshow``.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes, or None if the figure is shown.

    See Also
    --------
    scgen_diffusion.metrics.gene_profile_errors : The difference as a number.
    """
    tables = tables_of(real, synthetic, layer)
    axes = panels(2, axs, size=(4.6, 3.8))
    zeros = np.column_stack([table["zero_fraction"] for table in tables.values()])
    axes[0].axline((0, 0), (1, 1), color=ink(), linewidth=0.8, linestyle="--", zorder=3)
    mixed_scatter(axes[0], [zeros], [ink(0.75)], size=point_size(len(zeros)), alpha=0.5)
    margin = (-0.03, 1.03)
    axes[0].set(xlim=margin, ylim=margin, title="Zeros of genes")
    axes[0].set(xlabel="share of zeros in real cells", ylabel="share of zeros in synthetic cells")
    sns.despine(ax=axes[0])
    draw_genes(axes[1], tables, "zero_fraction")
    axes[1].set(ylim=margin, ylabel="share of zeros", title="Zeros and mean of genes")
    for ax in axes:
        ax.set_box_aspect(1)
    return finish(axes, show)


def tables_of(real: AnnData, synthetic: AnnData, layer: str | None) -> dict[str, pd.DataFrame]:
    """Return the gene statistics of both sets."""
    sides = sides_of(real, synthetic, layer)
    return {name: gene_statistics(side.expression) for name, side in sides.items()}


def draw_genes(ax: Axes, tables: Mapping[str, pd.DataFrame], statistic: str) -> dict[str, pd.DataFrame]:
    """Draw a statistic of every gene against its mean. Return the genes that fit on a logarithmic axis."""
    drawn = {name: table[(table["mean"] > 0) & (table["variance"] > 0)] for name, table in tables.items()}
    points = [table[["mean", statistic]].to_numpy() for table in drawn.values()]
    n_genes = len(tables["real"])
    mixed_scatter(ax, points, list(SOURCES.values()), size=point_size(n_genes), alpha=0.5)
    ax.set(xscale="log", xlabel=MEAN)
    plain_numbers(ax.xaxis)
    sns.despine(ax=ax)
    names = {name: f"{name}\n({len(table):,} of {n_genes:,} genes)" for name, table in drawn.items()}
    explain_colors(ax, {names[name]: SOURCES[name] for name in names})
    return drawn


def point_size(n_points: int) -> float:
    """Return a point size at which this many points remain distinguishable."""
    return float(np.clip(8_000 / n_points, 3, 14))


def gene_correlation(
    real: AnnData,
    synthetic: AnnData,
    *,
    n_genes: int = 50,
    groupby: str | None = None,
    layer: str | None = None,
    axs: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
) -> list[Axes] | None:
    """Plot the correlations between genes, in real and synthetic cells, as two heat maps on one scale.

    Genes are ordered by average-linkage clustering of the real correlations. The title of the synthetic panel gives
    their similarity, Pearson's correlation of the correlations. It differs from that of
    :func:`~scgen_diffusion.metrics.evaluate`, which takes the most expressed genes. The strongest one per cent may
    exceed the colour scale.

    Parameters
    ----------
    real, synthetic
        Cells with the same genes: counts, or `log1p` values with ``uns["log1p"]`` set. They are not changed.
    n_genes
        Number of genes to show: those that vary most in real cells (variance of log-normalised expression).
    groupby
        Column of `obs`. Correlations are then within groups, after subtracting each group's mean. Default: among all
        cells, where differences between cell types cause most of the correlations.
    layer
        Layer with the counts. Default: ``"counts"`` if it exists, else `X`.
    axs
        Two axes to draw on.
    show
        Whether to show the figure instead of returning the axes. Default: scanpy's ``settings.autoshow``.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes of real and synthetic cells, or None if the figure is shown.

    Raises
    ------
    KeyError
        If `groupby` is not a column of both `obs`.

    See Also
    --------
    scgen_diffusion.metrics.gene_correlation_similarity : The similarity in the title.
    """
    sides = sides_of(real, synthetic, layer)
    variances = gene_statistics(sides["real"].expression)["variance"].to_numpy()
    places = np.argsort(-variances, kind="stable")[:n_genes]
    vectors = []
    for name, side in sides.items():
        labels = None if groupby is None else column_as_text(side.cells, groupby, name).to_numpy().astype(str)
        vectors.append(gene_correlations(side.expression.values[:, places].toarray(), labels))
    distances = np.maximum(1 - vectors[0], 0)  # rounding puts equal genes a little below zero
    order = leaves_list(linkage(distances, "average", optimal_ordering=True))

    names = list(real.var_names[places[order]])
    limit = max(np.quantile(np.abs(np.concatenate(vectors)), UNCLIPPED_SHARE), 0.05)
    side_length = 1.4 + 0.105 * min(len(names), MOST_NAMED)
    axes = panels(2, axs, size=(side_length + 0.8, side_length))
    look = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit, "cbar": False, "square": True, "mask": np.eye(len(order))}
    for ax, vector in zip(axes, vectors, strict=True):
        ax.tick_params(length=0, labelsize=6)
        ax.set_facecolor("0.85")
        sns.heatmap(pd.DataFrame(squareform(vector)[np.ix_(order, order)], names, names), ax=ax, **look)
    axes[0].set_title("real")
    axes[1].set_title(f"synthetic\n(similarity {correlation(*vectors):.2f} in these {len(names)} genes)")
    what = "correlation of genes" if groupby is None else f"correlation of genes\nwithin {groupby}"
    axes[1].figure.colorbar(axes[1].collections[0], ax=axes, label=what, shrink=0.6, extend="both")
    return finish(axes, show)


def marker_dotplot(
    real: AnnData,
    synthetic: AnnData,
    *,
    groupby: str,
    n_genes: int = 3,
    genes: Sequence[str] | None = None,
    layer: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Plot marker genes as scanpy's dot plot: for each label, a row of real cells above a row of synthetic ones.

    The area of a dot is the share of cells that express the gene, its colour the mean log-normalised expression.
    Markers come from the real cells, label by label: of the 50 genes with the largest Welch's t
    (:func:`~scgen_diffusion.metrics.marker_genes`), those with the largest fold changes. So genes that all cells
    express, such as those of ribosomes, are no markers. A gene that marks several labels is drawn once, with the first
    of them. Each row has its number of cells in brackets, as dots of few cells are noisy.

    Parameters
    ----------
    real, synthetic
        Cells with the same genes: counts, or `log1p` values with ``uns["log1p"]`` set. They are not changed.
    groupby
        Column of `obs` with the labels.
    n_genes
        Markers per label.
    genes
        Genes to show instead.
    layer
        Layer with the counts. Default: ``"counts"`` if it exists, else `X`.
    ax
        Axis in whose place to draw; the one that is returned is new.
    show
        Whether to show the figure instead of returning the axes. Default: scanpy's ``settings.autoshow``.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axis, or None if the figure is shown.

    Raises
    ------
    KeyError
        If `groupby` is not a column of both `obs`.
    ValueError
        If genes are unknown, or there are no markers.

    See Also
    --------
    scgen_diffusion.metrics.marker_agreement : The agreement in numbers.
    """
    sides = sides_of(real, synthetic, layer)
    labels = {name: column_as_text(side.cells, groupby, name) for name, side in sides.items()}
    order = label_order(sides, groupby)
    title = "Marker genes of real cells" if genes is None else "Expression of genes"
    if genes is None:
        labelled = sides["real"].cells[(labels["real"] != NO_LABEL).to_numpy()]
        markers = marker_genes(labelled, groupby, layer=layer).sort_values("log_fold_change", ascending=False)
        genes = [gene for label in order for gene in markers.loc[markers["label"] == label, "gene"][:n_genes]]
    genes = list(dict.fromkeys(choose("genes", genes, real.var_names)))
    places = real.var_names.get_indexer(genes)
    rows = pd.concat([found + f", {name}" for name, found in labels.items()])
    sizes = rows.value_counts()
    known = [row for label in order for name in labels if (row := f"{label}, {name}") in sizes]
    rows = pd.Categorical(rows, known).rename_categories([f"{row} ({sizes[row]:,})" for row in known])
    values = sp.vstack([side.expression.values[:, places] for side in sides.values()])
    obs = pd.DataFrame({ROW: rows}, index=np.arange(len(rows)).astype(str))
    cells = AnnData(values, obs=obs, var=pd.DataFrame(index=genes))
    plot = sc.pl.DotPlot(cells, genes, ROW, vmin=0, ax=ax)
    plot.legend(size_title="cells expressing (%)", colorbar_title="mean expression,\nln(1 + CP10k)")
    drawn = plot.get_axes()["mainplot_ax"]
    drawn.set_title(title)
    for text, row in zip(drawn.get_yticklabels(), known, strict=True):
        text.set_color(SOURCES[row.rpartition(", ")[2]])
    return finish(drawn, show)
