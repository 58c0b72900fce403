"""The judge says what is known beforehand."""

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("ot")
measures = pytest.importorskip("measures")
judge_module = pytest.importorskip("judge")

Judge, GOALS, judgement_table = judge_module.Judge, judge_module.GOALS, judge_module.judgement_table

N_GENES = 30


def gaussian(n_cells, n_features=5, *, seed, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n_cells, n_features)) + shift


def cells(n_cells, *, seed, n_genes=N_GENES):
    """Draw counts of two labels that share one hidden programme, and the labels."""
    rng = np.random.default_rng(seed)
    profiles = np.random.default_rng(0).gamma(1.0, 1.0, (2, n_genes))
    loadings = np.random.default_rng(1).standard_normal(n_genes) * 0.5
    labels = np.arange(n_cells) % 2
    rates = profiles[labels] * np.exp(rng.standard_normal((n_cells, 1)) * loadings)
    rates *= rng.lognormal(6.5, 0.3, (n_cells, 1)) / rates.sum(1, keepdims=True)
    return rng.poisson(rates).astype(np.float32), np.array(["a", "b"])[labels]


@pytest.fixture(scope="module")
def judge():
    return Judge(*cells(480, seed=10), *cells(160, seed=11))


@pytest.fixture(scope="module")
def floor(judge):
    return judge.floor(n_resamples=3)


@pytest.fixture(scope="module")
def fresh_cells(judge):
    """Cells of the same distribution that are in neither set: what a perfect model draws."""
    return judge.measure(*cells(160, seed=12))


# --- measures with closed-form answers ------------------------------------------------------------------------------


def test_w2_between_a_set_and_its_translation_is_the_length_of_the_shift():
    values = gaussian(100, seed=0)
    assert measures.wasserstein_2(values, values + np.array([3.0, 4.0, 0, 0, 0])) == pytest.approx(5.0)


def test_w2_between_shifted_gaussians_approaches_the_distance_of_their_means():
    estimate = measures.wasserstein_2(gaussian(1000, 1, seed=0), gaussian(1000, 1, seed=1, shift=2.0))
    assert estimate == pytest.approx(2.0, abs=0.2)  # the mean of 1 000 draws has a standard error of 0.03


def test_w2_does_not_depend_on_order():
    values = gaussian(50, seed=0)
    assert measures.wasserstein_2(values, values[::-1]) == pytest.approx(0.0, abs=1e-6)


def test_mmd_is_unbiased_around_zero_for_equal_distributions():
    estimates = [measures.squared_mmd(gaussian(60, seed=s), gaussian(60, seed=1000 + s), 10.0) for s in range(200)]
    assert abs(np.mean(estimates)) < 3 * np.std(estimates) / np.sqrt(len(estimates))
    assert min(estimates) < 0 < max(estimates)


def test_mmd_is_that_of_gaussians_in_closed_form():
    # E k(x, y) for x - y ~ N(shift, 2) and k = exp(-d^2 / h) is sqrt(h / (h + 4)) exp(-shift^2 / (h + 4))
    scale, shift = 2.0, 1.0
    widths = scale * np.array(measures.BANDWIDTH_FACTORS)
    expected = np.mean(2 * np.sqrt(widths / (widths + 4)) * (1 - np.exp(-(shift**2) / (widths + 4))))
    estimate = measures.squared_mmd(gaussian(1000, 1, seed=0), gaussian(1000, 1, seed=1, shift=shift), scale)
    assert estimate == pytest.approx(expected, rel=0.2)  # 1 000 draws


def test_auc_is_a_half_for_equal_distributions_and_one_for_separate_ones():
    reference = gaussian(300, seed=0)
    # the standard error of an AUC of 300 against 300 cells is 0.024
    assert measures.two_sample_auc(reference, gaussian(300, seed=1)) == pytest.approx(0.5, abs=0.1)
    assert measures.two_sample_auc(reference, gaussian(300, seed=1, shift=10.0)) > 0.99


def test_precision_and_recall_are_one_for_a_set_and_itself():
    values = gaussian(50, seed=0)
    assert measures.precision_recall(values, values) == (1.0, 1.0)


def test_a_collapsed_set_has_precision_but_no_recall():
    real = gaussian(300, seed=0)
    precision, recall = measures.precision_recall(real, gaussian(300, seed=1) * 0.1)
    assert precision > 0.95
    assert recall < 0.1


