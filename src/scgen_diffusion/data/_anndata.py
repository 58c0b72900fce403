"""Building the AnnData that a model returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import scipy.sparse as sp

PROVENANCE_KEY = "scgen_diffusion"
JOIN = "|"


def build_anndata(
    x: sp.csr_matrix | np.ndarray,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    provenance: Mapping[str, Any],
    *,
    is_log1p: bool,
    layers: Mapping[str, np.ndarray] | None = None,
) -> AnnData:
    """Assemble generated cells; ``uns["log1p"]`` tells scanpy that values are logarithms."""
    uns: dict[str, Any] = {PROVENANCE_KEY: dict(provenance)}
    if is_log1p:
        uns["log1p"] = {}
    return AnnData(X=x, obs=obs, var=var.copy(), uns=uns, layers=layers)


def join_labels(obs: pd.DataFrame, keys: Sequence[str]) -> np.ndarray:
    """Return one label per cell, `(cells,)`: the values of several columns as text, joined by ``|``."""
    return obs[list(keys)].astype(str).agg(JOIN.join, axis=1).to_numpy(dtype=str)


def synthetic_names(n_cells: int, prefix: str = "synthetic", first: int = 0) -> pd.Index:
    """Name cells by a prefix and their number, from ``first``."""
    return pd.Index([f"{prefix}_{number}" for number in range(first, first + n_cells)])
