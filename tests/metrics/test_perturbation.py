"""Energy distance and correlation of mean changes: closed forms."""

import math

import numpy as np
import pytest
from anndata import AnnData
from scipy.stats import norm

from scgen_diffusion.metrics import energy_distance, mean_change_correlation
from scgen_diffusion.metrics._perturbation import Effect, GeneMoments


def rng(seed=0):
    return np.random.default_rng(seed)


def mean_absolute(mean, sd):
    """Return the mean absolute value of a Gaussian."""
    return sd * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / (2 * sd**2)) + mean * (1 - 2 * norm.cdf(-mean / sd))


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_energy_distance_of_translated_gaussians_is_the_closed_form(shift):
    a, b = rng(1).normal(size=(2000, 1)), rng(2).normal(shift, size=(2000, 1))
    expected = 2 * mean_absolute(shift, math.sqrt(2)) - 2 * mean_absolute(0, math.sqrt(2))
    # the estimate of 2000 cells has a standard error below 0.07 at the largest shift
    assert energy_distance(a, b) == pytest.approx(expected, abs=0.01 + 0.05 * shift)


def test_energy_distance_by_hand():
    # 2 * (2 + 4 + 1 + 3) / 4 - 1 - 2
    assert energy_distance(np.array([[0.0], [1.0]]), np.array([[2.0], [4.0]])) == 2


def test_energy_distance_of_few_cells_is_not_biased():
    draws = [energy_distance(rng([3, i]).normal(size=(5, 2)), rng([4, i]).normal(size=(5, 2))) for i in range(2000)]
    standard_error = np.std(draws) / math.sqrt(len(draws))
    assert abs(np.mean(draws)) < 4 * standard_error
    assert standard_error < 0.02  # with every cell's distance to itself, the mean would be 0.7


def test_energy_distance_sees_a_spread_that_means_do_not():
    a, b = rng(1).normal(size=(1000, 2)), rng(2).normal(0, 2, size=(1000, 2))
    assert energy_distance(a, b) > 0.2


def test_energy_distance_needs_two_cells_of_the_same_features():
    with pytest.raises(ValueError, match="at least two cells"):
        energy_distance(np.ones((1, 3)), np.ones((4, 3)))
    with pytest.raises(ValueError, match="3 features and `synthetic` 2"):
        energy_distance(np.ones((4, 3)), np.ones((4, 2)))


def poisson_cells(rate, seed, n_cells=300):
    return AnnData(rng(seed).poisson(rate, (n_cells, len(rate))).astype(np.float32))


def balanced_change(n_genes=40):
    """Return rates of which five genes rise and five fall, so that totals stay."""
    rate = np.full(n_genes, 6.0)
    rate[:5], rate[5:10] = 11.0, 1.0
    return rate


def test_the_true_change_correlates_and_its_opposite_does_the_reverse():
    base, changed = np.full(40, 6.0), balanced_change()
    control, real = poisson_cells(base, 0), poisson_cells(changed, 1)
    assert mean_change_correlation(real, poisson_cells(changed, 2), control) > 0.99
    assert (
        mean_change_correlation(real, poisson_cells(2 * base - changed, 3), control) < -0.5
    )  # a logarithm falls by more than it rises


def test_no_change_at_all_scores_zero():
    control = poisson_cells(np.full(40, 6.0), 0)
    assert mean_change_correlation(poisson_cells(balanced_change(), 1), control, control) == 0


def test_counts_and_their_logarithms_score_the_same():
    base, changed = np.full(40, 6.0), balanced_change()
    cells = [poisson_cells(changed, 1), poisson_cells(changed, 2), poisson_cells(base, 0)]
    logs = [adata.copy() for adata in cells]
    for adata in logs:
        adata.X = np.log1p(adata.X / adata.X.sum(axis=1, keepdims=True) * 1e3)
        adata.uns["log1p"] = {}
    assert mean_change_correlation(*cells) == pytest.approx(mean_change_correlation(*logs), abs=1e-6)


def test_genes_are_aligned_by_name():
    base, changed = np.full(40, 6.0), balanced_change()
    real, predicted, control = poisson_cells(changed, 1), poisson_cells(changed, 2), poisson_cells(base, 0)
    reordered = predicted[:, ::-1].copy()
    assert mean_change_correlation(real, reordered, control) == mean_change_correlation(real, predicted, control)


def test_the_top_genes_are_those_that_really_change():
    base, changed = np.full(40, 6.0), balanced_change()
    moments = [GeneMoments(np.log(rate), rate, 100) for rate in (changed, base)]
    assert set(Effect(*moments).top_genes(10)) == set(range(10))


def test_a_noisy_gene_ranks_lower_by_welch_than_by_change():
    real = GeneMoments(np.array([3.0, 2.0, 0.0]), np.array([100.0, 0.1, 1.0]), 20)
    control = GeneMoments(np.zeros(3), np.array([100.0, 0.1, 1.0]), 20)
    assert list(Effect(real, control).top_genes(2, "change")) == [0, 1]
    assert list(Effect(real, control).top_genes(2, "welch")) == [1, 0]


def test_only_the_top_genes_count_when_asked():
    base, changed = np.full(40, 6.0), balanced_change()
    wrong_elsewhere = changed.copy()
    wrong_elsewhere[10:25], wrong_elsewhere[25:40] = 11.0, 1.0
    cells = poisson_cells(changed, 1), poisson_cells(wrong_elsewhere, 2), poisson_cells(base, 0)
    assert mean_change_correlation(*cells, n_top=10) > 0.95
    assert mean_change_correlation(*cells) < 0.7


@pytest.mark.parametrize(("arguments", "message"), [({"n_top": 1}, "n_top"), ({"n_top": 3, "ranking": "p"}, "ranking")])
def test_a_bad_argument_is_named(arguments, message):
    cells = [poisson_cells(np.full(5, 6.0), seed) for seed in range(3)]
    with pytest.raises(ValueError, match=f"`{message}`"):
        mean_change_correlation(*cells, **arguments)


def test_arrays_of_other_genes_are_refused():
    counts = np.ones((4, 3))
    with pytest.raises(ValueError, match="`real` has 3 genes and `control` 2"):
        mean_change_correlation(counts, counts, np.ones((4, 2)))
