"""What all plots share: axes, legends, saving and showing; matching cells, their labels and colours."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from matplotlib.colors import to_rgba, to_rgba_array
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from scgen_diffusion._arguments import as_list, known_names
from scgen_diffusion.data import NO_LABEL, as_labels, check_is_anndata, obs_column
from scgen_diffusion.metrics import Expression, align_genes, expression_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from anndata import AnnData
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from numpy.typing import NDArray

#: Grey, which no label palette uses, and Okabe and Ito's vermilion: distinct for everybody, but not in grey print.
SOURCES = {"real": "#6e6e6e", "synthetic": "#D55E00"}
SIGNS = {"lower": "↓", "higher": "↑", "real": "≈ real"}
N_COLUMNS = 4
MOST_FOR_ONE_TWO_FIVE = 50  # if an axis spans a larger factor, its numbers would overlap
MOST_VECTORS = 2_000  # with more points, a vector graphic would be too large

MISSING_COLOR = "lightgray"
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
    for ax in grid.flat[n:]:
        ax.remove()
    return list(grid.flat[:n])


def finish(axes: Axes | list[Axes], show: bool | None) -> Axes | list[Axes] | None:
    """Show the figure if requested, else return the axes."""
    if sc.settings.autoshow if show is None else show:
        plt.show()
        return None
    return axes


def choose(name: str, wanted: str | Iterable | None, known: Iterable) -> list:
    """Return the requested values, or all known ones if None; text is one value.

    Raises
    ------
    ValueError
        If there is none, or one is not known.
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
    return wanted


# --- axes -------------------------------------------------------------------------------------------------------------


def plain_numbers(axis: Axis) -> None:
    """Write 500 rather than a power of ten along a logarithmic axis."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < MOST_FOR_ONE_TWO_FIVE * low else (1,)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(NullFormatter())


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
    """Put a legend to the right of the axis, in columns as high as the axis."""
    inches = ax.get_window_extent().height / ax.figure.dpi
    n_columns = -(-len(handles) // max(int(ROWS_PER_INCH * inches), 3))
    place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "ncol": n_columns}
    ax.legend(handles=handles, frameon=False, fontsize="small", **place, **look)


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


def sides_of(real: AnnData, synthetic: AnnData, layer: str | None) -> dict[str, Side]:
    """Return ``real`` and ``synthetic`` cells with the same genes."""
    sides = {}
    for name, cells in {"real": real, "synthetic": synthetic}.items():
        check_is_anndata(cells, name)
        cells = align_genes(cells, real.var_names, name=name)
        sides[name] = Side(cells, expression_of(cells, layer=layer, name=name))
    return sides


def column_as_text(cells: AnnData, key: str, name: str) -> pd.Series:
    """Return a column of `obs` as text (:func:`as_label`)."""
    return as_labels(obs_column(cells, key, name))


def categories_of(cells: AnnData, key: str) -> list[str]:
    """Return the categories of a column of `obs` as text; of one without categories, its values in order."""
    return list(as_labels(pd.Series(cells.obs[key].astype("category").cat.categories)))


def label_order(sides: Mapping[str, Side], key: str) -> list[str]:
    """Return the labels that occur: categories of the real cells in their order, then others, and a missing one."""
    present = set().union(*(column_as_text(side.cells, key, name) for name, side in sides.items()))
    known = [label for side in sides.values() for label in categories_of(side.cells, key)]
    return [label for label in dict.fromkeys([*known, NO_LABEL]) if label in present]


def label_colors(real: AnnData, key: str, labels: Sequence[str]) -> dict[str, Any]:
    """Give every label its colour from ``real.uns``, or from scanpy."""
    categories = categories_of(real, key)
    colors = scanpy_colors(list(dict.fromkeys([*categories, *labels])))
    stored = list(real.uns.get(f"{key}_colors", ()))
    if len(stored) >= len(categories):  # as in scanpy
        colors |= dict(zip(categories, stored, strict=False))
    colors[NO_LABEL] = MISSING_COLOR
    return {label: colors[label] for label in labels}
