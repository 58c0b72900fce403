"""Plots of the genes that heads read, and of attention between patches of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.colors import CenteredNorm, Normalize

from ._figures import chosen, finish, one_axis, written

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from matplotlib.axes import Axes


def head_loadings(
    data: pd.DataFrame | AnnData,
    *,
    n_genes: int = 5,
    heads: Sequence[str] | None = None,
    key: str = "WBDIT",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Plot the genes with the largest loadings of each head, as a heat map of genes by heads.

    Parameters
    ----------
    data
        Genes by heads, of :func:`~scgen_diffusion.interpret.head_loadings`; or the AnnData, of which the specificities
        are taken. Relative loadings get a diverging colour map.
    n_genes
        Genes per head. A gene that is on top of several heads is shown once, at the first of them.
    heads
        Which of them; default: all.
    key
        Name in ``varm``, for AnnData.
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
    ValueError
        For unknown heads.
    KeyError
        If the AnnData has no loadings.
    """
    table = written(data, key, "varm", f"{key}_specificity") if isinstance(data, AnnData) else data
    table = table[chosen("heads", heads, list(table))]
    genes = list(dict.fromkeys(gene for head in table for gene in table[head].nlargest(n_genes).index))
    is_relative = bool((table < 0).any(axis=None))
    ax = one_axis(ax, size=(1.6 + 0.32 * table.shape[1], 1.2 + 0.16 * len(genes)))
    values = table.loc[genes].to_numpy()
    norm = CenteredNorm() if is_relative else Normalize(0, values.max())
    image = ax.imshow(values, aspect="auto", cmap="RdBu_r" if is_relative else "viridis", norm=norm)
    ax.set_xticks(range(table.shape[1]), list(table), rotation=90, fontsize="small")
    ax.set_yticks(range(len(genes)), genes, fontsize="x-small")
    ax.set_xlabel("head")
    layers = [head.partition("H")[0] for head in table]
    for place in np.flatnonzero(np.array(layers[1:]) != np.array(layers[:-1])):
        ax.axvline(place + 0.5, color="white", linewidth=2)
    label = "loading, relative to\ngene and head ($\\log_2$)" if is_relative else "loading"
    ax.figure.colorbar(image, ax=ax, label=label, shrink=0.6)
    return finish(ax, show, save)


def patch_attention(
    data: pd.DataFrame | AnnData,
    head: str,
    *,
    group: str = "all",
    relative: bool = True,
    key: str = "WBDIT",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Plot how much patches of genes attend to each other in one head.

    Parameters
    ----------
    data
        Table of :func:`~scgen_diffusion.interpret.patch_attention`, or the AnnData with it.
    head
        Such as ``"L0H2"``.
    group
        Group of cells.
    relative
        Whether to colour by the doublings over even attention, or by the attention itself.
    key
        Name in ``uns``, for AnnData.
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
    ValueError
        For unknown heads and groups.
    KeyError
        If the AnnData has no attention.
    """
    table = attention_table(data, key)
    chosen("head", [head], list(table.index.unique("head")))
    chosen("group", [group], list(table.index.unique("group")))
    weights = table.loc[(group, head)]
    values = weights.to_numpy()
    if relative:
        values = np.log2(np.maximum(values * len(values), 2.0**-10))
    ax = one_axis(ax, size=(4.4, 3.6))
    norm = CenteredNorm() if relative else Normalize(0, values.max())
    image = ax.imshow(values, cmap="RdBu_r" if relative else "viridis", norm=norm)
    step = -(-len(weights) // 24)  # as many names as can be read
    for axis, names in ((ax.xaxis, weights.columns), (ax.yaxis, weights.index)):
        axis.set_ticks(range(0, len(weights), step), list(names[::step]), fontsize="x-small")
    ax.tick_params(axis="x", rotation=90)
    ax.set(xlabel="attended token", ylabel="attending token", title=head if group == "all" else f"{head}, {group}")
    label = "attention over even ($\\log_2$)" if relative else "attention"
    ax.figure.colorbar(image, ax=ax, label=label, shrink=0.8)
    return finish(ax, show, save)


def attention_table(data: pd.DataFrame | AnnData, key: str) -> pd.DataFrame:
    """Return the table itself, or make it of what is in the AnnData."""
    if not isinstance(data, AnnData):
        return data
    stored = written(data, key, "uns", key)
    levels = [list(stored[name]) for name in ("groups", "heads", "tokens")]
    index = pd.MultiIndex.from_product(levels, names=["group", "head", "token"])
    return pd.DataFrame(stored["patch_attention"].reshape(len(index), -1), index=index, columns=levels[-1])
