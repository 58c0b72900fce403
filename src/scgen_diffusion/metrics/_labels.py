"""Labels of cells, checked."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgen_diffusion.data import join_labels, known_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray


def labels_of(adata: AnnData, groupby: str | Sequence[str], *, name: str = "adata") -> NDArray[np.str_]:
    """Return a column of `obs` as text, or several joined, one label per cell, `(cells,)`.

    Raises
    ------
    TypeError
        If no column is named.
    KeyError
        If there is no such column.
    ValueError
        If a cell has no label, if `obs` has several columns of this name, or none is named.
    """
    if not isinstance(groupby, str | Collection):
        msg = f"`groupby` must name a column of `obs` or several, but is {groupby!r}."
        raise TypeError(msg)
    keys = [groupby] if isinstance(groupby, str) else list(groupby)
    if not keys:
        msg = "`groupby` is empty; name one column of `obs` or several."
        raise ValueError(msg)
    for key in keys:
        if key not in adata.obs:
            msg = f"`{name}.obs` has no column {key!r}. {known_names(key, list(adata.obs.columns))}"
            raise KeyError(msg)
        column = adata.obs[key]
        if column.ndim > 1:
            msg = f"`{name}.obs` has {column.shape[1]} columns {key!r}; rename all but one."
            raise ValueError(msg)
        if n_missing := int(column.isna().sum()):
            msg = f"`{name}.obs[{key!r}]` has no label for {n_missing} of {adata.n_obs} cells; leave these cells out."
            raise ValueError(msg)
    return join_labels(adata.obs, keys)


def check_labels(labels: ArrayLike, n_cells: int, name: str) -> NDArray[np.str_]:
    """Return the labels as text.

    Raises
    ------
    ValueError
        If there is not one label per cell.
    """
    labels = np.asarray(labels, dtype=object)  # in an array of text, a missing value would be the text "nan"
    if labels.shape != (n_cells,):
        msg = f"`{name}` must have one label for each of {n_cells} cells, but its shape is {labels.shape}."
        raise ValueError(msg)
    if (missing := pd.isna(labels)).any():
        msg = f"`{name}` has no label for {missing.sum()} of {n_cells} cells; leave these cells out."
        raise ValueError(msg)
    return labels.astype(str)
