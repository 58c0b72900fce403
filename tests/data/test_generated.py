"""Assembling the AnnData that a model returns."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgen_diffusion.data import PROVENANCE_KEY, build_anndata


@pytest.mark.parametrize("is_log1p", [False, True])
def test_cells_have_provenance_and_genes_of_their_own(is_log1p):
    x, obs, var = np.ones((2, 3), np.float32), pd.DataFrame(index=["a", "b"]), pd.DataFrame(index=["x", "y", "z"])

    adata = build_anndata(x, obs, var, {"model": "SCLDM", "seed": 3}, is_log1p=is_log1p)
    adata.var["new"] = 1

    assert adata.uns[PROVENANCE_KEY] == {"model": "SCLDM", "seed": 3}
    assert ("log1p" in adata.uns) is is_log1p  # which tells scanpy that values are logarithms
    assert "new" not in var
