"""Log-normalised profiles."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
import torch

from scgen_diffusion.module import TARGET_SUM, log_profile, total_counts


@pytest.fixture(scope="module")
def counts():
    return torch.poisson(torch.rand(50, 30) * 5, generator=torch.Generator().manual_seed(0)) + torch.eye(50, 30)


def test_a_profile_sums_to_ten_thousand_counts(counts):
    sums = log_profile(counts, "counts").expm1().sum(1)

    torch.testing.assert_close(sums, torch.full((50,), TARGET_SUM), rtol=1e-5, atol=0)  # single precision


def test_a_profile_is_what_scanpy_gives(counts):
    import anndata

    adata = anndata.AnnData(counts.numpy().copy())
    sc.pp.normalize_total(adata, target_sum=TARGET_SUM)
    sc.pp.log1p(adata)

    np.testing.assert_allclose(log_profile(counts, "counts").numpy(), adata.X, rtol=1e-5)  # single precision


def test_zeros_stay_exact_and_only_they_are_zero(counts):
    assert torch.equal(log_profile(counts, "counts") == 0, counts == 0)


def test_a_profile_does_not_depend_on_depth(counts):
    torch.testing.assert_close(log_profile(7 * counts, "counts"), log_profile(counts, "counts"))


def test_log_values_stay_as_they_are(counts):
    assert log_profile(counts, "log1p") is counts


def test_a_cell_without_counts_has_a_total_of_one_and_a_profile_of_zeros():
    empty = torch.zeros(1, 4)

    assert total_counts(empty).tolist() == [[1.0]]
    assert log_profile(empty, "counts").tolist() == [[0.0] * 4]
