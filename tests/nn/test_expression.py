"""Log-normalised profiles."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import scanpy as sc
import torch

from scgen_diffusion.nn import TARGET_SUM, log_profile, total_counts


@pytest.fixture(scope="module")
def counts():
    return torch.poisson(torch.rand(50, 30) * 5, generator=torch.Generator().manual_seed(0)) + torch.eye(50, 30)


def test_a_profile_is_what_scanpy_gives(counts):
    adata = anndata.AnnData(counts.numpy().copy())
    sc.pp.normalize_total(adata, target_sum=TARGET_SUM)
    sc.pp.log1p(adata)

    found = log_profile(counts, "counts")
    np.testing.assert_allclose(found.numpy(), adata.X, rtol=1e-5)  # single precision
    assert torch.equal(found == 0, counts == 0)
    assert log_profile(found, "log1p") is found


def test_a_cell_without_counts_has_a_total_of_one_and_a_profile_of_zeros():
    empty = torch.zeros(1, 4)

    assert total_counts(empty).tolist() == [[1.0]]
    assert log_profile(empty, "counts").tolist() == [[0.0] * 4]