def test_scattered_cells_have_recall_but_no_precision():
    precision, recall = measures.precision_recall(gaussian(300, seed=0), gaussian(300, seed=1) * 5)
    assert precision < 0.1
    assert recall > 0.8


def test_ball_radius_leaves_the_point_itself_out():
    line = np.arange(10.0)[:, None]
    # with k = 1 each ball reaches the neighbour, one away, and no further
    assert measures.precision_recall(line, line + 0.9, k=1) == (1.0, 1.0)
    assert measures.precision_recall(line[:5], line[:5] + 5.5, k=1) == (0.0, 0.0)


def test_within_label_correlation_ignores_what_labels_differ_in():
    labels = np.repeat(["a", "b"], 2000)
    values = gaussian(4000, 3, seed=0) + np.where(labels == "a", 10.0, -10.0)[:, None]
    assert np.abs(measures.within_label_correlations(values, labels)).max() < 0.1  # standard error 0.016
    assert np.corrcoef(values.T)[0, 1] > 0.9


def test_within_label_correlation_is_pearsons_for_a_single_label():
    values = gaussian(100, 4, seed=0) @ gaussian(4, 4, seed=1)
    expected = np.corrcoef(values.T)[np.triu_indices(4, 1)]
    np.testing.assert_allclose(measures.within_label_correlations(values, np.repeat("a", 100)), expected, rtol=1e-6)


def test_a_constant_gene_is_uncorrelated_with_every_other():
    values = gaussian(100, 3, seed=0)
    values[:, 0] = 7.0
    np.testing.assert_array_equal(measures.within_label_correlations(values, np.repeat("a", 100))[:2], 0)


def test_measures_leave_their_input_as_it_is():
    values = gaussian(20, 3, seed=0)
    before = values.copy()
    measures.within_label_correlations(values, np.repeat("a", 20))
    np.testing.assert_array_equal(values, before)


def test_library_size_ks_is_the_largest_gap_between_the_distributions():
    real = np.arange(1, 11)[:, None]
    assert measures.library_size_ks(real, real) == 0
    assert measures.library_size_ks(real, real + 5) == pytest.approx(0.5)


def test_gene_profile_errors_count_zeros():
    real, synthetic = np.array([[0, 5], [0, 5]]), np.array([[1, 5], [0, 5]])
    assert measures.gene_profile_errors(real, synthetic)["gene_zero_error"] == pytest.approx(0.25)
    assert set(measures.gene_profile_errors(real, real).values()) == {0.0}


def test_per_label_mmd_sees_what_the_pooled_one_cannot():
    real, labels = gaussian(200, seed=0), np.repeat(["a", "b"], 100)
    real[100:] += 6
    swapped = labels[::-1]
    assert measures.per_label_mmd(real, labels, real, labels) < 0.01
    assert measures.per_label_mmd(real, labels, real, swapped) > 0.5


def test_per_label_mmd_leaves_out_small_labels():
    real, labels = gaussian(50, seed=0), np.repeat(["a", "b"], [40, 10])
    synthetic = real.copy()
    synthetic[40:] += 100
    assert measures.per_label_mmd(real, labels, synthetic, labels, min_cells=30) < 0.01
    assert np.isnan(measures.per_label_mmd(real, labels, synthetic, labels, min_cells=41))


def test_transfer_f1_does_not_punish_labels_that_are_not_tested():
    values = np.concatenate([gaussian(50, seed=0), gaussian(50, seed=1, shift=20), gaussian(50, seed=2, shift=40)])
    labels = np.repeat(["a", "b", "c"], 50)
    assert measures.transfer_f1(values, labels, values[:100], labels[:100]) == 1.0


def test_log_normalise_takes_sparse_counts_and_keeps_empty_cells_at_zero():
    import scipy.sparse as sp

    counts = np.array([[1.0, 3.0], [0.0, 0.0]])
    expected = np.log1p([[2500.0, 7500.0], [0.0, 0.0]])
    np.testing.assert_allclose(measures.log_normalise(sp.csr_matrix(counts)), expected, rtol=1e-6)


# --- the judge --------------------------------------------------------------------------------------------------------


