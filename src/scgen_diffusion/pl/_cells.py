"""What plots of real and synthetic cells share: matching genes, subsampling, labels and their colours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.pyplot import get_cmap
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from scgen_diffusion._arguments import check_count, known_names, warn_user
from scgen_diffusion.data import NO_LABEL, as_labels, check_is_anndata, make_indexable, obs_column
from scgen_diffusion.metrics import Expression, align_genes, expression_of

from ._figures import MOST_LABELS, scanpy_colors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

Color: TypeAlias = "str | tuple[float, float, float, float]"

MISSING_COLOR = "lightgray"
LEAST_OF_LABEL = 50  # cells that subsampling leaves of a label


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
    """Return a column of `obs` as text (:func:`as_label`).

    Raises
    ------
    TypeError
        If several columns are named.
    KeyError
        If the column does not exist.
    """
    if not isinstance(key, str):
        msg = f"Plots group cells by one column of `obs`, but found {key!r}. Combine several columns into one first."
        raise TypeError(msg)
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


def holds_numbers(column: pd.Series) -> bool:
    """Return whether a column of `obs` has numbers, which get a scale of colours, rather than labels."""
    return is_numeric_dtype(column) and not is_bool_dtype(column)


def numbers_of(column: pd.Series) -> NDArray[np.float64]:
    """Return a column of `obs` as numbers. Infinite ones count as missing: no scale holds them and all others."""
    numbers = column.astype(float).to_numpy()
    return np.where(np.isfinite(numbers), numbers, np.nan)


def number_scale(numbers: NDArray, color: str) -> ScalarMappable:
    """Return a scale of colours that holds all numbers; missing ones are grey.

    Raises
    ------
    ValueError
        If all are missing.
    """
    if np.isnan(numbers).all():
        msg = f"`color` {color!r} has no number; all are missing."
        raise ValueError(msg)
    norm = Normalize(np.nanmin(numbers), np.nanmax(numbers))
    return ScalarMappable(norm, get_cmap("viridis").with_extremes(bad=MISSING_COLOR))


def label_colors(
    real: AnnData, key: str, labels: Sequence[str], palette: Mapping[str, Color] | Sequence[Color] | None
) -> dict[str, Color]:
    """Give every label its colour from the palette, from ``real.uns``, or from scanpy.

    Raises
    ------
    ValueError
        If the palette lacks a label, has too few colours, or one that is none.
    TypeError
        If it is text.
    """
    if isinstance(palette, str):
        msg = f"`palette` must map labels to colours, or list colours, but found {palette!r}."
        raise TypeError(msg)
    named = [label for label in labels if label != NO_LABEL]
    if palette is None:
        categories = categories_of(real, key)
        stored = _stored_colors(real.uns.get(f"{key}_colors"), categories)
        others = [label for label in dict.fromkeys([*categories, *named]) if label not in stored]
        colors = scanpy_colors(others, taken=stored.values()) | stored
    else:
        try:
            colors = _by_label(palette, named)
        except ValueError as error:
            msg = f"`palette` has a value that is no colour: {error}"
            raise ValueError(msg) from error
    if lacking := [label for label in named if label not in colors]:
        msg = f"`palette` has no colour for {lacking[0]!r}, a label of {key!r}. {known_names(lacking[0], list(colors))}"
        raise ValueError(msg)
    n_colors = len({colors[label] for label in named})
    if palette is None and len(named) > max(n_colors, MOST_LABELS):  # fewer may share colours of `uns` on purpose
        warn_user(
            f"{key!r} has {len(named)} labels, but there are only {n_colors} colours, so several labels share one. "
            "Give the cells of fewer labels, or a `palette`."
        )
    return {label: colors.get(label, MISSING_COLOR) for label in labels}


def _stored_colors(stored: Any, categories: Sequence[str]) -> dict[str, Color]:
    """Return the colours in `uns` by label; none if, as in scanpy, there are too few, or one is no colour."""
    try:
        colors = _by_label(stored, categories)
    except (TypeError, ValueError):  # no list, or no colours
        return {}
    return colors if isinstance(stored, Mapping) or len(colors) == len(categories) else {}


def _by_label(colors: Mapping[object, Any] | Iterable[Any], labels: Sequence[str]) -> dict[str, Color]:
    """Return colours, by value or in the order of the labels, by label: names, or RGBA of those given as numbers."""
    if isinstance(colors, Mapping):
        labels, colors = list(as_labels(pd.Series(list(colors)))), colors.values()
    found: dict[str, Color] = {}
    for label, color in zip(labels, colors, strict=False):
        rgba = to_rgba(color)
        if np.isnan(rgba).any():
            msg = f"{color!r} is missing."
            raise ValueError(msg)
        found[label] = color if isinstance(color, str) else rgba
    return found
