"""What all plots share: axes, legends, saving and showing; matching cells, their labels and colours."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from matplotlib.colors import to_rgba, to_rgba_array
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from scgen_diffusion._arguments import as_list, check_count, known_names
from scgen_diffusion.data import NO_LABEL, as_labels, check_is_anndata, make_indexable, obs_column
from scgen_diffusion.metrics import Expression, align_genes, expression_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from anndata import AnnData
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray

#: Grey, which no label palette uses, and Okabe and Ito's vermilion: distinct for everybody, but not in grey print.
SOURCES = {"real": "#6e6e6e", "synthetic": "#D55E00"}
#: Okabe and Ito's colours, ordered so that neighbours also differ in lightness.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
SIGNS = {"lower": "↓", "higher": "↑", "real": "="}
REAL_LABEL = "real cells\nagainst real cells"
OURS = "scgen_diffusion"  # marks figures that were made here, which may be widened
N_COLUMNS = 4
MOST_LABELS = 100  # of a picture; larger ones are unreadable and take gigabytes
MOST_FOR_ONE_TWO_FIVE = 50  # if an axis spans a larger factor, its numbers would overlap
MOST_NAMED = 60  # rows or columns of a heat map, whose names would overlap otherwise
MOST_VECTORS = 2_000  # with more points, a vector graphic would be too large

MISSING_COLOR = "lightgray"
LEAST_OF_LABEL = 50  # cells that subsampling leaves of a label
ROWS_PER_INCH = 7  # of a legend, beside an axis that has no room for title and labels yet


def panels(
    n: int,
    axs: Axes | Sequence[Axes] | None,
    *,
    size: tuple[float, float],
    sharey: bool = True,
    n_columns: int = N_COLUMNS,
) -> list[Axes]:
    """Return the given axes, or new ones in rows, with a common y axis or separate ones.

    Raises
    ------
    ValueError
        If the number of given axes is not that of the panels.
    """
    if axs is not None:
        given = list(np.ravel(axs))  # also one axis, or a grid
        if len(given) != n:
            msg = f"`axs` must hold one axis per panel, {n}, but found {len(given)}."
            raise ValueError(msg)
        return given
    n_columns, n_rows = min(n, n_columns), -(-n // n_columns)
    figsize = (n_columns * size[0], n_rows * size[1])
    figure, grid = plt.subplots(n_rows, n_columns, figsize=figsize, sharey=sharey, squeeze=False, layout="constrained")
    figure.set_gid(OURS)
    for ax in grid.flat[n:]:
        ax.remove()
    return list(grid.flat[:n])


def first_column(axes: Sequence[Axes]) -> list[Axes]:
    """Return the axes on the left, which name the y axis of their rows."""
    places = [ax.get_position().x0 for ax in axes]
    return [ax for ax, place in zip(axes, places, strict=True) if np.isclose(place, min(places))]


def end_of_first_row(axes: Sequence[Axes]) -> Axes:
    """Return the last axis on top, which has room for a legend beside it."""
    places = [ax.get_position().y1 for ax in axes]
    return [ax for ax, place in zip(axes, places, strict=True) if np.isclose(place, max(places))][-1]


def finish(axes: Axes | list[Axes], show: bool | None, save: str | os.PathLike[str] | None) -> Axes | list[Axes] | None:
    """Save and show the figure if requested, and return the axes if it is not shown."""
    figure = (axes[0] if isinstance(axes, list) else axes).figure.figure  # also of the axes of a subfigure
    if save is not None:
        if not Path(save).suffix:
            msg = f"`save` must be a whole path, unlike in scanpy, such as 'umap.pdf', but found {save!r}."
            raise ValueError(msg)
        figure.savefig(Path(save).expanduser(), bbox_inches="tight", dpi=150)
    if sc.settings.autoshow if show is None else show:
        plt.show()
        return None
    return axes


def choose(name: str, wanted: str | Iterable | None, known: Iterable, *, most: int | None = None) -> list:
    """Return the requested values, or all known ones if None; text is one value.

    Raises
    ------
    ValueError
        If there is none, one is not known, or there are more than a picture has room for.
    """
    known = list(known)
    wanted = known if wanted is None else as_list(wanted)
    if not wanted:
        msg = f"There is nothing to plot: no `{name}`."
        raise ValueError(msg)
    for value in wanted:
        if value not in known:
            msg = f"`{name}` has the unknown value {value!r}. {known_names(value, known)}"
            raise ValueError(msg)
    if most is not None and len(wanted) > most:
        msg = f"`{name}` has {len(wanted)} values, but a picture has room for {most}; choose some."
        raise ValueError(msg)
    return wanted


# --- axes -------------------------------------------------------------------------------------------------------------


def without_frame(ax: Axes) -> None:
    """Hide the top and right spines."""
    ax.spines[["top", "right"]].set_visible(False)


def plain_numbers(axis: Axis) -> None:
    """Write 500 rather than a power of ten along a logarithmic axis."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < MOST_FOR_ONE_TWO_FIVE * low else (1,)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(NullFormatter())


