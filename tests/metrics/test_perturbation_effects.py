"""Welch's test from moments: the figures of scipy."""

import numpy as np
import pytest
from anndata import AnnData
from scipy.stats import false_discovery_control, ttest_ind

from scgen_diffusion.metrics import expression_of
from scgen_diffusion.metrics._perturbation import Effect, GeneMoments, predicted_effect


def expression(rate, seed, n_cells=60, n_genes=30):
    counts = np.random.default_rng(seed).poisson(rate, (n_cells, n_genes))
    return expression_of(AnnData(counts.astype(np.float32)))


def test_statistics_and_calls_are_those_of_scipy():
    rate = np.where(np.arange(30) < 6, 3.0, 2.0)
    cells, control = expression(rate, 1), expression(2.0, 2, n_cells=90)
    effect = Effect(GeneMoments.of(cells), GeneMoments.of(control))
    expected = ttest_ind(cells.values.toarray(), control.values.toarray(), equal_var=False)
    np.testing.assert_allclose(effect.welch_t, expected.statistic, atol=1e-4)  # values are stored in float32
    np.testing.assert_array_equal(effect.is_significant, false_discovery_control(expected.pvalue) <= 0.05)
    assert effect.is_significant.sum() in range(1, 30)


def test_cells_of_one_kind_have_hardly_any_differential_gene():
    n_found = [
        Effect(GeneMoments.of(expression(2.0, [1, i])), GeneMoments.of(expression(2.0, [2, i]))).is_significant.any()
        for i in range(200)
    ]
    assert np.mean(n_found) < 0.11  # 0.05 is expected; this is four standard errors of 200 trials above it


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


@pytest.mark.parametrize(("arguments", "name"), [((1,), "n_top"), ((3, "p"), "ranking")])
def test_a_bad_argument_is_named(arguments, name):
    moments = GeneMoments.of(expression(2.0, 1))
    with pytest.raises(ValueError, match=f"`{name}`"):
        Effect(moments, moments).top_genes(*arguments)
