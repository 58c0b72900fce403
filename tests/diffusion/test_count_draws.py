"""Counts from uniform numbers: the exact distribution, and every count a function of its own number."""

import numpy as np
import pytest
import torch
from scipy import stats

from scgen_diffusion.diffusion import (
    _count_draws,
    counterfactual_counts,
    draw_binomial,
    draw_negative_binomial,
    keep_molecules,
)

N = 100_000


def uniforms(n=N, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chi_square(counts, distribution):
    """Return the p-value of counts under a distribution, over bins of 20 expected counts or more."""
    edges = np.unique(distribution.ppf(np.linspace(0, 1, 60)[1:-1]))
    cumulative = np.concatenate([[0], distribution.cdf(edges), [1]])
    expected = np.diff(cumulative) * len(counts)
    observed = np.histogram(counts, bins=[-1, *(edges + 0.5), np.inf])[0]
    keep = expected > 20
    expected = np.append(expected[keep], expected[~keep].sum())
    observed = np.append(observed[keep], observed[~keep].sum())
    statistic = ((observed - expected) ** 2 / np.maximum(expected, 1)).sum()
    return stats.chi2.sf(statistic, max(keep.sum() - 1, 1))


NEGATIVE_BINOMIALS = [(0.01, 1.0), (0.5, 0.05), (1.0, 2.0), (10.0, 0.7), (15.0, 1e3), (20.0, 0.1), (40.0, 5.0)]
NEGATIVE_BINOMIALS += [(500.0, 1e5), (5.0, 0.3)]
MEANS = [0.01, 1.0, 10.0, 15.9, 16.1, 200.0, 5000.0]
BINOMIALS = [(1, 0.3), (20, 0.01), (20, 0.9), (1000, 0.01), (100, 0.3), (5000, 0.5), (40, 0.55)]


@pytest.mark.parametrize(
    ("draw", "parameters", "distribution"),
    [
        *[(draw_negative_binomial, pair, stats.nbinom(pair[1], pair[1] / sum(pair))) for pair in NEGATIVE_BINOMIALS],
        *[(draw_negative_binomial, (mean, 1e12), stats.poisson(mean)) for mean in MEANS],
        *[(draw_binomial, pair, stats.binom(*pair)) for pair in BINOMIALS],
    ],
)
def test_counts_follow_their_distribution(draw, parameters, distribution):
    dtype = torch.float64 if draw is draw_binomial else torch.float32
    counts = draw(uniforms(), *(torch.full((N,), float(value), dtype=dtype) for value in parameters)).numpy()
    assert chi_square(counts, distribution) > 1e-3  # a fixed seed: never by chance


def test_certain_and_impossible_trials_are_what_they_are():
    n = torch.tensor([0.0, 7.0, 900.0]).double()
    assert torch.equal(draw_binomial(uniforms(3), n, torch.zeros(3).double()), torch.zeros(3).double())
    assert torch.equal(draw_binomial(uniforms(3), n, torch.ones(3).double()), n)


def test_inversion_is_that_of_the_distribution_function():
    distribution = stats.nbinom(2.0, 2 / (2 + 3))
    zero = distribution.pmf(0)  # numbers from 1 - p0 on mean zero, the others count up
    tail = 1 - zero - torch.logspace(-5, -8, 4, dtype=torch.float64)
    u = torch.cat([torch.linspace(0, 1, 2001, dtype=torch.float64)[:-1], tail])

    counts = draw_negative_binomial(u, torch.full((2004,), 3.0), torch.full((2004,), 2.0)).numpy()

    expected = np.where(u >= 1 - zero, 0, distribution.ppf(np.clip(u.numpy() + zero, 0, 1 - 1e-12)))
    near_a_jump = np.abs(distribution.cdf(expected) - u.numpy() - zero) < 1e-9
    np.testing.assert_array_equal(counts[~near_a_jump], expected[~near_a_jump])


def test_rare_counts_are_as_rare_as_they_should_be():
    u = 2.0**-40 * uniforms()  # single precision has nothing between 0 and 6e-8
    counts = draw_negative_binomial(u, torch.full((N,), 2.0**-41), torch.ones(N))
    assert counts.mean().item() == pytest.approx(0.5, abs=0.01)  # half of these numbers lie below the probability


@pytest.mark.parametrize("seed", range(20))
def test_any_counts_alone_are_what_they_are_among_others_and_in_parts(seed, monkeypatch):
    rng = torch.Generator().manual_seed(seed)
    mu, theta = (10 ** (torch.rand(5000, generator=rng) * 5 - shift) for shift in (1, 2))
    u, n = uniforms(5000, seed), int(torch.randint(1, 200, (1,), generator=rng))
    chosen = torch.randperm(5000, generator=rng)[:n]
    alone = draw_negative_binomial(u[chosen], mu[chosen], theta[chosen])
    for part_size in (_count_draws.PART_SIZE, 700):
        monkeypatch.setattr(_count_draws, "PART_SIZE", part_size)
        assert torch.equal(draw_negative_binomial(u, mu, theta)[chosen], alone)


@pytest.mark.parametrize("theta", [np.exp(-80.0), 1e-6, 1e8, np.exp(80.0)], ids=str)
@pytest.mark.parametrize("mu", [1e-8, 1.0, 1e4])
def test_extreme_parameters_give_finite_counts_soon(mu, theta):
    counts = draw_negative_binomial(uniforms(1000), torch.full((1000,), mu), torch.full((1000,), float(theta)))
    assert counts.isfinite().all()
    assert (counts >= 0).all()
    assert (counts == counts.round()).all()
    if theta > 1e7:
        assert counts.mean().item() == pytest.approx(mu, abs=5 * (mu / 1000) ** 0.5 + 1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("other", [1.0, 40.0])
def test_parameters_that_are_not_finite_are_an_error_that_names_them(bad, other):
    u, good, broken = uniforms(3), torch.full((3,), other), torch.tensor([other, bad, other])
    for mu, theta, name in [(broken, good, "`mu`"), (good, broken, "`theta`")]:
        with pytest.raises(FloatingPointError, match=name):
            draw_negative_binomial(u, mu, theta)


def test_invalid_counts_become_nan_and_sampling_ends():
    counts = torch.tensor([[3.0, torch.nan, torch.inf, -2.0, 40.0]])
    thinned = keep_molecules(counts, torch.tensor([[0.5]]), torch.Generator().manual_seed(0))
    assert thinned.isnan().tolist() == [[False, True, True, True, False]]
    assert (thinned[0, [0, 4]] <= counts[0, [0, 4]]).all()


def test_each_cell_is_thinned_binomially_by_its_own_share():
    keep, counts = torch.tensor([[0.0], [0.25], [0.9], [1.0]]), torch.full((4, 20_000), 6.0)
    before = counts.clone()

    thinned = keep_molecules(counts, keep, torch.Generator().manual_seed(0))

    assert torch.equal(counts, before)
    assert (thinned[0] == 0).all()
    assert torch.equal(thinned[3], counts[3])
    for share, cell in zip((0.25, 0.9), thinned[1:3], strict=True):
        found, expected = torch.bincount(cell.long(), minlength=7), stats.binom.pmf(range(7), 6, share) * 20_000
        few = expected[:3].sum()  # of which hardly any are expected at 0.9
        assert stats.chisquare([found[:3].sum(), *found[3:]], [few, *expected[3:]]).pvalue > 1e-4


def carried(mean, new_mean, theta=2.0, n=40_000):
    """Draw counts of one mean, and carry them over to another."""
    mean, new_mean, theta = (torch.full((n,), value) for value in (mean, new_mean, theta))
    first, second = uniforms(2 * n).view(2, n)
    counts = draw_negative_binomial(first, mean, theta)
    return counts, counterfactual_counts(second, counts, mean, new_mean, theta)


@pytest.mark.parametrize("new_mean", [0.5, 3.0, 9.0])
def test_carried_counts_follow_the_negative_binomial_of_the_new_mean_and_keep_residuals(new_mean):
    counts, new = carried(3.0, new_mean)
    variance = new_mean + new_mean**2 / 2.0
    assert float(new.mean()) == pytest.approx(new_mean, abs=5 * (variance / len(new)) ** 0.5)
    assert float(new.var()) == pytest.approx(variance, rel=0.08)  # five standard errors of the largest
    assert ((new - counts) * (new_mean - 3) >= 0).all()  # molecules are only taken away, or only added
    assert np.corrcoef(counts, new)[0, 1] > (0.7 if new_mean >= 3 else 0.5)  # redrawn counts: 0
    assert new_mean != 3.0 or torch.equal(counts, new)


def test_a_gene_that_was_not_expected_can_appear_and_one_that_is_not_expected_any_more_can_stay():
    counts, new = carried(1e-6, 5.0)
    assert float(counts.sum()) == 0
    assert float(new.mean()) == pytest.approx(5.0, rel=0.05)
    zero, half = torch.zeros(1), torch.full((1,), 0.5, dtype=torch.float64)
    assert counterfactual_counts(half, zero + 5, zero, zero, zero + 1) == 5  # its means are rounded to zero
