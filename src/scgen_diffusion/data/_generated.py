"""The cells that a model returns, as AnnData or MuData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData

from ._mudata import mudata_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import scipy.sparse as sp
    from mudata import MuData

PROVENANCE_KEY = "scgen_diffusion"
SYNTHETIC = "synthetic"
OF_CONTROL = "_of_control"  # ends the names of columns with the old conditions of predicted cells


def build_anndata(
    x: sp.csr_matrix | np.ndarray,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    provenance: Mapping[str, Any],
    obsm: Mapping[str, np.ndarray] | None = None,
) -> AnnData:
    """Build the AnnData of generated cells; ``uns["log1p"]`` tells scanpy that values are logarithms."""
    uns: dict[str, Any] = {PROVENANCE_KEY: dict(provenance)}
    if provenance["values"] == "log1p":
        uns["log1p"] = {}
    return AnnData(X=x, obs=obs.assign(**{SYNTHETIC: True}), var=var.copy(), uns=uns, obsm=obsm)


def drop_unused_categories(obs: pd.DataFrame) -> pd.DataFrame:
    """Return `obs` without categories that no cell has, which scanpy would take for empty groups.

    Ordered ones stay: if they differ, anndata cannot join cells.
    """
    obs = obs.copy()
    for name, dtype in obs.dtypes.items():
        if isinstance(dtype, pd.CategoricalDtype) and not dtype.ordered:
            obs[name] = obs[name].cat.remove_unused_categories()
    return obs


def build_mudata(
    x: sp.csr_matrix | np.ndarray,
    obs: pd.DataFrame,
    variables: Mapping[str, pd.DataFrame],
    provenance: Mapping[str, Any],
    obsm: Mapping[str, np.ndarray] | None = None,
) -> MuData:
    """Build a MuData of paired cells from values ``(cells, features of all modalities)``.

    ``obs``, ``obsm`` and provenance are in the MuData and in each modality, so that modalities can be used alone.
    """
    parts, start = {}, 0
    for name, var in variables.items():
        parts[name] = build_anndata(x[:, start : start + len(var)], obs.copy(), var, provenance, obsm)
        start += len(var)
    mdata = mudata_of(parts)
    mdata.obs = obs.assign(**{SYNTHETIC: True})
    mdata.obsm.update(obsm or {})
    mdata.uns[PROVENANCE_KEY] = dict(provenance)
    return mdata