def test_fresh_cells_score_like_the_floor(fresh_cells, floor):
    for metric in (
        "auc_pcs",
        "auc_genes",
        "precision",
        "recall",
        "within_label_correlation",
        "transfer_f1",
        "library_size_ks",
    ):
        assert fresh_cells[metric] == pytest.approx(floor[metric], abs=0.15), metric  # 160 cells
    assert fresh_cells["w2"] == pytest.approx(floor["w2"], rel=0.25)
    assert fresh_cells["nearest_train_ratio"] == pytest.approx(1, abs=0.1)


def test_floor_is_not_separable_from_held_out_cells(floor):
    # the PCA has seen neither: with a PCA fitted on the floor's cells this would be far from a half
    assert floor["auc_pcs"] == pytest.approx(0.5, abs=0.1)  # standard error 0.03


def test_floor_has_no_memorisation_figures(floor, fresh_cells):
    assert set(fresh_cells) - set(floor) == {"nearest_train_ratio", "nearer_than_held_out"}


def test_copied_training_cells_are_flagged_as_memorised(judge):
    figures = judge.measure(judge.train_counts[:160], judge.train_labels[:160])
    assert figures["nearest_train_ratio"] == 0
    assert figures["nearer_than_held_out"] == 1
    assert not GOALS["nearest_train_ratio"].met(figures["nearest_train_ratio"], np.nan)


def test_held_out_cells_are_the_reference_of_memorisation(judge):
    figures = judge.measure(judge.held_out_counts, judge.held_out_labels)
    assert figures["nearest_train_ratio"] == 1
    assert figures["nearer_than_held_out"] <= 2 / 160  # the 1 % quantile lies between the second and the third cell


def test_genes_shuffled_within_labels_lose_their_correlation(judge, floor):
    rng, shuffled = np.random.default_rng(0), judge.held_out_counts.copy()
    for label in "ab":
        rows = judge.held_out_labels == label
        shuffled[rows] = rng.permuted(shuffled[rows], axis=0)
    figures = judge.measure(shuffled, judge.held_out_labels)
    assert figures["within_label_correlation"] < 0.5 * floor["within_label_correlation"]
    assert figures["gene_zero_error"] == 0


def test_more_synthetic_cells_than_held_out_ones_are_thinned_out(judge):
    counts, labels = cells(400, seed=13)
    assert judge._pair(counts, labels).synthetic.counts.shape == judge.held_out_counts.shape


def test_fewer_synthetic_cells_than_held_out_ones_meet_as_many_real_ones(judge):
    pair = judge._pair(*cells(50, seed=13))
    assert len(pair.real.counts) == len(pair.synthetic.counts) == 50


def test_a_judgement_is_the_same_twice(judge, fresh_cells):
    assert judge.measure(*cells(160, seed=12)) == fresh_cells


def test_labels_must_be_as_many_as_cells(judge):
    counts, labels = cells(20, seed=0)
    with pytest.raises(ValueError, match="20 cells and 19 labels"):
        judge.measure(counts, labels[:-1])


# --- goals and the table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "value", "floor", "met"),
    [
        ("auc_genes", 0.60, 0.5, True),
        ("auc_genes", 0.61, 0.5, False),
        ("recall", 0.86, 0.9, True),
        ("recall", 0.85, 0.9, False),
        ("w2", 7.35, 7.0, True),
        ("mmd2", 0.0011, -0.001, False),
        ("mmd2", 0.0009, -0.001, True),
        ("library_size_ks", 0.06, 0.031, True),
        ("nearest_train_ratio", 0.89, float("nan"), False),
        ("nearest_train_ratio", 1.0, float("nan"), True),
        ("nearest_train_ratio", 1.16, float("nan"), False),
        ("precision", float("nan"), 0.9, False),
    ],
)
def test_goals_are_those_of_the_project(metric, value, floor, met):
    assert GOALS[metric].met(value, floor) is met


def test_table_is_tidy_and_leaves_met_open_without_a_goal():
    table = judgement_table(
        {"recall": 0.9, "gene_mean_error": 0.1, "nearer_than_held_out": 0.0},
        {"recall": 0.9},
        dataset="d",
        seed=1,
        method="m",
    )
    assert list(table.columns) == ["dataset", "seed", "method", "metric", "value", "floor", "goal", "met"]
    assert table["met"].tolist() == [True, pd.NA, True]
    assert table["goal"].tolist() == [">= 0.855", "", "<= 0.02"]
