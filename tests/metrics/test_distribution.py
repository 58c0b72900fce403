"""Distances, coverage and classifiers on sets whose answer is known."""

import numpy as np
import pytest

from scgen_diffusion.metrics import classifier_auc, precision_recall_density_coverage, squared_mmd, wasserstein_2
from scgen_diffusion.metrics._distribution import median_squared_distance

SHIFT = np.array([3.0, 4.0, 0, 0, 0])
FACTORS = np.array([0.25, 0.5, 1, 2, 4])


def gaussian(n_cells, n_features=5, *, seed, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).standard_normal((n_cells, n_features)) * scale + shift


def test_w2_of_translations_multiples_and_unequal_numbers_is_known():
    values = gaussian(100, seed=0)
    assert wasserstein_2(values, values + SHIFT) == pytest.approx(5.0)
    # x -> s x is the gradient of a convex function, hence optimal: W2^2 = (s - 1)^2 E |x|^2
    assert wasserstein_2(values, 3 * values) == pytest.approx(2 * np.sqrt((values**2).sum(axis=1).mean()))
    # both sets weigh the same
    assert wasserstein_2(np.zeros((2, 1)), np.array([[0.0], [0.0], [3.0], [3.0]])) == pytest.approx(np.sqrt(4.5))


def test_mmd_is_unbiased_around_zero_for_equal_distributions():
    estimates = [squared_mmd(gaussian(60, seed=s), gaussian(60, seed=1000 + s), squared_scale=10.0) for s in range(200)]
    assert abs(np.mean(estimates)) < 3 * np.std(estimates) / np.sqrt(len(estimates))
    assert min(estimates) < 0 < max(estimates)


def test_mmd_is_that_of_gaussians_in_closed_form():
    # E k(x, y) for x - y ~ N(shift, 2) and k = exp(-d^2 / h) is sqrt(h / (h + 4)) exp(-shift^2 / (h + 4))
    scale, shift = 2.0, 1.0
    widths = scale * FACTORS
    expected = np.mean(2 * np.sqrt(widths / (widths + 4)) * (1 - np.exp(-(shift**2) / (widths + 4))))
    estimate = squared_mmd(gaussian(1000, 1, seed=0), gaussian(1000, 1, seed=1, shift=shift), squared_scale=scale)
    assert estimate == pytest.approx(expected, rel=0.2)  # 1 000 draws


def test_mmd_of_two_points_each_is_the_sum_of_the_kernels():
    def kernel(distance):
        return np.exp(-(distance**2) / FACTORS).mean()

    expected = kernel(1) + kernel(2) - (kernel(5) + kernel(7) + kernel(4) + kernel(6)) / 2
    assert squared_mmd([[0.0], [1.0]], [[5.0], [7.0]], squared_scale=1.0) == pytest.approx(expected)


def test_the_kernels_scale_is_that_of_the_real_points():
    real, synthetic = gaussian(50, seed=0), gaussian(50, seed=1, scale=3)
    expected = squared_mmd(real, synthetic, squared_scale=median_squared_distance(real))
    assert squared_mmd(real, synthetic) == expected


def test_equal_points_leave_the_scale_to_the_others():
    apart = np.vstack([np.zeros((80, 1)), np.full((20, 1), 3.0)])  # more than half of the distances are zero
    assert median_squared_distance(apart) == 9
    assert median_squared_distance(np.zeros((5, 2))) == 1
    assert squared_mmd(np.zeros((5, 1)), np.full((5, 1), 100.0)) == pytest.approx(2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_equal", [1, 3, 6])
def test_a_set_covers_itself(n_equal, dtype):
    values = np.repeat(gaussian(48, 30, seed=0, scale=10).astype(dtype), n_equal, axis=0)
    # each ball holds its own centre and five neighbours, hence the density
    assert [*precision_recall_density_coverage(values, values.copy()).values()] == [1.0, 1.0, 1.2, 1.0]


def test_a_collapsed_set_has_no_recall_and_a_scattered_one_no_precision():
    figures = precision_recall_density_coverage(gaussian(300, seed=0), gaussian(300, seed=1, scale=0.1))
    assert figures["precision"] > 0.95
    assert figures["recall"] < 0.1
    assert figures["density"] > 1.5
    assert figures["coverage"] < 0.6
    figures = precision_recall_density_coverage(gaussian(300, seed=0), gaussian(300, seed=1, scale=5))
    assert figures["precision"] < 0.1
    assert figures["recall"] > 0.8
    assert figures["density"] < 0.1


def test_a_dropped_population_costs_recall_and_coverage_its_share():
    near, far = gaussian(300, seed=0), gaussian(100, seed=1, shift=50)
    figures = precision_recall_density_coverage(np.concatenate([near, far]), gaussian(400, seed=2))
    assert figures["recall"] == pytest.approx(0.75, abs=0.1)
    assert figures["coverage"] == pytest.approx(0.75, abs=0.05)
    assert figures["precision"] > 0.9


def test_equal_distributions_have_density_one_and_the_known_coverage():
    figures = precision_recall_density_coverage(gaussian(1000, seed=0), gaussian(1000, seed=1))
    assert figures["density"] == pytest.approx(1.0, abs=0.05)
    # none of the five nearest of 2n points is synthetic
    assert figures["coverage"] == pytest.approx(1 - 0.5**5, abs=0.02)


def test_a_ball_leaves_its_own_point_out():
    line = np.arange(10.0)[:, None]
    # with k = 1 each ball reaches the neighbour, one away, and no further
    assert [*precision_recall_density_coverage(line, line + 0.9, k=1).values()][:2] == [1.0, 1.0]
    assert not any(precision_recall_density_coverage(line[:5], line[:5] + 5.5, k=1).values())


CLASSIFIERS = ["boosting", "quick_boosting", "logistic", "neighbours"]


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
