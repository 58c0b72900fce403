"""Counts under another mean: the right distribution, and as much of the cell kept as possible."""

import numpy as np
import pytest
import torch

from scgen_diffusion.diffusion import counterfactual_counts
from scgen_diffusion.diffusion._count_draws import draw_negative_binomial

N_CELLS = 40_000


def carried(mean, new_mean, theta=2.0, seed=0):
    """Draw counts of one mean, and carry them over to another."""
    generator = torch.Generator().manual_seed(seed)
    mean, new_mean, theta = (torch.full((N_CELLS,), value) for value in (mean, new_mean, theta))
    first, second = torch.rand(2, N_CELLS, generator=generator, dtype=torch.float64)
    counts = draw_negative_binomial(first, mean, theta)
    return counts, counterfactual_counts(second, counts, mean, new_mean, theta)


@pytest.mark.parametrize("new_mean", [0.5, 3.0, 9.0])
def test_counts_follow_the_negative_binomial_of_the_new_mean(new_mean):
    _, new = carried(3.0, new_mean)

    variance = new_mean + new_mean**2 / 2.0
    assert float(new.mean()) == pytest.approx(new_mean, abs=5 * (variance / N_CELLS) ** 0.5)
    assert float(new.var()) == pytest.approx(variance, rel=0.08)  # five standard errors of the largest


def test_a_cell_whose_means_stay_is_itself():
    counts, new = carried(3.0, 3.0)

    torch.testing.assert_close(new, counts)


def test_molecules_of_a_gene_whose_mean_is_rounded_to_zero_stay():
    zero, half = torch.zeros(1), torch.full((1,), 0.5, dtype=torch.float64)

    assert counterfactual_counts(half, zero + 5, zero, zero, zero + 1) == 5


def test_molecules_are_only_taken_away_or_only_added():
    counts, fewer = carried(3.0, 1.0)
    _, more = carried(3.0, 9.0)

    assert bool((fewer <= counts).all())
    assert bool((more >= counts).all())


def test_a_cell_that_had_more_than_expected_has_so_afterwards():
    counts, new = carried(3.0, 9.0)

    assert np.corrcoef(counts, new)[0, 1] > 0.7  # redrawn counts: 0


def test_a_gene_that_was_not_expected_can_appear():
    counts, new = carried(1e-6, 5.0)

    assert float(counts.sum()) == 0
    assert float(new.mean()) == pytest.approx(5.0, rel=0.05)
