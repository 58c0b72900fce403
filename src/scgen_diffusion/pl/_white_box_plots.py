"""Plots of the white-box model: what layers do to tokens, and which genes heads read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import seaborn as sns

from scgen_diffusion._arguments import check_count

from ._figures import choose, finish, panels, scanpy_colors

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes


def layer_statistics(
    table: pd.DataFrame,
    statistics: str | Sequence[str] = "subspace_coding_rate_before",
    *,
    groups: Sequence[str] | None = None,
    axs: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
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
    names = choose("statistics", statistics, table["statistic"].unique())
    colors = scanpy_colors(list(table["group"].unique()))
    groups = choose("groups", groups, colors)
    ylabel = (names[0].replace("_", " ") if len(names) == 1 else "value") + " (nats)" * ("coding_rate" in names[0])
    layers = sorted(table["layer"].unique())
    axes = panels(len(layers), axs, size=(4.2, 3.0))
    look = {"x": "time", "y": "value", "errorbar": None, "marker": "o", "markersize": 4, "markeredgewidth": 0}
    if len(groups) > 1 or len(names) == 1:
        look |= {"hue": "group", "hue_order": groups, "palette": colors}
    if len(names) > 1:
        look |= {"style": "statistic", "style_order": names}
    shown = table[table["statistic"].isin(names) & table["group"].isin(groups)]
    for ax, layer in zip(axes, layers, strict=True):
        sns.lineplot(shown[shown["layer"] == layer], **look, legend=ax is axes[-1], ax=ax)
        ax.set(title=f"layer {layer}", xlabel="diffusion time (data → noise)", ylabel=ylabel)
        sns.despine(ax=ax)
    sns.move_legend(axes[-1], "center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize="small")
    return finish(axes, show)


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

    Returns
    -------
    matplotlib.axes.Axes or None
        The axis, or None if the figure is shown.
    """
    check_count("n_genes", n_genes)
    genes = list(dict.fromkeys(gene for head in table for gene in table[head].nlargest(n_genes).index))
    (ax,) = panels(1, ax, size=(1.6 + 0.32 * table.shape[1], 1.2 + 0.16 * len(genes)))
    shown = table.loc[genes]
    look = {"cmap": "viridis", "vmin": 0, "cbar_kws": {"label": "loading", "shrink": 0.6}}
    if shown.min(axis=None) < 0:  # relative
        largest, label = shown.abs().max(axis=None), "loading, relative to\ngene and head ($\\log_2$)"
        look = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest, "cbar_kws": {"label": label, "shrink": 0.6}}
    ax.tick_params(labelsize="x-small")
    sns.heatmap(shown, ax=ax, **look)
    ax.set_xlabel("head")
    layers = [head.partition("H")[0] for head in table]
    for place in np.flatnonzero(np.array(layers[1:]) != np.array(layers[:-1])):
        ax.axvline(place + 1, color="white", linewidth=2)
    return finish(ax, show)
