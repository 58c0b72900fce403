"""Total counts of real and synthetic cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._figures import finish, one_axis, plain_numbers
from ._pairs import SOURCES, label_order, labels_of, legend_beside, pair_of, without_frame

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
TOTAL = "total counts per cell"


def library_size(
    real: AnnData,
    synthetic: AnnData,
    *,
    groupby: str | None = None,
    layer: str | None = None,
    max_cells: int = 20_000,
    seed: int = 0,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Plot how total counts are distributed over real and synthetic cells, on a logarithmic axis.

    All together: the share of cells in each bin, with lines at the medians. By group: boxes from the first to the third quartile
    with a thick line at the median, and thin lines from the 5th to the 95th percentile. Cells without any count cannot be drawn; the
    legend says so.

    Parameters
    ----------
    real, synthetic
        Counts of the same genes. They are not changed.
    groupby
        Column of `obs`. Default: all cells together.
    layer
        Layer with the counts. Default: ``"counts"`` if there is one, else `X`.
    max_cells
        A random part of each set, where it has more.
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

    Raises
    ------
    KeyError
        If `groupby` is no column of both.
    ValueError
        If a set came log-normalised, or has no counts at all.

    See Also
    --------
    scgen_diffusion.metrics.library_size_ks : The figure for it.
    """
    sides = dict(zip(SOURCES, pair_of(real, synthetic, layer=layer, max_cells=max_cells, seed=seed), strict=True))
    sizes = {name: checked_sizes(side.expression.library_sizes, name) for name, side in sides.items()}
    if groupby is None:
        ax = one_axis(ax, size=(4.6, 3.6))
        draw_histograms(ax, sizes)
    else:
        labels = {name: labels_of(side.cells, groupby, name).to_numpy() for name, side in sides.items()}
        order = label_order(real, groupby, *labels.values())
        ax = one_axis(ax, size=(7.4, 1.2 + 0.36 * len(order)))
        draw_boxes(ax, sizes, labels, order)
    without_frame(ax)
    legend_beside(ax, {"": {size_label(name, values): SOURCES[name] for name, values in sizes.items()}})
    return finish(ax, show, save)


def checked_sizes(sizes: NDArray | None, name: str) -> NDArray:
    """Return the total counts.

    Raises
    ------
    ValueError
        If there are none.
    """
    if sizes is None:
        msg = f"`{name}` holds log-normalised values, which have lost the total counts; name the `layer` with counts."
        raise ValueError(msg)
    if not sizes.any():
        msg = f"`{name}` has no counts at all."
        raise ValueError(msg)
    return sizes


def draw_histograms(ax: Axes, sizes: Mapping[str, NDArray]) -> None:
    """Draw the shares of cells in bins that both sets share, and the medians."""
    positive = {name: values[values > 0] for name, values in sizes.items()}
    both = np.concatenate(list(positive.values()))
    low, high = both.min() / 1.02, both.max() * 1.02
    bins = np.geomspace(low, high, n_bins(min(map(len, positive.values()))) + 1)
    for (name, values), style in zip(positive.items(), ("-", "--"), strict=True):
        weights = np.full(len(values), 1 / len(values))
        ax.hist(values, bins, weights=weights, histtype="stepfilled", color=SOURCES[name], alpha=0.25)
        ax.hist(values, bins, weights=weights, histtype="step", color=SOURCES[name], linewidth=1.5)
        ax.axvline(np.median(values), color=SOURCES[name], linestyle=style, linewidth=1.5)
    ax.set(xscale="log", xlim=(low / 1.05, high * 1.05), xlabel=TOTAL, ylabel="share of cells")
    ax.set_title("Library size, medians as lines")
    plain_numbers(ax.xaxis)


def n_bins(n_cells: int) -> int:
    """Return how many bins as many cells can fill (Rice's rule)."""
    return int(np.clip(2 * n_cells ** (1 / 3), 8, 60))


def draw_boxes(ax: Axes, sizes: Mapping[str, NDArray], labels: Mapping[str, NDArray], order: Sequence[str]) -> None:
    """Draw for every label a box of real above one of synthetic cells, if there are any, the first label on top."""
    for shift, (name, values) in zip((-0.19, 0.19), sizes.items(), strict=True):
        groups = [values[(labels[name] == label) & (values > 0)] for label in order]
        places = [place + shift for place, group in enumerate(groups) if len(group)]
        shares = np.array([np.quantile(group, QUANTILES) for group in groups if len(group)]).reshape(-1, 5).T
        ax.hlines(places, shares[0], shares[4], color="black", linewidth=0.8, zorder=1)
        box = {"height": 0.34, "facecolor": SOURCES[name], "edgecolor": "black", "linewidth": 0.8}
        ax.barh(places, shares[3] - shares[1], left=shares[1], zorder=2, **box)
        ax.vlines(shares[2], np.subtract(places, 0.19), np.add(places, 0.19), color="black", linewidth=2.2, zorder=3)
    ax.set(xscale="log", xlabel=TOTAL, ylim=(len(order) - 0.4, -0.6), title="Library size")
    ax.set_yticks(range(len(order)), order)
    plain_numbers(ax.xaxis)


def size_label(name: str, sizes: NDArray) -> str:
    """Name a set and its median, and say how many cells are not drawn."""
    text = f"{name}\n(median {np.median(sizes):,.0f})"
    n_empty = int((sizes == 0).sum())
    return f"{text}\n{n_empty:,} without counts" if n_empty else text
