"""What plots of real and synthetic cells share: matching genes, subsampling, labels and their colours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from scgen_diffusion._arguments import check_count, known_names
from scgen_diffusion.data import obs_column
from scgen_diffusion.metrics import Expression, align_genes, expression_of

from ._figures import scanpy_colors

if TYPE_CHECKING:
    from collections.abc import Sequence

MISSING, MISSING_COLOR = "no label", "lightgray"


@dataclass(frozen=True)
class Side:
    """One of the two sets of cells, ready to plot."""

    cells: AnnData
    expression: Expression


def sides_of(real: AnnData, synthetic: AnnData, *, layer: str | None, max_cells: int, seed: int) -> dict[str, Side]:
    """Return ``real`` and ``synthetic`` cells with the same genes, each subsampled to ``max_cells``.

    The layer is read from the synthetic cells only if they have it: generated cells have their counts in `X`.
    """
    check_count("max_cells", max_cells, least=2)
    real = subsample(real, "real", max_cells, seed)
    synthetic = align_genes(subsample(synthetic, "synthetic", max_cells, seed), real.var_names)
    synthetic_layer = layer if layer in synthetic.layers else None
    return {
        "real": Side(real, expression_of(real, layer=layer, name="real")),
        "synthetic": Side(synthetic, expression_of(synthetic, layer=synthetic_layer, name="synthetic")),
    }


def check_is_anndata(cells: object, name: str) -> None:
    """Raise TypeError for anything but an AnnData."""
    if not isinstance(cells, AnnData):
        msg = f"`{name}` must be an AnnData, but found {type(cells).__name__}."
        raise TypeError(msg)


def subsample(cells: AnnData, name: str, max_cells: int, seed: int) -> AnnData:
    """Return the cells, or a random subset in their original order."""
    check_is_anndata(cells, name)
    if cells.n_obs <= max_cells:
        return cells
    return cells[np.sort(np.random.default_rng(seed).choice(cells.n_obs, max_cells, replace=False))]


def labels_of(cells: AnnData, key: str, name: str) -> pd.Series:
    """Return a column of `obs` as text; missing labels become ``"no label"``.

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
    column = obs_column(cells, key, name)
    return column.astype(object).where(column.notna(), MISSING).astype(str)


def categories_of(cells: AnnData, key: str) -> list[str]:
    """Return the categories of a column of `obs` as text; an empty list if it is not categorical."""
    column = cells.obs[key]
    return list(map(str, column.cat.categories)) if isinstance(column.dtype, pd.CategoricalDtype) else []


def label_order(real: AnnData, key: str, *labels: pd.Series) -> list[str]:
    """Return the labels that occur, with those of the real cells first, in the order of their categories."""
    order = categories_of(real, key)
    present = set().union(*map(set, labels))
    unknown = sorted(present - set(order) - {MISSING})
    return [label for label in [*order, *unknown, MISSING] if label in present]


def label_colors(
    real: AnnData, key: str, labels: Sequence[str], palette: Mapping[str, str] | Sequence[str] | None
) -> dict[str, str]:
    """Give every label its colour from the palette, from ``real.uns``, or from scanpy.

    Raises
    ------
    ValueError
        If the palette lacks a label or has too few colours.
    """
    named = [label for label in labels if label != MISSING]
    if isinstance(palette, Mapping):
        colors = dict(palette)
    elif palette is not None:
        colors = dict(zip(named, palette, strict=False))
    else:
        categories = categories_of(real, key)
        stored = dict(zip(categories, real.uns.get(f"{key}_colors", ()), strict=False))
        colors = scanpy_colors(list(dict.fromkeys([*categories, *named]))) | stored
    if lacking := [label for label in named if label not in colors]:
        msg = f"`palette` has no colour for {lacking[0]!r}, a label of {key!r}. {known_names(lacking[0], list(colors))}"
        raise ValueError(msg)
    return {label: colors.get(label, MISSING_COLOR) for label in labels}
