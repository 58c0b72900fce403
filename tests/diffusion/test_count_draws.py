"""Counts from uniform numbers: the exact distribution, and every count a function of its own number."""

import numpy as np
import pytest
import torch
from scipy import stats

from scgen_diffusion.diffusion import _count_draws, keep_molecules
from scgen_diffusion.diffusion._count_draws import Stream, draw_binomial, draw_negative_binomial, draw_poisson

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


@pytest.mark.parametrize(
    ("mu", "theta"),
    [
        (0.01, 1.0),
        (0.5, 0.05),
        (1.0, 2.0),
        (10.0, 0.7),
        (15.0, 1e3),
        (20.0, 0.1),
        (40.0, 5.0),
        (500.0, 1e5),
        (5.0, 0.3),
    ],
)
def test_counts_follow_the_negative_binomial(mu, theta):
    counts = draw_negative_binomial(uniforms(), torch.full((N,), mu), torch.full((N,), theta)).numpy()

    assert chi_square(counts, stats.nbinom(theta, theta / (theta + mu))) > 1e-3  # a fixed seed: never by chance


@pytest.mark.parametrize("mean", [0.01, 1.0, 10.0, 15.9, 16.1, 200.0, 5000.0])
def test_counts_follow_the_poisson_distribution(mean):
    counts = draw_poisson(uniforms(), torch.full((N,), mean)).numpy()

    assert chi_square(counts, stats.poisson(mean)) > 1e-3


@pytest.mark.parametrize(
    ("n", "p"), [(1, 0.3), (20, 0.01), (20, 0.9), (1000, 0.01), (100, 0.3), (5000, 0.5), (40, 0.55)]
)
def test_counts_follow_the_binomial_distribution(n, p):
    trials, probability = torch.full((N,), float(n)).double(), torch.full((N,), p).double()

    assert chi_square(draw_binomial(uniforms(), trials, probability).numpy(), stats.binom(n, p)) > 1e-3


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


def test_a_count_does_not_depend_on_the_others():
    mu, theta = torch.logspace(-3, 3, 600).view(3, 200), torch.tensor([[0.05], [2.0], [300.0]]).expand(3, 200)
    u = uniforms(600).view(3, 200)

    together = draw_negative_binomial(u, mu, theta)

    alone = torch.stack([draw_negative_binomial(*row) for row in zip(u, mu, theta, strict=True)])
    assert torch.equal(together, alone)
    backwards = draw_negative_binomial(u.flip(1), mu.flip(1), theta.flip(1)).flip(1)
    assert torch.equal(together, backwards)


LARGE = [(mu, theta) for mu in (17.0, 40.0, 3000.0) for theta in (0.05, 0.5, 0.99, 1.0, 2.0, 5.0)]


@pytest.mark.parametrize(("mu", "theta"), LARGE)
def test_a_large_count_does_not_depend_on_how_long_the_others_take(mu, theta):
    u = uniforms(20_000)  # enough for a rejection of many rounds

    together = draw_negative_binomial(u, torch.full_like(u, mu).float(), torch.full_like(u, theta).float())

    alone = draw_negative_binomial(u[:50], torch.full((50,), mu), torch.full((50,), theta))
    assert torch.equal(together[:50], alone)


@pytest.mark.parametrize("seed", range(20))
def test_any_counts_alone_are_what_they_are_among_others(seed):
    rng = torch.Generator().manual_seed(seed)
    mu, theta = (10 ** (torch.rand(5000, generator=rng) * 5 - shift) for shift in (1, 2))
    u, n = uniforms(5000, seed), int(torch.randint(1, 200, (1,), generator=rng))
    chosen = torch.randperm(5000, generator=rng)[:n]

    pairs = [
        (draw_negative_binomial(u, mu, theta), draw_negative_binomial(u[chosen], mu[chosen], theta[chosen])),
        (draw_poisson(u, mu), draw_poisson(u[chosen], mu[chosen])),
    ]

    for together, alone in pairs:
        assert torch.equal(together[chosen], alone)


def test_many_cells_are_drawn_in_parts_with_the_same_result(monkeypatch):
    mu, theta, u = torch.full((50, 40), 3.0), torch.ones(50, 40), uniforms(2000).view(50, 40)
    whole = draw_negative_binomial(u, mu, theta)

    monkeypatch.setattr("scgen_diffusion.diffusion._count_draws.PART_SIZE", 100)

    assert torch.equal(draw_negative_binomial(u, mu, theta), whole)


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

    for mu, theta, name in [(broken, good, "`mu`"), (good, broken, "`theta`"), (broken, broken, "`mu` and `theta`")]:
        with pytest.raises(FloatingPointError, match=f"{name} of the .* model has diverged. Train again"):
            draw_negative_binomial(u, mu, theta)
    with pytest.raises(FloatingPointError, match="`mean` of the"):
        draw_poisson(u, broken)


def test_where_looking_would_mean_to_wait_such_counts_are_no_numbers(monkeypatch):
    monkeypatch.setattr(_count_draws, "finite_mask", lambda **values: torch.stack([*values.values()]).isfinite().all(0))
    nan, inf = float("nan"), float("inf")
    mu, theta = torch.tensor([nan, inf, 40.0, 40.0, 40.0]), torch.tensor([1.0, 1.0, nan, inf, 1.0])

    counts = draw_negative_binomial(uniforms(5), mu, theta)

    assert counts.isnan().tolist() == [True] * 4 + [False]
    assert counts[4] == draw_negative_binomial(uniforms(5)[4:], mu[4:], theta[4:])
    assert draw_poisson(uniforms(5), mu).isnan().tolist() == [True] * 2 + [False] * 3


def test_no_genes_are_no_counts():
    empty = torch.zeros(3, 0)

    assert draw_poisson(empty.double(), empty).shape == (3, 0)


def test_numbers_that_follow_from_one_number_are_uniform_and_independent():
    stream = Stream(uniforms(20_000))
    drawn = np.stack([stream.draw().numpy() for _ in range(5)])

    assert min(stats.kstest(numbers, "uniform").pvalue for numbers in drawn) > 1e-3
    assert np.abs(np.corrcoef(drawn)[np.triu_indices(5, 1)]).max() < 5 / 20_000**0.5
    assert stats.kstest(stream.draw_normal().numpy(), "norm").pvalue > 1e-3


def test_neighbouring_numbers_have_streams_of_their_own():
    keys = torch.arange(20_000).double() * 2.0**-53
    drawn = Stream(keys).draw().numpy()

    assert stats.kstest(drawn, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / 20_000**0.5


def test_invalid_counts_become_nan_and_sampling_ends():
    counts = torch.tensor([[3.0, torch.nan, torch.inf, -2.0, 40.0]])

    thinned = keep_molecules(counts, torch.tensor([[0.5]]), torch.Generator().manual_seed(0))

    assert thinned.isnan().tolist() == [[False, True, True, True, False]]
    assert (thinned[0, [0, 4]] <= counts[0, [0, 4]]).all()
