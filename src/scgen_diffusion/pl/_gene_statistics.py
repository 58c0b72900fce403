"""Genes of real and synthetic cells: how their variances and zeros go with their means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgen_diffusion.metrics import gene_statistics

from ._figures import finish, one_axis, panels, plain_numbers
from ._pairs import SOURCES, legend_beside, mixed_scatter, pair_of, without_frame

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

MEAN = "mean expression, ln(1 + CP10k)"
VARIANCE = "variance, (ln(1 + CP10k))²"
N_TREND_POINTS = 20


def mean_variance(
    real: AnnData,
    synthetic: AnnData,
    *,
    layer: str | None = None,
    max_cells: int = 20_000,
    size: float | None = None,
    seed: int = 0,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Plot every gene's variance against its mean, in real and in synthetic cells, on logarithmic axes.

    Of log-normalised expression (counts per 10 000, natural logarithm). Lines are medians over genes of like mean. Genes that
    no cell of a set expresses cannot be drawn; the legend says how many are.

    Parameters
    ----------
    real, synthetic
        Cells with the same genes: counts, or `log1p` values where ``uns["log1p"]`` says so. They are not changed.
    layer
        Layer with the counts. Default: ``"counts"`` if there is one, else `X`.
    max_cells
        A random part of each set, where it has more.
    size
        Size of the points.
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

    See Also
    --------
    scgen_diffusion.metrics.mean_variance_error : The figure for it.
    """
    tables = statistics_of(real, synthetic, layer, max_cells, seed)
    drawn = {name: table[(table["mean"] > 0) & (table["variance"] > 0)] for name, table in tables.items()}
    ax = one_axis(ax, size=(4.4, 3.8))
    points = [table[["mean", "variance"]].to_numpy() for table in drawn.values()]
    mixed_scatter(ax, points, list(SOURCES.values()), size=size or point_size(tables), alpha=0.5)
    for (name, table), width in zip(drawn.items(), (4.5, 1.8), strict=True):  # the first one shows below the second
        ax.plot(*trend(table), color="white", linewidth=width + 1.5)
        ax.plot(*trend(table), color=SOURCES[name], linewidth=width)
    ax.set(xscale="log", yscale="log", xlabel=MEAN, ylabel=VARIANCE, title="Mean and variance of genes")
    for axis in (ax.xaxis, ax.yaxis):
        plain_numbers(axis)
    without_frame(ax)
    n_genes = len(tables["real"])
    legend_beside(ax, {"": {gene_label(name, len(t), n_genes): SOURCES[name] for name, t in drawn.items()}})
    return finish(ax, show, save)


def zero_fraction(
    real: AnnData,
    synthetic: AnnData,
    *,
    layer: str | None = None,
    max_cells: int = 20_000,
    size: float | None = None,
    seed: int = 0,
    axs: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Plot every gene's share of zeros: synthetic against real cells, and both against the gene's mean.

    In the left panel, genes below the dashed diagonal have too few zeros in synthetic cells. The right panel tells whether that is because they are
    expressed more, or more evenly than real ones at the same mean.

    Parameters
    ----------
    real, synthetic
        Cells with the same genes: counts, or `log1p` values where ``uns["log1p"]`` says so. They are not changed.
    layer
        Layer with the counts. Default: ``"counts"`` if there is one, else `X`.
    max_cells
        A random part of each set, where it has more.
    size
        Size of the points.
    seed
        Decides the part of the cells.
    axs
        Two axes to draw on.
    show
        Whether to show the figure; default: scanpy's ``settings.autoshow``.
    save
        File to write the figure to.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes, if they are not shown.

    See Also
    --------
    scgen_diffusion.metrics.gene_profile_errors : The figure for it.
    """
    tables = statistics_of(real, synthetic, layer, max_cells, seed)
    axes = panels(2, axs, size=(3.8, 3.8))
    size = size or point_size(tables)
    zeros = [table["zero_fraction"].to_numpy() for table in tables.values()]
    axes[0].axline((0, 0), (1, 1), color="black", linewidth=0.8, linestyle="--", zorder=3)
    mixed_scatter(axes[0], [np.column_stack(zeros)], ["0.25"], size=size, alpha=0.5)
    margin = (-0.03, 1.03)
    axes[0].set(xlim=margin, ylim=margin, title="Zeros of genes")
    axes[0].set(xlabel="share of zeros in real cells", ylabel="share of zeros in synthetic cells")
    expressed = {name: table[table["mean"] > 0] for name, table in tables.items()}
    points = [table[["mean", "zero_fraction"]].to_numpy() for table in expressed.values()]
    mixed_scatter(axes[1], points, list(SOURCES.values()), size=size, alpha=0.5)
    axes[1].set(xscale="log", ylim=margin, xlabel=MEAN, ylabel="share of zeros", title="Zeros and mean of genes")
    plain_numbers(axes[1].xaxis)
    for ax in axes:
        without_frame(ax)
        ax.set_box_aspect(1)
    n_genes = len(tables["real"])
    legend_beside(axes[1], {"": {gene_label(name, len(t), n_genes): SOURCES[name] for name, t in expressed.items()}})
    return finish(axes, show, save)


def statistics_of(
    real: AnnData, synthetic: AnnData, layer: str | None, max_cells: int, seed: int
) -> dict[str, pd.DataFrame]:
    """Return the statistics of the genes of both sets."""
    sides = pair_of(real, synthetic, layer=layer, max_cells=max_cells, seed=seed)
    return {name: gene_statistics(side.expression) for name, side in zip(SOURCES, sides, strict=True)}


def trend(table: pd.DataFrame) -> tuple[list[float], list[float]]:
    """Return medians of mean and variance of genes with like means, as many genes in each part."""
    table = table.sort_values("mean")
    bounds = np.linspace(0, len(table), min(N_TREND_POINTS, len(table)) + 1).astype(int)
    parts = [table.iloc[low:high] for low, high in zip(bounds[:-1], bounds[1:], strict=True)]
    return [part["mean"].median() for part in parts], [part["variance"].median() for part in parts]


def gene_label(name: str, n_drawn: int, n_genes: int) -> str:
    """Name a set, and say how many genes of it are drawn."""
    share = f"{n_genes:,} genes" if n_drawn == n_genes else f"{n_drawn:,} of {n_genes:,}\ngenes drawn"
    return f"{name}\n({share})"


def point_size(tables: Mapping[str, pd.DataFrame]) -> float:
    """Return a size at which as many points can be told apart."""
    return float(np.clip(8_000 / len(tables["real"]), 3, 14))
