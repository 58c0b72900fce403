"""What the plots of real beside synthetic cells start from: the same genes, few enough cells, one colour for each set and label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.colors import to_rgba_array
from matplotlib.lines import Line2D

from scgen_diffusion.data import check_count, known_names
from scgen_diffusion.metrics import Expression, align_genes, expression_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from numpy.typing import NDArray

#: Grey, which no palette of labels has, and the vermilion of Okabe and Ito: everybody can tell them apart, in print, too.
SOURCES = {"real": "#6e6e6e", "synthetic": "#D55E00"}
MISSING, MISSING_COLOR = "no label", "lightgray"


@dataclass(frozen=True)
class Side:
    """One of the two sets, as it is drawn."""

    cells: AnnData
    expression: Expression


def pair_of(real: AnnData, synthetic: AnnData, *, layer: str | None, max_cells: int, seed: int) -> tuple[Side, Side]:
    """Return both sets with the same genes, each with at most so many cells.

    A layer is read of the synthetic cells if they have it; cells that a model generated have their counts in `X`.
    """
    check_count("max_cells", max_cells, least=2)
    real = drawn(real, "real", max_cells, seed)
    synthetic = align_genes(drawn(synthetic, "synthetic", max_cells, seed), real.var_names)
    synthetic_layer = layer if layer in synthetic.layers else None
    return (
        Side(real, expression_of(real, layer=layer, name="real")),
        Side(synthetic, expression_of(synthetic, layer=synthetic_layer, name="synthetic")),
    )


def check_is_anndata(cells: object, name: str) -> None:
    """Raise TypeError for anything else."""
    if not isinstance(cells, AnnData):
        msg = f"`{name}` must be an AnnData, but found {type(cells).__name__}."
        raise TypeError(msg)


def drawn(cells: AnnData, name: str, max_cells: int, seed: int) -> AnnData:
    """Return the cells, or a random part of them in their order."""
    check_is_anndata(cells, name)
    if cells.n_obs <= max_cells:
        return cells
    return cells[np.sort(np.random.default_rng(seed).choice(cells.n_obs, max_cells, replace=False))]


def labels_of(cells: AnnData, key: str, name: str) -> pd.Series:
    """Return a column of `obs` as text; cells without a label get one that says so.

    Raises
    ------
    TypeError
        If several columns are named.
    KeyError
        If there is no such column.
    """
    if not isinstance(key, str):
        msg = f"Cells are grouped by one column of `obs` here, but found {key!r}. Join several to one first."
        raise TypeError(msg)
    if key not in cells.obs:
        msg = f"`{name}.obs` has no column {key!r}. {known_names(key, list(cells.obs.columns))}"
        raise KeyError(msg)
    column = cells.obs[key]
    if column.ndim > 1:
        msg = f"`{name}.obs` has {column.shape[1]} columns {key!r}; rename all but one."
        raise ValueError(msg)
    return column.astype(object).where(column.notna(), MISSING).astype(str)


def label_order(real: AnnData, key: str, *labels: pd.Series) -> list[str]:
    """Return the labels that there are, those of the real cells in the order of their categories first."""
    column = real.obs[key]
    order = list(map(str, column.cat.categories)) if isinstance(column.dtype, pd.CategoricalDtype) else []
    present = set().union(*(set(series) for series in labels))
    unknown = sorted(present - set(order) - {MISSING})
    return [label for label in [*order, *unknown, MISSING] if label in present]


def label_colors(
    real: AnnData, key: str, labels: Sequence[str], palette: Mapping[str, str] | Sequence[str] | None
) -> dict[str, str]:
    """Give every label the colour of the palette, of ``real.uns``, or of scanpy.

    Raises
    ------
    ValueError
        If a palette lacks a label or has too few colours.
    """
    if hasattr(palette, "keys"):
        return {label: named_color(palette, label) for label in labels}
    named = [label for label in labels if label != MISSING]
    colors = stored_colors(real, key, named) if palette is None else dict(zip(named, palette, strict=False))
    if len(colors) < len(named):
        msg = f"`palette` has {len(colors)} colours for {len(named)} labels of {key!r}."
        raise ValueError(msg)
    return {label: colors.get(label, MISSING_COLOR) for label in labels}


def named_color(palette: Mapping[str, str], label: str) -> str:
    """Return a label's colour."""
    if label not in palette and label != MISSING:
        msg = f"`palette` has no colour for {label!r}. {known_names(label, list(palette))}"
        raise ValueError(msg)
    return palette.get(label, MISSING_COLOR)


def stored_colors(real: AnnData, key: str, labels: Sequence[str]) -> dict[str, str]:
    """Return the colours that ``uns`` holds for the categories, completed by those of scanpy."""
    column = real.obs[key]
    categories = list(map(str, column.cat.categories)) if isinstance(column.dtype, pd.CategoricalDtype) else []
    stored = dict(zip(categories, real.uns.get(f"{key}_colors", ()), strict=False))
    order = list(dict.fromkeys([*categories, *labels]))  # as scanpy numbers them
    colors = sc.pl.palettes.default_20 if len(order) <= 20 else sc.pl.palettes.default_102
    return {label: colors[number % len(colors)] for number, label in enumerate(order)} | stored


def mixed_scatter(
    ax: Axes,
    points: Sequence[NDArray],
    colors: Sequence[str | NDArray],
    *,
    size: float,
    seed: int = 0,
    **kwargs: object,
) -> PathCollection:
    """Draw several sets of points in random order, so that none hides the others."""
    xy = np.concatenate(points)
    rgba = [np.broadcast_to(to_rgba_array(c), (len(p), 4)) for p, c in zip(points, colors, strict=True)]
    order = np.random.default_rng(seed).permutation(len(xy))
    rasterized = len(xy) > 2_000  # or a vector graphic would hold every point
    return ax.scatter(
        *xy[order].T, s=size, c=np.concatenate(rgba)[order], linewidths=0, rasterized=rasterized, **kwargs
    )


def legend_beside(ax: Axes, sections: Mapping[str, Mapping[str, str]]) -> None:
    """Say to the right of the axis which colour is what, in parts with headings."""
    handles = []
    for heading, colors in sections.items():
        gap = ["", heading] if handles else [heading]
        handles += [Line2D([], [], linestyle="", label=text) for text in gap] if heading else []
        handles += [Line2D([], [], linestyle="", marker="o", color=color, label=name) for name, color in colors.items()]
    ax.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
        fontsize="small",
        ncol=-(-len(handles) // 22),
        handletextpad=0.2,
        borderaxespad=0,
    )
    headings = set(sections) - {""}
    for text in ax.get_legend().get_texts():
        if text.get_text() in headings:
            text.set(fontweight="bold")


def without_frame(ax: Axes) -> None:
    """Keep only the axes that carry numbers."""
    ax.spines[["top", "right"]].set_visible(False)
