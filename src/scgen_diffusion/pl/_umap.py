"""Real and synthetic cells in one UMAP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba_array
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from scgen_diffusion.data import known_names
from scgen_diffusion.metrics import ComparisonSpace, align_genes, expression_of

from ._figures import chosen, finish, panels
from ._pairs import (
    SOURCES,
    Side,
    drawn,
    label_colors,
    label_order,
    labels_of,
    legend_beside,
    mixed_scatter,
    pair_of,
)
from ._projection import plane_of

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

TITLES = ("real", "synthetic", "both")


@dataclass(frozen=True)
class Coloring:
    """Colours of the cells of both sets, and what they mean."""

    real: NDArray  # (cells, 4)
    synthetic: NDArray
    labels: dict[str, str]
    norm: Normalize | None = None


def umap(
    real: AnnData,
    synthetic: AnnData,
    *,
    color: str | None = None,
    train: AnnData | None = None,
    fit: Literal["real", "both"] = "real",
    layer: str | None = None,
    n_neighbors: int = 15,
    min_dist: float = 0.5,
    max_cells: int = 10_000,
    palette: Mapping[str, str] | Sequence[str] | None = None,
    size: float | None = None,
    seed: int = 0,
    axs: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Plot real cells, synthetic cells, and both together, in one UMAP.

    Genes and principal components are those of real cells (:class:`~scgen_diffusion.metrics.ComparisonSpace`). UMAP is fitted to
    real cells, and every cell, real or synthetic, is placed at the (geometric) median of the five real cells nearest to it in
    principal components, itself not counted. Both sets are thus treated alike. (UMAP's own ``transform`` would draw rings around
    the islands of the cells that it was fitted to, even with held-out real cells.)

    What it cannot show: a cell that is like no real cell is placed among real cells, too. With ``fit="both"``, such cells
    form islands of their own; but synthetic cells then decide about the picture.

    Parameters
    ----------
    real, synthetic
        Cells with the same genes: counts, or `log1p` values where ``uns["log1p"]`` says so. They are not changed.
    color
        Column of `obs`, or a gene. Default: none.
    train
        Real cells to fit UMAP and principal components to; default: `real`. Give the training cells if `real` are held-out ones.
    fit
        Fit UMAP to real cells, or to both sets together.
    layer
        Layer with the counts. Default: ``"counts"`` if there is one, else `X`.
    n_neighbors, min_dist
        See :func:`scanpy.pp.neighbors` and :func:`scanpy.tl.umap`.
    max_cells
        A random part of each set, where it has more.
    palette
        Colour of each label, or colours in their order. Default: ``real.uns[f"{color}_colors"]``, else scanpy's.
    size
        Size of the points.
    seed
        Decides the part of the cells, and UMAP.
    axs
        Three axes to draw on.
    show
        Whether to show the figure; default: scanpy's ``settings.autoshow``.
    save
        File to write the figure to.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes of real, synthetic and both, if they are not shown.

    Raises
    ------
    KeyError
        If `color` is no column of both and no gene.
    ValueError
        If genes are absent, values are no expression, or the palette lacks labels.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> adata = scgd.datasets.pbmc68k_reduced()
    >>> axes = scgd.pl.umap(adata[::2], adata[1::2], color="cell_type", show=False)
    """
    chosen("fit", [fit], ["real", "both"])
    a, b = pair_of(real, synthetic, layer=layer, max_cells=max_cells, seed=seed)
    coloring = None if color is None else coloring_of(a, b, color, palette)
    reference = a.expression
    if train is not None:
        train = align_genes(drawn(train, "train", max_cells, seed), real.var_names, name="train")
        reference = expression_of(train, layer=layer if layer in train.layers else None, name="train")
    axes = panels(3, axs, size=(4.0, 3.4))
    space = ComparisonSpace.fit(reference, seed=seed)
    values = [space.project(expression) for expression in (a.expression, b.expression)]
    fitted = None if train is None else space.project(reference)
    points = plane_of(*values, fitted, fit=fit, n_neighbors=n_neighbors, min_dist=min_dist, seed=seed)
    size = float(np.clip(16_000 / sum(map(len, points)), 2, 18)) if size is None else size
    draw_sets(axes, points, coloring, size)
    explain(axes, coloring, color)
    return finish(axes, show, save)


def coloring_of(real: Side, synthetic: Side, color: str, palette: Mapping[str, str] | Sequence[str] | None) -> Coloring:
    """Colour both sets by a column of `obs` or a gene, on one scale."""
    if not isinstance(color, str):
        msg = f"`color` must be the name of one column of `obs` or of a gene, but found {color!r}."
        raise TypeError(msg)
    sides = {"real": real, "synthetic": synthetic}
    lacking = [name for name, side in sides.items() if color not in side.cells.obs]
    if len(lacking) == 2 and color in real.cells.var_names:
        gene = real.cells.var_names.get_loc(color)
        return on_a_scale(*(side.expression.values[:, [gene]].toarray().ravel() for side in sides.values()))
    if lacking:
        known = list(sides[lacking[0]].cells.obs.columns)
        msg = f"`color` {color!r} is no column of `{lacking[0]}.obs` and no gene. {known_names(color, known)}"
        raise KeyError(msg)
    columns = [side.cells.obs[color] for side in sides.values()]
    if all(is_numeric_dtype(column) and not is_bool_dtype(column) for column in columns):
        return on_a_scale(*(column.to_numpy(dtype=float) for column in columns))
    labels = [labels_of(side.cells, color, name) for name, side in sides.items()]
    colors = label_colors(real.cells, color, label_order(real.cells, color, *labels), palette)
    return Coloring(*(to_rgba_array([colors[label] for label in series]) for series in labels), colors)


def on_a_scale(real: NDArray, synthetic: NDArray) -> Coloring:
    """Colour numbers of both sets from the smallest to the largest of both."""
    both = np.concatenate([real, synthetic])
    scale = ScalarMappable(Normalize(np.nanmin(both), np.nanmax(both)), "viridis")
    return Coloring(scale.to_rgba(real), scale.to_rgba(synthetic), {}, scale.norm)


def draw_sets(axes: Sequence[Axes], points: Sequence[NDArray], coloring: Coloring | None, size: float) -> None:
    """Draw each set, and both, within the same limits."""
    sources = list(SOURCES.values())
    colors = sources if coloring is None else [coloring.real, coloring.synthetic]
    mixed_scatter(axes[0], points[:1], colors[:1], size=size)
    mixed_scatter(axes[1], points[1:], colors[1:], size=size)
    mixed_scatter(axes[2], points, sources, size=size)
    both = np.concatenate(points)
    low, high = both.min(axis=0), both.max(axis=0)
    margin = 0.05 * np.maximum(high - low, 1e-6)
    counts = [len(points[0]), len(points[1]), len(both)]
    for ax, title, count in zip(axes, TITLES, counts, strict=True):
        ax.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
        ax.set(xticks=[], yticks=[], xlabel="UMAP 1", title=f"{title} ({count:,} cells)")
    axes[0].set_ylabel("UMAP 2")


def explain(axes: Sequence[Axes], coloring: Coloring | None, color: str | None) -> None:
    """Say beside the last panel what the colours mean, or, of numbers, beside the middle one."""
    if coloring is None:
        return legend_beside(axes[2], {"": SOURCES})
    if coloring.norm is None:
        return legend_beside(axes[2], {color: coloring.labels, "both": SOURCES})
    scale = ScalarMappable(coloring.norm, "viridis")
    axes[1].figure.colorbar(scale, ax=axes[1], label=color, shrink=0.7)
    return legend_beside(axes[2], {"": SOURCES})
