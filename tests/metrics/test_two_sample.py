"""Classifiers and local mixing say what is known beforehand."""

import numpy as np
import pytest

from scgen_diffusion.metrics import classifier_auc, ilisi
from scgen_diffusion.metrics._distribution import auc_of_scores, classifier_scores, mixing_scores

CLASSIFIERS = ["boosting", "quick_boosting", "logistic", "neighbours"]


def gaussian(n_cells, n_features=5, *, seed, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).standard_normal((n_cells, n_features)) * scale + shift


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_auc_is_a_half_for_equal_distributions_and_one_for_separate_ones(classifier):
    real = gaussian(300, seed=0)
    # the standard error of an AUC of 300 against 300 cells is 0.024
    assert classifier_auc(real, gaussian(300, seed=1), classifier=classifier) == pytest.approx(0.5, abs=0.1)
    assert classifier_auc(real, gaussian(300, seed=1, shift=10.0), classifier=classifier) > 0.99


def test_logistic_auc_of_shifted_gaussians_approaches_its_closed_form():
    # the best line orders cells by the shifted coordinate: AUC = Phi(shift / sqrt(2)) = 0.760 for a shift of 1
    auc = classifier_auc(gaussian(1000, 1, seed=0), gaussian(1000, 1, seed=1, shift=1.0), classifier="logistic")
    assert auc == pytest.approx(0.760, abs=0.03)  # standard error 0.011


@pytest.mark.parametrize(("classifier", "sees"), [("boosting", True), ("logistic", False), ("neighbours", True)])
def test_a_line_does_not_see_another_spread(classifier, sees):
    auc = classifier_auc(gaussian(300, 2, seed=0), gaussian(300, 2, seed=1, scale=3.0), classifier=classifier)
    assert (auc > 0.7) is sees


def test_copies_of_real_cells_are_among_the_others_neighbours():
    values = gaussian(200, seed=0)
    assert classifier_auc(values, values, classifier="neighbours") < 0.5


def test_scores_are_as_many_as_cells_and_give_the_auc():
    real, synthetic = gaussian(40, seed=0), gaussian(60, seed=1, shift=1.0)
    scores = classifier_scores(real, synthetic, classifier="logistic")
    assert (len(scores.real), len(scores.synthetic)) == (40, 60)
    wins = (scores.synthetic[:, None] > scores.real).mean() + (scores.synthetic[:, None] == scores.real).mean() / 2
    assert auc_of_scores(*scores) == pytest.approx(wins) == classifier_auc(real, synthetic, classifier="logistic")


def test_an_unknown_classifier_is_named():
    with pytest.raises(
        ValueError, match=r"'forest'; it must be one of \['boosting', 'quick_boosting', 'logistic', 'neighbours'\]"
    ):
        classifier_auc(gaussian(10, seed=0), gaussian(10, seed=1), classifier="forest")


def test_classifiers_need_a_cell_for_each_fold():
    with pytest.raises(ValueError, match="`real` has 10 cells and `synthetic` 4; there must be 5 or more"):
        classifier_auc(gaussian(10, seed=0), gaussian(4, seed=1))


def test_ilisi_is_nearly_one_for_mixed_sets_and_zero_for_sets_apart():
    real = gaussian(500, seed=0)
    assert ilisi(real, gaussian(500, seed=1)) > 0.9
    assert ilisi(real, gaussian(500, seed=1, shift=100)) == pytest.approx(0, abs=1e-6)


def test_every_point_beside_its_copy_mixes_perfectly():
    values = gaussian(100, seed=0)
    scores = mixing_scores(np.repeat(values, 3, axis=0), np.repeat(values, 3, axis=0), perplexity=40)
    assert np.median(np.concatenate(scores)) > 0.97


def test_ilisi_is_the_inverse_simpson_index_of_equally_distant_neighbours():
    # the corners of a simplex are all equally far: each cell sees all others alike, 9 of its own set and 20 of the other
    corners = np.eye(30)
    share = 20 / 29
    expected = 1 / (share**2 + (1 - share) ** 2) - 1
    scores = mixing_scores(corners[:10], corners[10:], perplexity=29 / 3)
    np.testing.assert_allclose(scores.real, expected)


def test_ilisi_needs_three_times_the_perplexity():
    with pytest.raises(
        ValueError, match="`perplexity` is 30, for which there must be more than 90 cells, but there are 80"
    ):
        ilisi(gaussian(40, seed=0), gaussian(40, seed=1))
