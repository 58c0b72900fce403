"""Plots of the white-box model: what layers do to tokens, and which genes heads read."""

from __future__ import annotations

from itertools import product
from os.path import commonprefix
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.lines import Line2D

from scgen_diffusion._arguments import check_count

from ._figures import (
    choose,
    end_of_first_row,
    finish,
    first_column,
    heat_map,
    ink,
    legend_beside,
    panels,
    scanpy_colors,
    without_frame,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes

LINE_STYLES = ["-", "--", ":", "-."]


def layer_statistics(
    table: pd.DataFrame,
    statistics: str | Sequence[str] = "subspace_coding_rate_before",
    *,
    groups: Sequence[str] | None = None,
    axs: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Plot statistics of the layers, of all heads together, over the diffusion time: a line per group of cells.

    Parameters
    ----------
    table
        What :func:`~scgen_diffusion.interpret.layer_statistics` returned.
    statistics
        Statistics to plot, with one line style each.
    groups
        Groups to show. Default: all.
    axs
        Axes to draw on, one per layer.
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
        If a statistic or group is not in the table.
    """
    table = table[table["head"] == "all"]
    names = choose("statistics", statistics, table["statistic"].unique(), most=len(LINE_STYLES))
    layers = sorted(table["layer"].unique())
    known = list(table["group"].unique())
    groups = choose("groups", groups, known)
    colors = scanpy_colors(known)

    levels = table.sort_values("time")["noise_level"].to_numpy()
    xlabel = f"diffusion time ({'data → noise' if levels[-1] >= levels[0] else 'noise → data'})"
    axes = panels(len(layers), axs, size=(3.2, 3.0))
    for ax, layer in zip(axes, layers, strict=True):
        of_layer = table[table["layer"] == layer].set_index(["group", "statistic"]).sort_index()
        for group, (name, style) in product(groups, zip(names, LINE_STYLES, strict=False)):
            rows = of_layer.loc[[(group, name)]].sort_values("time")
            ax.plot(rows["time"], rows["value"], style, color=colors[group], marker="o", markersize=3, linewidth=1.5)
        ax.set(title=f"layer {layer}", xlabel=xlabel)
        without_frame(ax)
    common = commonprefix(names)
    shared = names[0] if len(names) == 1 else common[: common.rfind("_") + 1]
    unit = " (nats)" * ("coding_rate" in shared)
    for ax in first_column(axes):
        ax.set_ylabel(shared.strip("_").replace("_", " ") + unit)
    handles = [Line2D([], [], color=colors[group], label=group) for group in groups if len(groups) > 1]
    for name, style in zip(names, LINE_STYLES, strict=False):
        if len(names) > 1:
            handles.append(Line2D([], [], color=ink(0.7), linestyle=style, label=name[len(shared) :]))
    if handles:
        legend_beside(end_of_first_row(axes), handles, handlelength=2.6)
    return finish(axes, show, save)


def coding_rate(table: pd.DataFrame, **kwargs: object) -> list[Axes] | None:
    """Plot the coding rate of tokens in the heads' subspaces before (solid) and after (dashed) each layer's attention.

    This rate, :math:`R^c`, is what attention is designed to lower.

    Parameters
    ----------
    table
        What :func:`~scgen_diffusion.interpret.layer_statistics` returned.
    **kwargs
        See :func:`layer_statistics`.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes, or None if the figure is shown.
    """
    return layer_statistics(table, ["subspace_coding_rate_before", "subspace_coding_rate_after"], **kwargs)


def head_loadings(
    table: pd.DataFrame,
    *,
    n_genes: int = 5,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Plot the genes with the largest loadings of each head, as a heat map of genes by heads.

    Parameters
    ----------
    table
        Genes by heads, from :func:`~scgen_diffusion.interpret.head_loadings`. Relative loadings get a diverging colour
        map.
    n_genes
        Genes per head. A gene that is at the top of several heads is shown once, with the first of them.
    ax
        Axis to draw on.
    show
        Whether to show the figure instead of returning the axes. Default: scanpy's ``settings.autoshow``.
    save
        File to write the figure to.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axis, or None if the figure is shown.
    """
    check_count("n_genes", n_genes)
    genes = list(dict.fromkeys(gene for head in table for gene in table[head].nlargest(n_genes).index))
    (ax,) = panels(1, ax, size=(1.6 + 0.32 * table.shape[1], 1.2 + 0.16 * len(genes)))
    values = table.loc[genes].to_numpy()
    cmap, norm, label = "viridis", Normalize(0, values.max()), "loading"
    if values.min() < 0:  # relative
        cmap, norm, label = "RdBu_r", CenteredNorm(), "loading, relative to\ngene and head ($\\log_2$)"
    image = heat_map(ax, values, genes, list(table), fontsize="x-small", aspect="auto", cmap=cmap, norm=norm)
    ax.figure.colorbar(image, ax=ax, label=label, shrink=0.6)
    ax.set_xlabel("head")
    layers = [head.partition("H")[0] for head in table]
    for place in np.flatnonzero(np.array(layers[1:]) != np.array(layers[:-1])):
        ax.axvline(place + 0.5, color="white", linewidth=2)
    return finish(ax, show, save)
