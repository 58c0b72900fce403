"""Whole data sets of made-up cells, sparse, as users have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from system import N_CLASSES

if TYPE_CHECKING:
    from system import Setting

N_DISTINCT = 2048  # cells that are drawn; larger sets repeat them
CONTROL = {"condition": "0"}


def made_up_cells(setting: Setting, seed: int = 0) -> ad.AnnData:
    """Draw ``setting.n_cells`` cells of which each expresses about ``n_expressed`` genes, some oftener than others, with two labels."""
    rng = np.random.default_rng(seed)
    n_distinct = min(setting.n_cells, N_DISTINCT)
    expressed = rng.random((n_distinct, setting.n_genes), dtype=np.float32) < _frequencies(setting, rng)
    counts = sp.csr_matrix(expressed, dtype=np.float32)
    counts.data = rng.geometric(0.5, counts.nnz).astype(np.float32)
    rows = np.arange(setting.n_cells) % n_distinct
    x = counts if setting.n_cells == n_distinct else counts[rows]
    columns = {key: pd.Categorical(rng.integers(0, n, setting.n_cells).astype(str)) for key, n in N_CLASSES.items()}
    names = pd.Index([f"cell-{number}" for number in range(setting.n_cells)])
    cells = ad.AnnData(x, obs=pd.DataFrame(columns, index=names))
    cells.layers["counts"] = cells.X
    return cells


def _frequencies(setting: Setting, rng: np.random.Generator) -> np.ndarray:
    """Return how often each gene is expressed: beta-distributed, with the wanted mean."""
    mean = setting.n_expressed / setting.n_genes
    return rng.beta(2 * mean, 2 * (1 - mean), setting.n_genes).astype(np.float32)
