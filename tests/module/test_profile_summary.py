"""What is known of each gene before training, against the plain formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgen_diffusion.module._profiles import ProfileSummary


def profiles(n_cells=40, n_genes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n_cells, n_genes, generator=generator) * 5 + 0.1
    x = x * (torch.rand(n_cells, n_genes, generator=generator) < torch.linspace(0.2, 1, n_genes))
    x[:, 0] = 1.5  # expressed, and constant
    x[:, 1] = 0
    x[-1] = 0  # a cell without expression, in a batch of its own at times
    return x


@given(st.integers(0, 99), st.lists(st.integers(1, 39), max_size=3))
@settings(max_examples=25, deadline=None)
def test_a_summary_is_that_of_the_cells_however_they_are_batched(seed, cuts):
    x = profiles(seed=seed)

    summary = ProfileSummary.of(x.tensor_split(sorted(set(cuts))))

    torch.testing.assert_close(summary.frequency, (x > 0).float().mean(0))
    for gene in (0, 2, 6):
        expressed = x[:, gene][x[:, gene] > 0]
        if len(expressed):
            torch.testing.assert_close(summary.expressed_mean[gene], expressed.mean())
            # the difference of two means of squares, rounded to single precision
            torch.testing.assert_close(summary.expressed_std[gene], expressed.std(correction=0), atol=1e-3, rtol=1e-4)
    assert summary.smallest == x[x > 0].min()


def test_a_gene_that_no_cell_expresses_has_the_mean_of_all_and_no_spread():
    x = profiles()

    summary = ProfileSummary.of([x])

    assert summary.frequency[1] == 0
    torch.testing.assert_close(summary.expressed_mean[1], x[x > 0].mean())
    assert summary.expressed_std[1] == 0


@pytest.mark.parametrize("zero", [0.0, -1.0, -10.0])
def test_moments_are_those_of_cells_with_that_value_for_zeros(zero):
    x = profiles()
    replaced = torch.where(x == 0, zero, x)

    mean, std = ProfileSummary.of([x]).moments(zero)

    torch.testing.assert_close(mean, replaced.mean(0), atol=1e-5, rtol=1e-5)  # single precision
    torch.testing.assert_close(std, replaced.std(0, correction=0), atol=1e-3, rtol=1e-4)
