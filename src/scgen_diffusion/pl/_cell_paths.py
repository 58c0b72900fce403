"""The ways of followed cells, on a UMAP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgba_array

from scgen_diffusion._arguments import check_count, known_names

from ._cells import check_is_anndata, label_colors, label_order, labels_of
from ._figures import (
    end_of_first_row,
    explain_colors,
    finish,
    first_column,
    ink,
    limits_around,
    mixed_scatter,
    panels,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

FAINT = 0.25  # opacity of the cells behind the paths


def cell_paths(
    adata: AnnData,
    paths: pd.DataFrame,
    *,
    color: str,
    basis: str = "X_umap",
    groupby: str | None = None,
    max_paths: int = 40,
    palette: Mapping[str, str] | Sequence[str] | None = None,
    size: float | None = None,
    seed: int = 0,
    axs: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Plot the ways of followed cells through all cells, as arrows that have the colour of where they end.

    Parameters
    ----------
    adata
        All cells, those that are followed among them, with coordinates in ``obsm``.
    paths
        Second result of :meth:`~scgen_diffusion.model.SCLDM.follow_cells`.
    color
        Column of ``adata.obs`` with labels, such as cell types.
    basis
        Array of ``obsm`` whose first two columns are the coordinates.
    groupby
        Column of ``adata.obs`` with labels; the followed cells of each label get a panel of their own. Default: one
        panel.
    max_paths
        Largest number of paths in a panel. If there are more, a random subset is drawn.
    palette
        Colour of each label, or colours in label order. Default: ``adata.uns[f"{color}_colors"]``, else scanpy's.
    size
        Size of the points.
    seed
        Seed of the subset.
    axs
        Axes to draw on, one per panel.
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
    KeyError
        If `adata` lacks the coordinates, a column, or cells of the paths.
    ValueError
        If names of cells occur twice, or coordinates are not finite.

    Examples
    --------
    >>> fates, paths = model.follow_cells(
    ...     early, {"minutes": 500}, "cell_type"
    ... )  # doctest: +SKIP
    >>> scgd.pl.cell_paths(adata, paths, color="cell_type")  # doctest: +SKIP
    """
    check_is_anndata(adata, "adata")
    check_count("max_paths", max_paths)
    if basis not in adata.obsm:
        advice = "sc.pp.neighbors and sc.tl.umap make one." if basis == "X_umap" else ""
        msg = f"`adata.obsm` has no {basis!r}. {known_names(basis, list(adata.obsm))} {advice}".rstrip()
        raise KeyError(msg)
    points = np.asarray(adata.obsm[basis])[:, :2]
    if not (adata.obs_names.is_unique and np.isfinite(points).all()):
        msg = f"`adata` must have unique `obs_names`, and coordinates of every cell in its `obsm[{basis!r}]`."
        raise ValueError(msg)
    ways = np.column_stack([paths.index.to_numpy(dtype=object), paths.to_numpy(dtype=object)])
    on_way = pd.notna(ways)
    rows = np.full(ways.shape, -1)
    rows[on_way] = adata.obs_names.get_indexer(ways[on_way])
    if (rows[on_way] < 0).any():
        lacking = ways[on_way][rows[on_way] < 0]
        msg = (
            f"`adata` lacks {len(set(lacking))} cells of `paths`, such as {lacking[0]!r}; it must have the followed "
            "cells and those of the model."
        )
        raise KeyError(msg)
    labels = labels_of(adata, color, "adata")
    colors = label_colors(adata, color, label_order(adata, color, labels), palette)
    groups = {"": np.arange(len(rows))}
    if groupby is not None:
        of_starts = labels_of(adata, groupby, "adata").to_numpy()[rows[:, 0]]
        order = label_order(adata, groupby, pd.Series(of_starts))
        groups = {f"from {label}": np.flatnonzero(of_starts == label) for label in order}

    rng = np.random.default_rng(seed)
    low, high = limits_around(points)
    size = float(np.clip(16_000 / len(points), 2, 18)) if size is None else size
    axes = panels(len(groups), axs, size=(4.2, 3.8))
    for ax, (title, members) in zip(axes, groups.items(), strict=True):
        faint = to_rgba_array([colors[label] for label in labels], alpha=FAINT)
        mixed_scatter(ax, [points], [faint], size=size)
        shown = rng.permutation(members)[:max_paths]
        for way in rows[shown]:
            xy = points[way[way >= 0]]
            end = colors[labels.iloc[way[-1]]]
            ax.plot(*xy[:-1].T, color=end, linewidth=0.9, alpha=0.8)
            arrow = {"arrowstyle": "-|>", "color": end, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0, "alpha": 0.8}
            ax.annotate("", xy[-1], xy[-2], arrowprops=arrow)
        ax.scatter(*points[rows[shown, 0]].T, s=2 * size, color=ink(), linewidths=0, zorder=3)
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[], title=title)
        ax.set_xlabel(f"{basis.removeprefix('X_').upper()} 1")
    for ax in first_column(axes):
        ax.set_ylabel(f"{basis.removeprefix('X_').upper()} 2")
    explain_colors(end_of_first_row(axes), {color: colors, "": {"followed cells": ink()}})
    return finish(axes, show, save)
