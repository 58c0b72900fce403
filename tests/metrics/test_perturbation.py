"""Effects of perturbations: shares that can be counted by hand, moments, and what holds whatever the cells are."""

import math

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from hypothesis import given, settings
from scipy.stats import false_discovery_control, norm, ttest_ind
from sklearn.preprocessing import normalize

from scgen_diffusion.metrics import (
    Effect,
    de_direction,
    de_jaccard,
    de_overlap,
    effects,
    energy_distance,
    expression_of,
    gene_changes,
    mean_change_correlation,
    mean_change_debiased_error,
    mean_change_error,
    mean_change_slope,
    variance_error,
)
from scgen_diffusion.metrics._perturbation import GeneMoments, predicted_effect, rank_score


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


def test_energy_distance_of_few_cells_is_not_biased():
    draws = [energy_distance(rng([3, i]).normal(size=(5, 2)), rng([4, i]).normal(size=(5, 2))) for i in range(500)]
    standard_error = np.std(draws) / math.sqrt(len(draws))
    assert abs(np.mean(draws)) < 4 * standard_error
    assert standard_error < 0.04  # with every cell's distance to itself, the mean would be 0.7


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
    assert mean_change_correlation(*effects(real, poisson_cells(changed, 2), control)) > 0.99
    opposite = poisson_cells(2 * base - changed, 3)
    assert mean_change_correlation(*effects(real, opposite, control)) < -0.5  # a logarithm falls by more than it rises


def test_only_the_top_genes_count_when_asked():
    base, changed = np.full(40, 6.0), balanced_change()
    wrong_elsewhere = changed.copy()
    wrong_elsewhere[10:25], wrong_elsewhere[25:40] = 11.0, 1.0
    cells = poisson_cells(changed, 1), poisson_cells(wrong_elsewhere, 2), poisson_cells(base, 0)
    assert mean_change_correlation(*effects(*cells), n_top=10) > 0.95
    assert mean_change_correlation(*effects(*cells)) < 0.7


def expression(rate, seed, n_cells=60, n_genes=30):
    counts = np.random.default_rng(seed).poisson(rate, (n_cells, n_genes))
    return expression_of(AnnData(counts.astype(np.float32)))


def test_statistics_and_calls_are_those_of_scipy():
    rate = np.where(np.arange(30) < 6, 3.0, 2.0)
    cells, control = expression(rate, 1), expression(2.0, 2)
    effect = Effect(GeneMoments.of(cells), GeneMoments.of(control))
    expected = ttest_ind(cells.values.toarray(), control.values.toarray(), equal_var=False)
    np.testing.assert_allclose(effect.welch_t, expected.statistic, atol=1e-4)  # values are stored in float32
    np.testing.assert_array_equal(effect.is_significant, false_discovery_control(expected.pvalue) <= 0.05)
    assert effect.is_significant.sum() in range(1, 30)


@pytest.mark.parametrize(("n_cells", "n_control"), [(10, 200), (200, 10), (30, 500), (100, 1000)])
def test_unseen_genes_of_few_cells_are_no_differential_genes(n_cells, n_control):
    rate = rng().gamma(0.3, 4.0, 200) + 0.02  # most genes are in few cells
    changed = np.where(np.arange(200) < 5, rate + 8, rate)
    n_found = []
    for i in range(50):
        control = expression(rate, [2, i], n_control, 200)
        null, shifted = (
            Effect(*map(GeneMoments.of, (expression(r, [1, i], n_cells, 200), control))) for r in (rate, changed)
        )
        n_found.append([null.is_significant.any(), shifted.is_significant[:5].sum()])
    share_of_runs, n_true = np.mean(n_found, axis=0)
    assert share_of_runs < 0.17  # 0.05 is expected; this is four standard errors of 50 runs above it
    assert n_true > 3.5


def test_a_gene_without_variance_is_not_ranked_by_rounding():
    n_genes, n_cells = 10, 50
    real = GeneMoments(np.r_[1.0, np.zeros(n_genes - 1)], np.full(n_genes, 0.5), n_cells)
    control = GeneMoments(np.zeros(n_genes), np.zeros(n_genes), n_cells)
    moved = predicted_effect(GeneMoments(np.r_[1.0, np.full(9, 1e-5)], np.zeros(n_genes), 10_000), real, control)
    assert moved.top_genes(2)[0] == 0
    np.testing.assert_array_equal(moved.is_significant, np.arange(n_genes) == 0)


