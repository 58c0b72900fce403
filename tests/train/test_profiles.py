"""The order of genes by correlation, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scgen_diffusion.train._profiles import correlations, order_by_correlation


def in_batches(x, cuts=(5, 30)):
    return np.split(x.astype(np.float32), cuts)


def groups_of_genes(rng, sizes, n_cells=200):
    """Return cells in which the genes of a group follow one factor, and the group of each gene, shuffled."""
    factors = rng.normal(size=(n_cells, len(sizes)))
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return factors[:, group] + 0.1 * rng.normal(size=(n_cells, len(group))), group


def test_correlations_are_those_of_numpy_however_cells_are_batched():
    x = np.random.default_rng(0).gamma(1.0, 2.0, (60, 7))

    np.testing.assert_allclose(correlations(in_batches(x)), np.corrcoef(x.T), atol=1e-5)  # values in single precision


def test_a_gene_that_is_never_expressed_correlates_with_none():
    x = np.random.default_rng(0).gamma(1.0, 2.0, (60, 4))
    x[:, 2] = 0

    found = correlations(in_batches(x))

    assert np.isfinite(found).all()
    assert not found[2].any()
    assert not found[:, 2].any()


@given(st.integers(0, 1000), st.lists(st.integers(2, 6), min_size=2, max_size=5))
@settings(max_examples=25, deadline=None)
def test_genes_of_a_group_lie_together(seed, sizes):
    x, group = groups_of_genes(np.random.default_rng(seed), sizes)

    order = order_by_correlation(in_batches(x))

    assert sorted(order) == list(range(len(group)))
    assert (np.diff(group[order]) != 0).sum() == len(sizes) - 1  # each group once


@pytest.mark.parametrize("n_genes", [2, 3])
def test_few_genes_and_constant_ones_have_an_order(n_genes):
    assert sorted(order_by_correlation([np.zeros((5, n_genes), dtype=np.float32)])) == list(range(n_genes))
