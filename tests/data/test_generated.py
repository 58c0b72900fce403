"""Assembling the AnnData that a model returns."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgen_diffusion.data import PROVENANCE_KEY, build_anndata


@pytest.mark.parametrize("is_log1p", [False, True])
def test_cells_have_provenance_and_genes_of_their_own(is_log1p):
    x, obs, var = np.ones((2, 3), np.float32), pd.DataFrame(index=["a", "b"]), pd.DataFrame(index=["x", "y", "z"])

    provenance = {"model": "SCLDM", "seed": 3, "values": "log1p" if is_log1p else "counts"}
    adata = build_anndata(x, obs, var, provenance)
    adata.var["new"] = 1

    assert adata.uns[PROVENANCE_KEY] == provenance
    assert ("log1p" in adata.uns) is is_log1p  # which tells scanpy that values are logarithms
    assert "new" not in var
