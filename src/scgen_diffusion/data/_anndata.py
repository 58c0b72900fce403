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
    r"""Return one label per cell, `(cells,)`: the values of several columns as text, joined by ``|``.

    A ``|`` or ``\`` within the value of one of several columns gets a ``\`` before it, so that other values never give the same label.
    """
    columns = [obs[key].astype(str) for key in keys]
    if len(columns) > 1:
        columns = [column.str.replace(r"([|\\])", r"\\\1", regex=True) for column in columns]
    return np.array([JOIN.join(values) for values in zip(*columns, strict=True)], dtype=str)
