"""What `evaluate` asks of its arguments, before any long work."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from scgen_diffusion.data import is_whole_number, known_names, warn_user

from ._catalogue import CATALOGUE, Metric
from ._drawing import Source
from ._expression import COUNTS_LAYER, Cells, check_has_genes
from ._labels import labels_of
from ._pairs import check_same_number_of_genes
from ._space import ComparisonSpace
from ._table import ALL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from ._scales import Scale

MIN_CELLS = 50
REAL = ("real_test", "train", "control")  # names of sets of real cells
N_CELLS_LOOKED_AT = 20
N_SHARED_LOOKED_AT = 500
N_LABELS_NAMED = 5


def as_adata(cells: Cells, name: str) -> AnnData:
    """Return cells as AnnData, arrays as counts."""
    if isinstance(cells, AnnData):
        return cells
    if not (sp.issparse(cells) or isinstance(cells, np.ndarray)) or cells.ndim != 2:
        advice = " For several modalities, there is `evaluate_modalities`." if isinstance(cells, MuData) else ""
        msg = f"`{name}` must be AnnData or counts of shape (cells, genes), but is {type(cells).__name__}.{advice}"
        raise TypeError(msg)
    return AnnData(sp.csr_matrix(cells))


def check_arrays(sets: Mapping[str, Cells]) -> None:
    """Raise unless arrays, whose genes have no names, have as many genes as the first set."""
    first, real = next(iter(sets.items()))
    for name, cells in sets.items():
        if not isinstance(cells, AnnData):
            check_same_number_of_genes(real.shape[1], cells.shape[1], (first, name))


def check_numbers(*, max_cells: int, n_floor: int, seed: int, n_bootstrap: int = 0, min_cells: int = MIN_CELLS) -> None:
    """Raise where a number of draws or cells makes no sense."""
    numbers = {
        "max_cells": (max_cells, min_cells, f"{min_cells} or more"),
        "n_floor": (n_floor, 0, "0 (no floor) or more"),
        "n_bootstrap": (n_bootstrap, 0, "0 (no interval), or 2 or more"),
        "seed": (seed, 0, "0 to 2**32 - 1"),  # as scikit-learn takes it
    }
    for name, (number, least, allowed) in numbers.items():
        unfit = {"n_bootstrap": number == 1, "seed": is_whole_number(number) and number >= 2**32}
        if not is_whole_number(number) or number < least or unfit.get(name):
            msg = f"`{name}` is {number!r}; it must be {allowed}, a whole number."
            raise ValueError(msg)


def check_space(space: object) -> None:
    """Raise TypeError for anything but a space or None."""
    if not isinstance(space, ComparisonSpace | None):
        msg = f"`space` must be a ComparisonSpace, but is {space!r}."
        raise TypeError(msg)


def make_sources(
    real: AnnData,
    synthetic: AnnData,
    train: AnnData | None,
    groupby: str | Sequence[str] | None,
    layer: str | None,
    scale: Scale | None,
) -> tuple[Source, Source, Source | None]:
    """Check the sets against each other."""
    given = {"real_test": real, "synthetic": synthetic} | ({} if train is None else {"train": train})
    for name, cells in given.items():
        _check_size(name, cells, needed=_n_needed(name, has_train=train is not None))
        check_genes(name, cells, real.var_names)
    sources = [
        Source(name, cells, real.var_names, _labels(name, cells, groupby), layer_to_read(name, cells, layer), scale)
        for name, cells in given.items()
    ]
    for source in sources:
        source.expression(np.arange(N_CELLS_LOOKED_AT))  # raises where values are not what they should be
        _check_some_labels_shared(sources[0], source)
    if train is not None:
        _check_overlap(sources[2], sources[0], sources[1])
    return sources[0], sources[1], sources[2] if train is not None else None


def choose_metrics(
    names: str | Sequence[str] | None, *, has_train: bool, has_groups: bool, has_counts: bool
) -> list[Metric]:
    """Return the entries asked for; of all entries, those that have what they need.

    Raises
    ------
    ValueError
        If a metric is unknown, or was asked for and lacks what it needs.
    """
    there = {"train": has_train, "groups": has_groups, "counts": has_counts}
    if names is None:
        return [metric for metric in CATALOGUE.values() if all(there[need] for need in metric.needs)]
    names = [names] if isinstance(names, str) else list(names)
    check_names(names)
    for name in names:
        if missing := [need for need in CATALOGUE[name].needs if not there[need]]:
            msg = f"`metrics` asks for {name!r}, which needs {_NEEDS[missing[0]]}."
            raise ValueError(msg)
    return [metric for name, metric in CATALOGUE.items() if name in names]


def check_names(names: str | Sequence[str] | None) -> None:
    """Raise where a metric is unknown."""
    if not isinstance(names, str | Collection | None):
        msg = f"`metrics` must be a list of names, but is {names!r}."
        raise TypeError(msg)
    for name in [names] if isinstance(names, str) else names or []:
        if name not in CATALOGUE:
            msg = f"`metrics` has the unknown name {name!r}. {known_names(name, list(CATALOGUE))}"
            raise ValueError(msg)


_NEEDS = {
    "train": "`train`, the cells that the model has learned from",
    "groups": "`groupby`, a column of `obs`",
    "counts": "counts in all sets, not log-normalised values",
}


def _n_needed(name: str, *, has_train: bool) -> int:
    """One half of `train` fits the space, the other plays the synthetic cells; without it `real_test` does all three."""
    if name == "train":
        return 2 * MIN_CELLS
    return MIN_CELLS if has_train or name == "synthetic" else 3 * MIN_CELLS


def _check_size(name: str, cells: AnnData, *, needed: int) -> None:
    if cells.n_obs < needed:
        hint = "; it is split in three where there is no `train`" if needed == 3 * MIN_CELLS else ""
        msg = f"`{name}` has {cells.n_obs} cells; there must be {needed} or more{hint}."
        raise ValueError(msg)


def check_genes(name: str, cells: AnnData, genes: pd.Index) -> None:
    """Raise unless cells have these genes, in any order."""
    if len(genes) and not len(cells.var_names.intersection(genes)):
        msg = (
            f"`{name}` and `real_test` have no gene in common: {list(cells.var_names[:3])} and {list(genes[:3])}. "
            "Bring both to the same kind of name in `var_names`."
        )
        raise ValueError(msg)
    check_has_genes(cells, genes, name)


def layer_to_read(name: str, cells: AnnData, layer: str | None) -> str | None:
    """Return the layer to read; synthetic cells keep counts in `X` where they lack the real cells' layer."""
    if layer is None or (name not in REAL and layer not in cells.layers):
        return COUNTS_LAYER if COUNTS_LAYER in cells.layers else None
    return layer


