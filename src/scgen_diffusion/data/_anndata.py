"""Building the AnnData that a model returns."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import scipy.sparse as sp

PROVENANCE_KEY = "scgen_diffusion"
SYNTHETIC = "synthetic"
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
    """Assemble the cells of a model, which provenance names; ``uns["log1p"]`` tells scanpy that values are logarithms."""
    uns: dict[str, Any] = {PROVENANCE_KEY: dict(provenance)}
    if is_log1p:
        uns["log1p"] = {}
    return AnnData(X=x, obs=mark_synthetic(obs, provenance), var=var.copy(), uns=uns, layers=layers)


def mark_synthetic(obs: pd.DataFrame, provenance: Mapping[str, Any]) -> pd.DataFrame:
    """Add the column that says that cells are synthetic, and which model made them."""
    maker = f"{provenance['model']} {version('scgen-diffusion')}"
    return obs.assign(**{SYNTHETIC: pd.Categorical.from_codes(np.zeros(len(obs), dtype=int), categories=[maker])})


def join_labels(obs: pd.DataFrame, keys: Sequence[str]) -> np.ndarray:
    """Return one label per cell, `(cells,)`: the values of several columns as text, joined by ``|``."""
    return obs[list(keys)].astype(str).agg(JOIN.join, axis=1).to_numpy(dtype=str)