def test_more_predicted_cells_do_not_make_more_differential_genes():
    rate = np.where(np.arange(30) < 6, 2.8, 2.0)
    real, control = GeneMoments.of(expression(rate, 1)), GeneMoments.of(expression(2.0, 2, n_cells=1_000))
    predicted = GeneMoments.of(expression(rate, 3, n_cells=3_000))
    assert (
        predicted_effect(predicted, real, control).is_significant.sum()
        < Effect(predicted, control).is_significant.sum()
    )


N_GENES = 40
UP, DOWN = 2.0, -2.0


def moments(changes, variance=0.5, n_cells=100):
    """Moments of cells of mean 3, with changes in some genes: 20 standard errors of the difference for 2.0."""
    mean = np.full(N_GENES, 3.0)
    mean[list(changes)] += list(changes.values())
    return GeneMoments(mean, np.full(N_GENES, variance), n_cells)


def effects_of(real, predicted):
    real, predicted, control = moments(real), moments(predicted), moments({})
    return Effect(real, control), predicted_effect(predicted, real, control)


TRUTH = {0: UP, 1: UP, 2: DOWN, 3: DOWN}


@pytest.mark.parametrize(
    ("predicted", "overlap", "jaccard", "direction"),
    [
        (TRUTH, 1, 1, 1),
        ({0: 0.9, 1: 0.8, 2: -0.7, 3: -0.6}, 1, 1, 1),  # smaller, and differential still
        ({gene: -change for gene, change in TRUTH.items()}, 1, 1, 0),
        ({0: UP, 1: UP}, 0.5, 0.5, 0.5),
        ({0: UP, 2: UP, 10: UP, 11: DOWN}, 0.5, 2 / 6, 0.25),
        ({10: UP, 11: UP, 12: UP, 13: UP}, 0, 0, 0),
        ({}, 0, 0, 0),
    ],
)
def test_shares_are_those_that_one_counts(predicted, overlap, jaccard, direction):
    pair = effects_of(TRUTH, predicted)
    assert de_overlap(*pair, n_top=4) == overlap
    assert de_jaccard(*pair) == pytest.approx(jaccard)
    assert de_direction(*pair) == direction


def draws(mean, seed, n_cells, n_genes=60):
    """Return Gaussian cells whose genes differ in variance."""
    return mean + np.linspace(0.5, 1.5, n_genes) * rng(seed).normal(size=(n_cells, n_genes))


def moments_of(cells, control_share=0.0):
    return GeneMoments(cells.mean(axis=0), cells.var(axis=0, ddof=1), len(cells), control_share=control_share)


def assert_mean(values, expected):
    """Assert that draws have a mean, up to four of its standard errors."""
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - expected) <= 4 * error
    return error


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_the_debiased_error_is_that_of_the_true_means_whatever_the_noise(share):
    changed = np.r_[np.full(10, 9.0), np.full(40, 5.0)]
    rate = 5.0 + share * (changed - 5.0)

    def cells(mean, seed, n_cells):
        return rng(seed).poisson(mean, (n_cells, 50))

    many = [expression_of(cells(mean, i, 20_000)) for i, mean in enumerate((changed, rate))]
    expected = mean_change_debiased_error(*effects(*many, many[0]))
    errors = []
    for i in range(300):
        real, predicted = cells(changed, [1, i], 15), cells(rate, [2, i], 40)
        errors.append(mean_change_debiased_error(*effects(real, predicted, real)))
    assert assert_mean(errors, expected) < 0.003
    if share == 1:
        assert min(errors) < 0
        naive = [(expression_of(cells(changed, [3, i], 15)).values.mean(0) - many[0].values.mean(0)) for i in range(20)]
        assert np.mean(np.square(naive)) > 0.01  # what it would be without the correction, for real cells alone


