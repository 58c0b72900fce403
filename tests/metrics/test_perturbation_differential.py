"""Differential genes: shares that can be counted by hand, and what holds whatever the cells are."""

import hypothesis.strategies as st
import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given, settings

from scgen_diffusion.metrics import (
    de_direction,
    de_jaccard,
    de_overlap,
    gene_changes,
    mean_change_correlation,
    variance_error,
)
from scgen_diffusion.metrics._perturbation import (
    Effect,
    GeneMoments,
    direction_of_effects,
    jaccard_of_effects,
    overlap_of_effects,
    predicted_effect,
)

N_GENES = 40
UP, DOWN = 2.0, -2.0


def moments(changes, variance=0.5, n_cells=100):
    """Moments of cells whose genes have 3 as mean, and some of them a change: 20 standard errors of the difference for 2.0."""
    mean = np.full(N_GENES, 3.0)
    mean[list(changes)] += list(changes.values())
    return GeneMoments(mean, np.full(N_GENES, variance), n_cells)


def effects(real, predicted):
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
    pair = effects(TRUTH, predicted)
    assert overlap_of_effects(*pair, 4) == overlap
    assert jaccard_of_effects(*pair) == pytest.approx(jaccard)
    assert direction_of_effects(*pair) == direction


def test_lists_of_equal_length_have_one_precision_recall_and_jaccard():
    overlap = overlap_of_effects(*effects(TRUTH, {0: UP, 1: UP, 2: DOWN, 9: UP}), 4)
    assert overlap == 3 / 4
    assert overlap / (2 - overlap) == pytest.approx(3 / 5)


def test_without_an_effect_in_real_cells_nothing_can_be_said():
    pair = effects({}, TRUTH)
    assert np.isnan([overlap_of_effects(*pair, 4), jaccard_of_effects(*pair), direction_of_effects(*pair)]).all()


def test_cells_without_their_spread_have_too_many_differential_genes():
    slight = dict.fromkeys(range(4, N_GENES), 0.12)  # 1.2 standard errors of real cells
    real, control = moments(TRUTH), moments({})
    right, smooth = (predicted_effect(moments(TRUTH | slight, variance), real, control) for variance in (0.5, 0.01))
    truth = Effect(real, control)
    control_only = Effect(real, moments({}, variance=0.01))
    assert jaccard_of_effects(truth, right) == 1
    assert jaccard_of_effects(control_only, predicted_effect(smooth.cells, real, control_only.control)) < 0.2


counts = st.integers(0, 2**32 - 1).map(
    lambda seed: [
        np.random.default_rng([seed, i]).poisson(rate, (12, 8)) + (rate == 0) for i, rate in enumerate((1.0, 2.0, 0.7))
    ]
)


@given(counts, st.integers(2, 20))
@settings(max_examples=40, deadline=None)
def test_shares_stay_within_zero_and_one_and_a_perfect_prediction_has_all(cells, n_top):
    real, predicted, control = cells
    figures = [
        de_overlap(real, predicted, control, n_top=n_top),
        de_jaccard(real, predicted, control),
        de_direction(real, predicted, control),
    ]
    assert all(np.isnan(figure) or 0 <= figure <= 1 for figure in figures)
    assert de_overlap(real, real, control, n_top=n_top) in {1.0}
    for perfect in (de_jaccard(real, real, control), de_direction(real, real, control)):
        assert np.isnan(perfect) or perfect == 1


@given(counts)
@settings(max_examples=40, deadline=None)
def test_the_variance_error_is_a_distance(cells):
    first, second, third = cells
    assert variance_error(first, first) == 0
    assert variance_error(first, second) == pytest.approx(variance_error(second, first))
    assert variance_error(first, third) <= variance_error(first, second) + variance_error(second, third) + 1e-9


def test_the_variance_error_by_hand():
    def cells(first):
        return AnnData(np.array(first, dtype=np.float32))

    # cells (1, 3), (3, 1) have log1p values 2500 and 7500 of 10 000; cells that are all (2, 2) have no variance
    spread, none = cells([[1, 3], [3, 1]]), cells([[2, 2], [2, 2]])
    expected = (np.log1p(7_500) - np.log1p(2_500)) ** 2 / 2
    assert variance_error(spread, none) == pytest.approx(expected, rel=1e-4)  # squares of float32 values near 9


def test_the_variance_of_the_top_genes_needs_control():
    cells = AnnData(np.ones((4, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="`n_top` needs `control`"):
        variance_error(cells, cells, n_top=2)


def test_the_table_of_genes_holds_what_the_figures_are_made_of():
    rng = np.random.default_rng(0)
    rates = np.where(np.arange(20) < 4, [[30.0], [25.0], [10.0]], 10.0)
    real, predicted, control = (AnnData(rng.poisson(rate, (60, 20)).astype(np.float32)) for rate in rates)
    table = gene_changes(real, predicted, control)
    assert set(table.index[:4]) == {"0", "1", "2", "3"}
    assert (table["real_t"].abs().diff()[1:] <= 0).all()
    calls = table["real_is_differential"], table["predicted_is_differential"]
    assert (calls[0] & calls[1]).sum() / (calls[0] | calls[1]).sum() == de_jaccard(real, predicted, control)
    signs = np.sign(table.loc[calls[0], ["real", "predicted"]])
    assert (signs["real"] == signs["predicted"]).mean() == de_direction(real, predicted, control)
    assert np.corrcoef(table["real"], table["predicted"])[0, 1] == pytest.approx(
        mean_change_correlation(real, predicted, control)
    )


def test_genes_are_aligned_by_name():
    rng = np.random.default_rng(0)
    real, predicted, control = (AnnData(rng.poisson(rate, (50, 9)).astype(np.float32)) for rate in (2.0, 3.0, 1.0))
    turned = predicted[:, ::-1].copy()
    for metric in (de_overlap, de_jaccard, de_direction):
        assert metric(real, predicted, control) == pytest.approx(metric(real, turned, control), nan_ok=True)
    assert variance_error(real, predicted) == pytest.approx(variance_error(real, turned))
