"""Real and synthetic cells in a UMAP."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba_array
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from scgen_diffusion._arguments import as_list, check_count
from scgen_diffusion.data import as_labels, check_is_anndata, make_indexable, obs_column
from scgen_diffusion.metrics import ComparisonSpace, Expression

from ._figures import (
    MISSING_COLOR,
    SOURCES,
    explain_colors,
    finish,
    label_colors,
    label_order,
    mixed_scatter,
    panels,
    sides_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from ._figures import Side


def umap(
    real: AnnData,
    synthetic: AnnData,
    *,
    color: str | Sequence[str] | None = None,
    layer: str | None = None,
    max_cells: int = 10_000,
    seed: int = 0,
    axs: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
) -> list[Axes] | None:
    """Plot real cells, synthetic cells, and both together, in one UMAP.

    The UMAP is made of equal numbers of both, in their common principal components. Cells unlike any real cell lie
    apart from the real ones.

    Parameters
    ----------
    real, synthetic
        Cells with the same genes: counts, or `log1p` values with ``uns["log1p"]`` set. They are not changed.
    color
        Column of `obs`, or a gene; or several, each with a row of panels. Default: none. Labels have the colours of
        ``real.uns[f"{color}_colors"]``, else scanpy's. Missing labels and numbers are grey.
    layer
        Layer with the counts. Default: ``"counts"`` if it exists, else `X`.
    max_cells
        Most cells to draw of each set. Of the larger set, as many as of the smaller one are drawn at random.
    seed
        Seed of the subsampling and of UMAP.
    axs
        Axes to draw on, three for each colour.
    show
        Whether to show the figure instead of returning the axes. Default: scanpy's ``settings.autoshow``.

    Returns
    -------
    list of matplotlib.axes.Axes or None
        The axes of real, synthetic and both, of each colour in turn, or None if the figure is shown.

    Raises
    ------
    KeyError
        If `color` is neither a column of both `obs` nor a gene.
    ValueError
        If genes are missing, values are not expression, there are too few cells, or a column
        of numbers has none.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> adata = scgd.datasets.pbmc68k_reduced()
    >>> axes = scgd.pl.umap(adata[::2], adata[1::2], color="cell_type", show=False)
    """
    for name, cells in {"real": real, "synthetic": synthetic}.items():
        check_is_anndata(cells, name)
    n_cells = min(real.n_obs, synthetic.n_obs, check_count("max_cells", max_cells, least=2))
    drawn = (np.random.default_rng(seed).permutation(cells.n_obs)[:n_cells] for cells in (real, synthetic))
    parts = (make_indexable(cells)[np.sort(rows)] for cells, rows in zip((real, synthetic), drawn, strict=True))
    sides = sides_of(*parts, layer)
    names = as_list(color) or [None]
    looks = [look_of(name, sides) for name in names]
    expressions = [side.expression for side in sides.values()]
    axes = panels(3 * len(names), axs, size=(4.0, 3.4), n_columns=3)

    space = ComparisonSpace.fit(Expression(sp.vstack([part.values for part in expressions]), None), seed=seed)
    both = umap_of(np.concatenate([space.project(expression) for expression in expressions]), seed=seed)
    points = np.split(both, [sides["real"].cells.n_obs])
    size = float(np.clip(16_000 / len(both), 2, 18))
    counts = {"real": len(points[0]), "synthetic": len(points[1]), "both": len(both)}
    rows = [axes[start : start + 3] for start in range(0, len(axes), 3)]
    for row, name, (colors, legend, scale) in zip(rows, names, looks, strict=True):
        mixed_scatter(row[0], points[:1], colors[:1], size=size)
        mixed_scatter(row[1], points[1:], colors[1:], size=size)
        mixed_scatter(row[2], points, list(SOURCES.values()), size=size)
        for ax, (title, count) in zip(row, counts.items(), strict=True):
            ax.set(xlim=row[2].get_xlim(), ylim=row[2].get_ylim(), xticks=[], yticks=[])
            ax.set(xlabel="UMAP 1", title=f"{title} ({count:,} cells)")
        row[0].set_ylabel("UMAP 2")
        explain_colors(row[2], legend | SOURCES, title=name if legend else None)
        if scale is not None:
            row[1].figure.colorbar(scale, ax=row[1], label=name, shrink=0.7)
    return finish(axes, show)


def look_of(
    color: str | None, sides: Mapping[str, Side]
) -> tuple[Sequence[Any], dict[str, Any], ScalarMappable | None]:
    """Return the colours of both sets by a column of both `obs` or a gene, a legend, and a scale of numbers."""
    if color is None:
        return list(SOURCES.values()), {}, None
    real, genes = sides["real"].cells, sides["real"].cells.var_names
    if color in genes and color not in real.obs:
        gene = genes.get_indexer([color])
        return number_colors(color, [side.expression.values[:, gene].toarray().ravel() for side in sides.values()])
    columns = [obs_column(side.cells, color, name) for name, side in sides.items()]
    if all(is_numeric_dtype(column) and not is_bool_dtype(column) for column in columns):
        return number_colors(color, [column.astype(float).to_numpy() for column in columns])
    labels = [as_labels(column) for column in columns]
    legend = label_colors(real, color, label_order(sides, color))
    return [to_rgba_array([legend[label] for label in series]) for series in labels], legend, None


def number_colors(
    color: str, numbers: Sequence[NDArray]
) -> tuple[list[NDArray], dict[str, Any], ScalarMappable | None]:
    """Return the colours of numbers on one scale; missing ones are grey."""
    known = np.concatenate(numbers)
    if not (known := known[np.isfinite(known)]).size:
        msg = f"`color` {color!r} has no number; all are missing."
        raise ValueError(msg)
    cmap = plt.get_cmap("viridis").with_extremes(bad=MISSING_COLOR)
    scale = ScalarMappable(Normalize(known.min(), known.max()), cmap)
    return [scale.to_rgba(part) for part in numbers], {}, scale


def umap_of(values: NDArray, *, seed: int) -> NDArray[np.float32]:
    """Return scanpy's UMAP, `(cells, 2)`."""
    cells = AnnData(np.ascontiguousarray(values, dtype=np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap-learn warns about seeds and threads
        sc.pp.neighbors(cells, n_neighbors=min(15, len(values) - 1), use_rep="X", random_state=seed)
        sc.tl.umap(cells, random_state=seed)
    return cells.obsm["X_umap"]