@pytest.mark.parametrize("from_control", [True, False])
@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0, 2.0])
def test_the_slope_is_the_true_one_with_few_cells_on_all_sides(slope, from_control):
    change = np.where(np.arange(60) < 20, 1.0, 0.0) * np.where(np.arange(60) % 2, 1, -1)
    found = []
    for i in range(300):
        control, real = draws(3.0, [0, i], 30), draws(3.0 + change, [1, i], 20)
        predicted = (control if from_control else draws(3.0, [2, i], 25)) + slope * change
        of_control = moments_of(control)
        pair = Effect(moments_of(real), of_control), Effect(moments_of(predicted, float(from_control)), of_control)
        found.append(mean_change_slope(*pair))
    # a ratio of estimates is biased by its squared relative error, 1 %
    assert assert_mean(np.array(found) - np.mean(found) * 0.01, slope) < 0.02


def test_independent_predictions_of_no_effect_have_no_slope_even_if_named_like_control_cells():
    found = []
    for i in range(100):
        sets = poisson_cells(balanced_change(), [0, i]), poisson_cells(np.full(40, 6.0), [1, i], n_cells=20)
        real, control, predicted = *sets, poisson_cells(np.full(40, 6.0), [2, i], n_cells=20)
        for cells in (control, predicted):
            cells.obs_names = [f"cell_{number}" for number in range(20)]
        found.append(mean_change_slope(*effects(real, predicted, control)))
    assert assert_mean(found, 0) < 0.01


def test_cells_that_say_so_share_the_noise_of_the_control_cells():
    base, changed = np.full(40, 6.0), balanced_change()
    control, real = poisson_cells(base, 0, n_cells=20), poisson_cells(changed, 1)
    control.obs_names = [f"AAA{i}-1" for i in range(20)]
    assert mean_change_slope(*effects(real, control, control)) == 0
    elsewhere, made = poisson_cells(base, 3), poisson_cells(base, 3)
    elsewhere.obs_names = [f"run-{i}-AAB{i % 20}-1" for i in range(300)]
    made.obs_names = [f"run-{i}-AAA{i % 20}-1" for i in range(300)]
    for cells in (elsewhere, made):
        cells.obs["drug_of_control"], cells.obs[0] = "none", "a column whose name is no text"
    slopes = [mean_change_slope(*effects(real, cells, control)) for cells in (elsewhere, made)]
    shared = expression_of(control).values.toarray().var(axis=0, ddof=1).sum() / 20
    change = expression_of(real).values.mean(axis=0) - expression_of(control).values.mean(axis=0)
    assert slopes[1] - slopes[0] == pytest.approx(shared / np.square(change).sum(), rel=0.1)


def test_without_a_clear_effect_there_is_no_slope():
    slopes = []
    for i in range(100):
        real, predicted, control = (moments_of(draws(3.0, [side, i], 20)) for side in range(3))
        slopes.append(mean_change_slope(Effect(real, control), Effect(predicted, control)))
    assert np.isnan(slopes).mean() > 0.9  # two standard errors leave 2.5 % of a normal distribution


def test_discrimination_of_right_equal_absent_and_permuted_predictions():
    def discrimination(real, predicted):
        return np.array(
            [rank_score(normalize(real), row, np.full(20, fill_value=True), own) for row, own in enumerate(predicted)]
        )

    real = rng(0).normal(size=(6, 20))
    assert discrimination(real, 3 * real).tolist() == [1] * 6
    assert discrimination(real, 0 * real).tolist() == [0.5] * 6
    assert discrimination(real, np.tile(real[0], (6, 1))).mean() == pytest.approx(0.5)
    shifted = [discrimination(real, np.roll(real, k, axis=0)).mean() for k in range(6)]
    assert np.mean(shifted) == pytest.approx(0.5)  # every prediction was given to every perturbation once
    assert np.isnan(discrimination(real[:1], real[:1])).all()


def test_without_an_effect_in_real_cells_nothing_can_be_said():
    pair = effects_of({}, TRUTH)
    assert np.isnan([de_overlap(*pair, n_top=4), de_jaccard(*pair), de_direction(*pair)]).all()


