"""Labels of cells, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgen_diffusion.data import known_names

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray


def labels_of(adata: AnnData, key: str, *, name: str = "adata") -> NDArray[np.str_]:
    """Return a column of `obs` as text, one label per cell, `(cells,)`.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If a cell has no label.
    """
    if key not in adata.obs:
        msg = f"`{name}.obs` has no column {key!r}. {known_names(key, list(adata.obs.columns))}"
        raise KeyError(msg)
    missing = adata.obs[key].isna()
    if missing.any():
        msg = f"`{name}.obs[{key!r}]` has no label for {missing.sum()} of {adata.n_obs} cells; leave these cells out."
        raise ValueError(msg)
    return adata.obs[key].to_numpy().astype(str)


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
