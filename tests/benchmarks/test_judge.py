"""The judge says what is known beforehand."""

import numpy as np
import pandas as pd
import pytest

from scgen_diffusion.metrics import transfer_f1

splits = pytest.importorskip("benchmarks.quality.splits")
judge_module = pytest.importorskip("benchmarks.quality.judge")

Judge, GOALS, judgement_table = judge_module.Judge, judge_module.GOALS, judge_module.judgement_table
per_label_mmd = judge_module.per_label_mmd

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


# --- figures that the judge alone has ----------------------------------------------------------------------------------


def test_per_label_mmd_sees_what_the_pooled_one_cannot():
    real, labels = gaussian(200, seed=0), np.repeat(["a", "b"], 100)
    real[100:] += 6
    swapped = labels[::-1]
    assert per_label_mmd(real, labels, real, labels) < 0.01
    assert per_label_mmd(real, labels, real, swapped) > 0.5


def test_per_label_mmd_leaves_out_small_labels():
    real, labels = gaussian(50, seed=0), np.repeat(["a", "b"], [40, 10])
    synthetic = real.copy()
    synthetic[40:] += 100
    assert per_label_mmd(real, labels, synthetic, labels, min_cells=30) < 0.01
    assert np.isnan(per_label_mmd(real, labels, synthetic, labels, min_cells=41))


def test_log_normalise_takes_sparse_counts_and_keeps_empty_cells_at_zero():
    import scipy.sparse as sp

    counts = np.array([[1.0, 3.0], [0.0, 0.0]])
    expected = np.log1p([[2500.0, 7500.0], [0.0, 0.0]])
    np.testing.assert_allclose(splits.log_normalise(sp.csr_matrix(counts)), expected, rtol=1e-6)


def test_transfer_f1_does_not_punish_labels_that_are_not_tested():
    values = np.concatenate([gaussian(50, seed=0), gaussian(50, seed=1, shift=20), gaussian(50, seed=2, shift=40)])
    labels = np.repeat(["a", "b", "c"], 50)
    assert transfer_f1(values, labels, values[:100], labels[:100]) == 1.0


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
