"""What is known of each gene before training, against the plain formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgen_diffusion.module import ProfileArchitecture, ProfileModule
from scgen_diffusion.module._profiles import summarise_profiles


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

    frequency, mean, std, smallest = summarise_profiles(x.tensor_split(sorted(set(cuts))))

    torch.testing.assert_close(frequency, (x > 0).float().mean(0))
    for gene in (0, 2, 6):
        expressed = x[:, gene][x[:, gene] > 0]
        if len(expressed):
            torch.testing.assert_close(mean[gene], expressed.mean())
            # the difference of two means of squares, rounded to single precision
            torch.testing.assert_close(std[gene], expressed.std(correction=0), atol=1e-3, rtol=1e-4)
    assert smallest == x[x > 0].min()
    torch.testing.assert_close((frequency[1], mean[1], std[1]), (torch.tensor(0.0), x[x > 0].mean(), torch.tensor(0.0)))


@pytest.mark.parametrize("zero", [None, -1.0, -10.0])
def test_values_are_scaled_by_the_moments_of_cells_with_that_value_for_zeros(zero):
    x = profiles()
    replaced = torch.where(x == 0, zero or 0.0, x)
    module = ProfileModule(x.shape[1], input_values="log1p", architecture=ProfileArchitecture(zero_value=zero))

    module.start_from([x])

    torch.testing.assert_close(module.shift, replaced.mean(0), atol=1e-5, rtol=1e-5)  # single precision
    std = replaced.std(0, correction=0).clamp(min=0.05)
    torch.testing.assert_close(module.scale, std, atol=1e-3, rtol=1e-4)