def heat_map(
    ax: Axes, values: NDArray, rows: Sequence[str], columns: Sequence[str], *, fontsize: str | float, **look: object
) -> AxesImage:
    """Draw numbers as colours, and name the rows and columns, or as many as are readable."""
    image = ax.imshow(values, interpolation="nearest", **look)
    for axis, names in ((ax.xaxis, columns), (ax.yaxis, rows)):
        step = -(-len(names) // MOST_NAMED)
        axis.set_ticks(range(0, len(names), step), list(names[::step]), fontsize=fontsize)
    ax.tick_params(axis="x", rotation=90)
    return image


def limits_around(points: NDArray) -> tuple[NDArray, NDArray]:
    """Return the lowest and highest corner around points ``(n, 2)``, with a margin."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.05 * np.maximum(high - low, 1e-6)
    return low - margin, high + margin


def mixed_scatter(
    ax: Axes, points: Sequence[NDArray], colors: Sequence[str | NDArray], *, size: float, alpha: float | None = None
) -> None:
    """Draw several sets of points in random order, so that none hides the others."""
    xy = np.concatenate(points)
    rgba = [np.broadcast_to(to_rgba_array(c), (len(p), 4)) for p, c in zip(points, colors, strict=True)]
    order = np.random.default_rng(0).permutation(len(xy))
    look = {"alpha": alpha, "linewidths": 0, "rasterized": len(xy) > MOST_VECTORS}
    ax.scatter(*xy[order].T, s=size, c=np.concatenate(rgba)[order], **look)


# --- colours and legends ----------------------------------------------------------------------------------------------


def ink(share: float = 1.0) -> tuple[float, ...]:
    """Return the theme's colour of text, mixed with that of its background: black, greys and white, or the reverse."""
    text, ground = (np.array(to_rgba(plt.rcParams[name])) for name in ("text.color", "axes.facecolor"))
    return tuple(share * text[:3] + (1 - share) * ground[:3])


def scanpy_colors(names: Sequence[str]) -> dict[str, Any]:
    """Give names the colours that scanpy would choose for that many categories."""
    colors = sc.pl.palettes.default_20 if len(names) <= 20 else sc.pl.palettes.default_102
    return dict(zip(names, cycle(colors), strict=False))


def legend_beside(ax: Axes, handles: Sequence[Artist], **look: object) -> None:
    """Put a legend to the right of the axis, in columns as high as the axis, and widen the figure by it if ours."""
    inches = ax.get_window_extent().height / ax.figure.dpi
    n_columns = -(-len(handles) // max(int(ROWS_PER_INCH * inches), 3))
    place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "ncol": n_columns}
    legend = ax.legend(handles=handles, frameon=False, fontsize="small", **place, **look)
    if (figure := ax.figure.figure).get_gid() == OURS:
        width, height = figure.get_size_inches()
        figure.set_size_inches(width + legend.get_window_extent().width / figure.dpi, height)


def explain_colors(ax: Axes, colors: Mapping[str, Any], title: str | None = None) -> None:
    """Add a legend of colours to the right of the axis."""
    handles = [Line2D([], [], linestyle="", marker="o", color=color, label=name) for name, color in colors.items()]
    legend_beside(ax, handles, handletextpad=0.2, borderaxespad=0, title=title, alignment="left")


# --- cells and labels -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """One of the two sets of cells, ready to plot."""

    cells: AnnData
    expression: Expression


def sides_of(
    real: AnnData, synthetic: AnnData, *, layer: str | None, max_cells: int, seed: int, groupby: str | None = None
) -> dict[str, Side]:
    """Return ``real`` and ``synthetic`` cells with the same genes, each subsampled, with ``groupby`` label by label."""
    check_count("max_cells", max_cells, least=2)
    real = subsample(real, "real", max_cells, seed, groupby)
    synthetic = align_genes(subsample(synthetic, "synthetic", max_cells, seed, groupby), real.var_names)
    return {
        "real": Side(real, expression_of(real, layer=layer, name="real")),
        "synthetic": Side(synthetic, expression_of(synthetic, layer=layer, name="synthetic")),
    }


def subsample(cells: AnnData, name: str, max_cells: int, seed: int, groupby: str | None = None) -> AnnData:
    """Return the cells, or a random subset in their original order; with ``groupby``, the same share of each label.

    A rare label keeps up to 50 cells, so that it is not lost.
    """
    check_is_anndata(cells, name)
    if cells.n_obs <= max_cells:
        return cells
    cells = make_indexable(cells)
    rng = np.random.default_rng(seed)
    if groupby is None:
        return cells[np.sort(rng.choice(cells.n_obs, max_cells, replace=False))]
    labels = labels_of(cells, groupby, name).to_numpy()
    of_label = pd.Series(rng.permutation(cells.n_obs)).groupby(labels)
    wanted = of_label.transform("size") * max_cells / cells.n_obs
    return cells[np.flatnonzero(of_label.rank() <= np.maximum(wanted, LEAST_OF_LABEL))]


def labels_of(cells: AnnData, key: str, name: str) -> pd.Series:
    """Return a column of `obs` as text (:func:`as_label`)."""
    return as_labels(obs_column(cells, key, name))


def categories_of(cells: AnnData, key: str) -> list[str]:
    """Return the categories of a column of `obs` as text; an empty list if it is not categorical."""
    column = cells.obs[key]
    return list(as_labels(pd.Series(column.cat.categories))) if isinstance(column.dtype, pd.CategoricalDtype) else []


def label_order(real: AnnData, key: str, *labels: pd.Series) -> list[str]:
    """Return the labels that occur: categories of the real cells in their order, then numbers, then text."""

    def as_sorted(label: str) -> tuple[float, str]:
        number = pd.to_numeric(label, errors="coerce")
        return np.inf if np.isnan(number) else number, label

    order = categories_of(real, key)
    present = set().union(*map(set, labels))
    unknown = sorted(present - set(order) - {NO_LABEL}, key=as_sorted)
    return [label for label in dict.fromkeys([*order, *unknown, NO_LABEL]) if label in present]


def label_colors(real: AnnData, key: str, labels: Sequence[str]) -> dict[str, Any]:
    """Give every label its colour from ``real.uns``, or from scanpy."""
    categories = categories_of(real, key)
    colors = scanpy_colors(list(dict.fromkeys([*categories, *labels])))
    stored = list(real.uns.get(f"{key}_colors", ()))
    if len(stored) >= len(categories):  # as in scanpy
        colors |= dict(zip(categories, stored, strict=False))
    colors[NO_LABEL] = MISSING_COLOR
    return {label: colors[label] for label in labels}