def _labels(name: str, cells: AnnData, groupby: str | Sequence[str] | None) -> NDArray[np.str_] | None:
    if groupby is None:
        return None
    labels = labels_of(cells, groupby, name=name)
    if (labels == ALL).any():
        msg = f"`groupby` gives the label {ALL!r} to cells of `{name}`, which is what the table calls all cells; rename it."
        raise ValueError(msg)
    return labels


def _check_some_labels_shared(real: Source, other: Source) -> None:
    if real.labels is None or np.isin(other.labels, real.labels).any():
        return
    found, known = (np.unique(source.labels)[:N_LABELS_NAMED].tolist() for source in (other, real))
    msg = f"No cell of `{other.name}` has a label that a cell of `{real.name}` has: {found} and {known}. Bring both to the same names."
    raise ValueError(msg)


def _check_overlap(train: Source, real: Source, synthetic: Source) -> None:
    if _share_of_same_cells(train, real) > 0.5:
        msg = (
            "`real_test` has cells of `train`: the same `obs_names` with the same values. "
            "Give cells that the model has not learned from, or leave `train` out."
        )
        raise ValueError(msg)
    if _share_of_same_cells(train, synthetic) > 0.5:
        msg = (
            "`synthetic` has cells of `train`: the same `obs_names` with the same values. "
            "Figures of their quality say nothing; those of memorisation will show it."
        )
        warn_user(msg)


def _share_of_same_cells(first: Source, second: Source) -> float:
    """Return the share of cells of the same name that have the same values, among the first few."""
    shared = first.cells.obs_names.intersection(second.cells.obs_names)[:N_SHARED_LOOKED_AT]
    if not len(shared):
        return 0.0
    values = []
    for source in (first, second):
        if not source.cells.obs_names.is_unique:
            return 0.0
        values.append(source.expression(source.cells.obs_names.get_indexer(shared)).values)
    n_different = np.asarray((values[0] != values[1]).sum(axis=1)).ravel()
    return float((n_different == 0).mean())
