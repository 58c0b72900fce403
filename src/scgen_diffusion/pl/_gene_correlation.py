"""Which genes go together, in real and in synthetic cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import Normalize
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from scgen_diffusion.metrics import correlation, gene_correlations, gene_statistics

from ._figures import chosen, finish, panels
from ._pairs import SOURCES, Side, labels_of, pair_of

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

MOST_NAMES = 60  # that can be read along an axis
UNCLIPPED_SHARE = 0.99


def gene_correlation(
    real: AnnData,
    synthetic: AnnData,
    *,
    n_genes: int = 50,
    genes: Sequence[str] | None = None,
    groupby: str | None = None,
    layer: str | None = None,
    max_cells: int = 20_000,
    seed: int = 0,
    axs: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> list[Axes] | None:
    """Plot the correlations between genes, in real beside synthetic cells, as two heat maps on one scale.

    Genes are ordered by average-linkage clustering of the real correlations. The title of the synthetic ones says how similar
    they are: Pearson's correlation of the correlations. One per cent of them, the strongest, may be beyond the scale.

    Parameters
    ----------
    real, synthetic
        Cells with the same genes: counts, or `log1p` values where ``uns["log1p"]`` says so. They are not changed.
    n_genes
        How many genes, those that vary most in real cells (variance of log-normalised expression).
    genes
        These genes instead.
    groupby
        Column of `obs`. Correlations are then those within groups: each group's mean is taken away. Default: among all cells,
        where differences between cell types make most of the correlations.
    layer
        Layer with the counts. Default: ``"counts"`` if there is one, else `X`.
    max_cells
        A random part of each set, where it has more.
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
        The axes of real and synthetic cells, if they are not shown.

    Raises
    ------
    KeyError
        If `groupby` is no column of both.
    ValueError
        If there are fewer than three genes, or unknown ones.

    See Also
    --------
    scgen_diffusion.metrics.gene_correlation_similarity : The figure for it.
    """
    sides = pair_of(real, synthetic, layer=layer, max_cells=max_cells, seed=seed)
    places = gene_places(sides[0], genes, n_genes)
    vectors = [correlations_of(side, places, groupby, name) for name, side in zip(SOURCES, sides, strict=True)]
    matrices = [squareform(vector) for vector in vectors]
    order = cluster_order(matrices[0])
    names = list(real.var_names[places[order]])
    limit = max(np.quantile(np.abs(np.concatenate(vectors)), UNCLIPPED_SHARE), 0.05)
    side_length = 1.4 + 0.105 * min(len(names), MOST_NAMES)
    axes = panels(2, axs, size=(side_length + 0.8, side_length))
    for ax, matrix in zip(axes, matrices, strict=True):
        image = draw_matrix(ax, matrix[np.ix_(order, order)], names, limit)
    axes[0].set_title("real")
    axes[1].set_title(f"synthetic (similarity {correlation(*vectors):.2f})")
    what = "correlation of genes" if groupby is None else f"correlation of genes\nwithin {groupby}"
    axes[1].figure.colorbar(image, ax=axes, label=what, shrink=0.6, extend="both")
    return finish(axes, show, save)


def gene_places(real: Side, genes: Sequence[str] | None, n_genes: int) -> NDArray[np.intp]:
    """Return the positions of the genes to draw.

    Raises
    ------
    ValueError
        If there are fewer than three, or unknown ones.
    """
    if genes is not None:
        places = real.cells.var_names.get_indexer(chosen("genes", genes, real.cells.var_names))
    else:
        variances = gene_statistics(real.expression)["variance"].to_numpy()
        places = np.argsort(-variances, kind="stable")[:n_genes]
    if len(places) < 3:
        msg = f"Correlations need at least 3 genes, but found {len(places)}."
        raise ValueError(msg)
    return places


def correlations_of(side: Side, places: NDArray[np.intp], groupby: str | None, name: str) -> NDArray[np.float64]:
    """Return the correlations of every pair of genes."""
    labels = None if groupby is None else labels_of(side.cells, groupby, name).to_numpy().astype(str)
    return gene_correlations(side.expression.values[:, places].toarray(), labels)


def cluster_order(matrix: NDArray) -> NDArray[np.intp]:
    """Return the genes such that those that go together are neighbours."""
    distances = squareform(1 - matrix, checks=False)
    return leaves_list(linkage(distances, "average", optimal_ordering=True))


def draw_matrix(ax: Axes, matrix: NDArray, names: Sequence[str], limit: float) -> object:
    """Draw a heat map without its diagonal, with as many names as can be read."""
    off_diagonal = np.ma.masked_array(matrix, np.eye(len(matrix), dtype=bool))
    image = ax.imshow(off_diagonal, cmap="RdBu_r", norm=Normalize(-limit, limit), interpolation="nearest")
    ax.set_facecolor("0.85")
    step = -(-len(names) // MOST_NAMES)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(range(0, len(names), step), names[::step], fontsize=6)
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(length=0)
    return image
