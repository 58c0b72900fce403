"""Cells as points: the array that a metric of values compares, from whatever the cells come as."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from scgen_diffusion.data import known_names

#: Points `(cells, features)`, or an AnnData that has them in `obsm`.
Points: TypeAlias = AnnData | ArrayLike

USE_REP = "X_pca"


def representation(cells: Points, use_rep: str = USE_REP, name: str = "cells") -> NDArray:
    """Return cells as an array of points.

    Parameters
    ----------
    cells
        `(cells, features)`, or AnnData with such an array in `obsm`.
    use_rep
        Name in `obsm`; not used for an array.
    name
        What errors call the cells.

    Returns
    -------
    Floating-point values `(cells, features)`.

    Raises
    ------
    KeyError
        If `obsm` has no such entry.
    ValueError
        If there is no cell or feature, or if a value is infinite or missing.

    Examples
    --------
    >>> representation([[1, 2], [3, 4]]).shape
    (2, 2)
    """
    if isinstance(cells, AnnData):
        values, name = _entry(cells, use_rep, name), f"{name}.obsm[{use_rep!r}]"
    else:
        values = cells
    values = values.toarray() if sp.issparse(values) else np.asarray(values)
    if not np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float64)
    if values.ndim != 2 or 0 in values.shape:
        msg = f"`{name}` must be points of shape (cells, features), but its shape is {values.shape}."
        raise ValueError(msg)
    if not np.isfinite(values).all():
        msg = f"`{name}` must not hold infinite or missing values."
        raise ValueError(msg)
    return values


def two_representations(real: Points, synthetic: Points, use_rep: str = USE_REP) -> tuple[NDArray, NDArray]:
    """Return both sets as points with the same features."""
    values = representation(real, use_rep, "real"), representation(synthetic, use_rep, "synthetic")
    n_features = [x.shape[1] for x in values]
    if n_features[0] != n_features[1]:
        msg = f"`real` has {n_features[0]} features and `synthetic` {n_features[1]}; they must be the same."
        raise ValueError(msg)
    return values


def _entry(cells: AnnData, use_rep: str, name: str) -> ArrayLike | sp.spmatrix:
    if use_rep not in cells.obsm:
        msg = (
            f"`use_rep` is {use_rep!r}, which `{name}.obsm` lacks. {known_names(use_rep, list(cells.obsm))} "
            f"`ComparisonSpace.write(real, synthetic)` puts principal components there."
        )
        raise KeyError(msg)
    return cells.obsm[use_rep]