counts = st.integers(0, 2**32 - 1).map(
    lambda seed: [
        np.random.default_rng([seed, i]).poisson(rate, (12, 8)) + (rate == 0) for i, rate in enumerate((1.0, 2.0, 0.7))
    ]
)


@given(counts, st.integers(2, 20))
@settings(max_examples=40, deadline=None)
def test_shares_stay_within_zero_and_one_and_a_perfect_prediction_has_all(cells, n_top):
    real, predicted, control = cells
    pair, same = effects(real, predicted, control), effects(real, real, control)
    figures = [de_overlap(*pair, n_top=n_top), de_jaccard(*pair), de_direction(*pair)]
    assert all(np.isnan(figure) or 0 <= figure <= 1 for figure in figures)
    assert de_overlap(*same, n_top=n_top) in {1.0}
    for perfect in (de_jaccard(*same), de_direction(*same)):
        assert np.isnan(perfect) or perfect == 1


def test_the_variance_error_by_hand():
    def cells(first):
        return AnnData(np.array(first, dtype=np.float32))

    # cells (1, 3), (3, 1) have log1p values 2500 and 7500 of 10 000; cells that are all (2, 2) have no variance
    spread, none = cells([[1, 3], [3, 1]]), cells([[2, 2], [2, 2]])
    expected = (np.log1p(7_500) - np.log1p(2_500)) ** 2 / 2
    error = variance_error(*effects(spread, none, none))
    assert error == pytest.approx(expected, rel=1e-4)  # squares of float32 values near 9


def test_the_table_of_genes_has_the_values_behind_the_figures():
    rng = np.random.default_rng(0)
    rates = np.where(np.arange(20) < 4, [[30.0], [25.0], [10.0]], 10.0)
    real, predicted, control = (AnnData(rng.poisson(rate, (60, 20)).astype(np.float32)) for rate in rates)
    table, pair = gene_changes(real, predicted, control), effects(real, predicted, control)
    assert set(table.index[:4]) == {"0", "1", "2", "3"}
    assert (table["real_t"].abs().diff()[1:] <= 0).all()
    calls = table["real_is_differential"], table["predicted_is_differential"]
    assert (calls[0] & calls[1]).sum() / (calls[0] | calls[1]).sum() == de_jaccard(*pair)
    signs = np.sign(table.loc[calls[0], ["real", "predicted"]])
    assert (signs["real"] == signs["predicted"]).mean() == de_direction(*pair)
    correlation = np.corrcoef(table["real"], table["predicted"])[0, 1]
    assert correlation == pytest.approx(mean_change_correlation(*pair))


def test_genes_of_changes_are_aligned_by_name():
    rng = np.random.default_rng(0)
    real, predicted, control = (AnnData(rng.poisson(rate, (50, 9)).astype(np.float32)) for rate in (2.0, 3.0, 1.0))
    straight, turned = (effects(real, cells, control) for cells in (predicted, predicted[:, ::-1].copy()))
    shares = de_overlap, de_jaccard, de_direction
    for metric in (*shares, mean_change_slope, mean_change_correlation, mean_change_debiased_error, variance_error):
        assert metric(*straight) == pytest.approx(metric(*turned), nan_ok=True)


def test_the_error_is_the_mean_absolute_difference_of_changes():
    assert mean_change_error(*effects_of({0: 1.0}, {0: 0.5, 1: 1.5})) == pytest.approx((0.5 + 1.5) / N_GENES)


@pytest.mark.parametrize("processed", ["counts", "logarithms", "scaled"])
def test_the_counts_of_processed_predictions_are_read_from_their_layer(processed):
    real, predicted, control = (poisson_cells(np.linspace(0.2, 3, 20), seed) for seed in (1, 2, 3))
    expected = gene_changes(real, predicted, control)
    predicted.layers["counts"] = predicted.X.copy()
    if processed != "counts":
        sc.pp.normalize_total(predicted)
        sc.pp.log1p(predicted)
    if processed == "scaled":
        sc.pp.scale(predicted)
    pd.testing.assert_frame_equal(gene_changes(real, predicted, control), expected)
    predicted.layers["counts"] = control.X
    with pytest.warns(UserWarning, match="`predicted` has values in `X` that do not come from its layers"):
        gene_changes(real, predicted, control)
