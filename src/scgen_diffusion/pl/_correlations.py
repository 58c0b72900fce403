"""Correlations between genes in real and synthetic cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import Normalize
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from scgen_diffusion._arguments import check_count
from scgen_diffusion.metrics import correlation, gene_correlations, gene_statistics

from ._cells import labels_of, sides_of
from ._figures import choose, finish, name_both_axes, panels

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

MOST_NAMES = 60  # readable along one axis
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
    axs: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
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
    genes
        Genes to show instead.
    groupby
        Column of `obs`. Correlations are then within groups, after subtracting each group's mean. Default: among all
        cells, where differences between cell types cause most of the correlations.
    layer
        Layer with the counts. Default: ``"counts"`` if it exists, else `X`.
    max_cells
        Larger sets are subsampled at random to this many cells.
    seed
        Seed of the subsampling.
    axs
        Two axes to draw on.
    show
        Whether to show the figure instead of returning the axes. Default: scanpy's ``settings.autoshow``.
    save
        File to write the figure to.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes of real and synthetic cells, or None if the figure is shown.

    Raises
    ------
    KeyError
        If `groupby` is not a column of both `obs`.
    ValueError
        If there are fewer than three genes, or unknown ones.

    See Also
    --------
    scgen_diffusion.metrics.gene_correlation_similarity : The similarity in the title.
    """
    check_count("n_genes", n_genes)
    sides = sides_of(real, synthetic, layer=layer, max_cells=max_cells, seed=seed)
    if genes is None:
        variances = gene_statistics(sides["real"].expression)["variance"].to_numpy()
        places = np.argsort(-variances, kind="stable")[:n_genes]
    else:
        places = real.var_names.get_indexer_for(list(dict.fromkeys(choose("genes", genes, real.var_names))))
    if len(places) < 3:
        msg = f"Correlations need at least 3 genes, but found {len(places)}."
        raise ValueError(msg)
    vectors = []
    for name, side in sides.items():
        labels = None if groupby is None else labels_of(side.cells, groupby, name).to_numpy().astype(str)
        vectors.append(gene_correlations(side.expression.values[:, places].toarray(), labels))
    for name, vector in zip(sides, vectors, strict=True):
        if not vector.any():
            msg = f"`{name}` has no correlations between these genes: none varies{' within groups' * bool(groupby)}."
            raise ValueError(msg)
    matrices = [squareform(vector) for vector in vectors]
    distances = np.maximum(1 - vectors[0], 0)  # rounding puts equal genes a little below zero
    order = leaves_list(linkage(distances, "average", optimal_ordering=True))

    names = list(real.var_names[places[order]])
    limit = max(np.quantile(np.abs(np.concatenate(vectors)), UNCLIPPED_SHARE), 0.05)
    side_length = 1.4 + 0.105 * min(len(names), MOST_NAMES)
    axes = panels(2, axs, size=(side_length + 0.8, side_length))
    for ax, matrix in zip(axes, matrices, strict=True):
        without_diagonal = np.ma.masked_array(matrix[np.ix_(order, order)], np.eye(len(order), dtype=bool))
        image = ax.imshow(without_diagonal, cmap="RdBu_r", norm=Normalize(-limit, limit), interpolation="nearest")
        ax.set_facecolor("0.85")
        name_both_axes(ax, names, names, most=MOST_NAMES, fontsize=6)
        ax.tick_params(length=0)
    axes[0].set_title("real")
    axes[1].set_title(f"synthetic\n(similarity {correlation(*vectors):.2f} in these {len(names)} genes)")
    what = "correlation of genes" if groupby is None else f"correlation of genes\nwithin {groupby}"
    axes[1].figure.colorbar(image, ax=axes, label=what, shrink=0.6, extend="both")
    return finish(axes, show, save)
