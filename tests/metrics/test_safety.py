"""Copies are found, new cells are not accused, and the attack's AUC is known in closed cases."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from scipy.stats import multinomial

from scgen_diffusion.metrics import (
    ComparisonSpace,
    copied_cells,
    duplicate_share,
    expression_of,
    membership_inference,
    memorisation,
)
from scgen_diffusion.metrics._catalogue import near_copies
from scgen_diffusion.metrics._comparison import share_interval
from scgen_diffusion.metrics._safety import (
    chance_of_alike,
    expected_share_of_twins,
    nearest_distances,
    relative_nearness,
    share_of_twins,
)


def points(n_cells=300, n_features=5, *, seed=0):
    return np.random.default_rng(seed).normal(size=(n_cells, n_features))


def some_counts(n_cells=60, n_genes=30, seed=0):
    return np.random.default_rng(seed).poisson(2.0, (n_cells, n_genes))


def test_distances_are_those_to_the_nearest_cells():
    values, reference = np.array([[0.0, 0], [10, 0]]), np.array([[3.0, 4], [0, 1], [10, 2]])
    np.testing.assert_allclose(nearest_distances(values, reference), [1, 2])


def test_distances_of_copies_are_exactly_zero_far_from_the_origin():
    reference = (points() + 1e4).astype(np.float32)
    assert (nearest_distances(reference, reference) == 0).all()
    near = 1e6 + np.array([[0.0], [1e-4], [2e-4], [3e-4]])  # matrix products cannot tell these apart
    assert (nearest_distances(near, near) == 0).all()


def test_new_real_cells_are_not_memorised():
    found = memorisation(points(2_000, seed=1), points(2_000, seed=2), points(2_000))
    assert found["dcr_ratio"] == pytest.approx(1, abs=0.05)  # medians of 2000 distances
    assert found["nearer_than_held_out"] == pytest.approx(0.01, abs=0.013)  # four standard errors of either share


def test_a_few_copies_are_seen_by_the_share_and_not_by_the_median():
    train, synthetic = points(2_000), points(2_000, seed=1)
    before = memorisation(synthetic, points(2_000, seed=2), train)
    synthetic[:200] = train[:200] + 1e-3
    found = memorisation(synthetic, points(2_000, seed=2), train)
    assert found["nearer_than_held_out"] - before["nearer_than_held_out"] == pytest.approx(0.1, abs=0.005)
    assert found["dcr_ratio"] > 0.85
    assert (before["near_copies"], found["near_copies"]) == (0, 0.1)


@pytest.mark.parametrize(
    ("n_dimensions", "rare", "most_alarms"),
    [(3, 0.0, 2), (20, 0.0, 0), (20, 0.005, 0), (20, 0.05, 0)],
    ids=["few dimensions", "many", "a rare dense type", "a dense type that held-out cells lack"],
)
def test_new_cells_are_seldom_called_near_copies_but_one_copy_of_many_is(n_dimensions, rare, most_alarms):
    def draw(rng, n, share):
        values = rng.normal(size=(n, n_dimensions))
        is_dense = rng.random(n) < share
        values[is_dense] = 5 + 0.01 * values[is_dense]
        return values

    def is_alarmed(real, synthetic, train):
        nearness = [relative_nearness(values, train) for values in (real, synthetic, real)]
        share, usual = near_copies(SimpleNamespace(nearness=lambda: nearness))
        return share_interval(share, usual)[0] > usual[0].value

    alarms, found = 0, 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        real = draw(rng, 300, 0.0 if rare == 0.05 else rare)
        synthetic, train = draw(rng, 2_000, rare), draw(rng, 1_000, rare)
        alarms += is_alarmed(real, synthetic, train)
        copied = np.concatenate([synthetic, train[:1] + 1e-3])
        found += is_alarmed(real, copied, train)
    assert alarms <= most_alarms
    assert found >= 9 or n_dimensions < 20


def test_training_cells_with_a_twin_say_nothing_of_what_is_near():
    train = np.array([[0.0, 0.0], [0.0, 0.0], [4.0, 0.0], [6.0, 0.0]])
    assert relative_nearness(np.array([[0.0, 1.0], [4.0, 1.0]]), train).tolist() == [np.inf, 0.5]
    assert relative_nearness(np.ones((2, 2)), train[:1]).tolist() == [np.inf, np.inf]


def test_copies_among_held_out_cells_leave_the_ratio_or_the_share_undefined():
    train, held_out = points(200), points(200, seed=1)
    assert np.isnan(memorisation(points(seed=2), train, train)["dcr_ratio"])
    held_out[:4] = train[:4] + 1e-9  # equal but for rounding
    assert np.isnan(memorisation(train, held_out, train)["nearer_than_held_out"])
    assert memorisation(train, held_out[4:], train)["nearer_than_held_out"] == 1


def test_copied_cells_are_counted():
    train, synthetic = some_counts(), some_counts(40, seed=1)
    assert copied_cells(synthetic, train) == 0
    synthetic[[3, 7, 8]] = train[[0, 0, 9]]
    assert copied_cells(synthetic, train) == 3 / 40
    synthetic[3, 5] += 1
    assert copied_cells(synthetic, train) == 2 / 40
    assert copied_cells(2 * train, train) == 0  # the same shares of another total


def test_copies_are_found_however_they_are_stored():
    train = some_counts(5, 4) + 1
    train[0, 1] = 0
    row = train[0]
    order = [3, 0, 2, 1]
    # out of order, with an explicit zero, one entry split in two, other types
    indices, data = np.array([*order, 0]), np.array([*row[order], 1.0])
    data[1] -= 1
    untidy = sp.csr_matrix((data.astype(np.float32), indices, [0, 5]), shape=(1, 4))
    assert copied_cells(untidy, train.astype(np.int32)) == 1
    assert copied_cells(sp.csc_matrix(train), sp.coo_matrix(train)) == 1
    assert not untidy.has_canonical_format
    assert untidy.nnz == 5
    cells = AnnData(some_counts().astype(np.float32))
    assert copied_cells(cells[:, ::-1].copy(), cells) == 1  # genes are put in order


def test_empty_cells_are_no_copies_but_duplicates_of_each_other():
    train, synthetic = some_counts(), some_counts(10, seed=1)
    train[0], synthetic[:5] = 0, 0
    assert copied_cells(synthetic, train) == 0
    assert duplicate_share(synthetic) == 0.5
    assert duplicate_share(synthetic[4:]) == 0
    synthetic[5] = train[1]
    assert copied_cells(synthetic, train) == 1 / 5
    assert np.isnan(copied_cells(0 * synthetic, train))
    assert duplicate_share(0 * synthetic) == 1


def test_logarithms_of_another_precision_base_or_total_are_copies():
    counts = np.random.default_rng(0).negative_binomial(1, 0.3, (60, 400))

    def logarithms(total, base, dtype):
        values = np.log1p(counts / counts.sum(axis=1, keepdims=True) * total) / np.log(base)
        return AnnData(values.astype(dtype), uns={"log1p": {"base": base}})

    train = logarithms(1e4, np.e, np.float32)
    for synthetic in (logarithms(1e4, np.e, np.float64), logarithms(1e6, 2, np.float32)):
        assert copied_cells(synthetic, train) > 0.9
    assert copied_cells(train[:30].copy(), train[30:].copy()) == duplicate_share(train) == 0


def test_every_cell_of_a_repeated_group_is_a_duplicate():
    cells = some_counts(10)
    assert duplicate_share(np.vstack([cells, 2 * cells])) == 0
    cells[[4, 5]] = cells[3]
    assert duplicate_share(cells) == 0.3
    cells[7] = cells[6]
    assert duplicate_share(sp.csr_matrix(cells)) == 0.5


def test_the_expected_share_of_twins_is_the_mean_over_draws():
    rng = np.random.default_rng(0)
    fingerprints = np.concatenate([np.arange(150), rng.integers(1000, 1030, 50)]).astype(np.uint64)
    draws = [share_of_twins(rng.choice(fingerprints, 80, replace=False)) for _ in range(4_000)]
    # the mean of 4 000 draws is known to a hundredth of the share
    assert expected_share_of_twins(fingerprints, 80) == pytest.approx(np.mean(draws), rel=0.03)
    assert expected_share_of_twins(fingerprints, 200) == pytest.approx(share_of_twins(fingerprints))
    assert expected_share_of_twins(np.arange(1, 200, dtype=np.uint64), 5_000) == 0


def test_no_shares_of_genes_make_an_equal_cell_likelier_than_its_limit():
    rng = np.random.default_rng(0)
    counts = rng.multinomial(rng.integers(1, 40, 200), rng.dirichlet(np.full(8, 0.5)))
    counts = np.vstack([counts, [3, 1, 0, 0, 0, 0, 0, 0], [1] * 8])
    likeliest = multinomial.pmf(counts, counts.sum(1), counts / counts.sum(1, keepdims=True))
    limits = chance_of_alike(expression_of(counts))
    assert (limits >= likeliest * (1 - 1e-9)).all()
    np.testing.assert_allclose(limits[-1], likeliest[-1])  # one count of each gene
    assert chance_of_alike(expression_of(np.full((1, 50), 4)))[0] < 1e-20


def test_copies_of_the_training_cells_give_all_of_them_away():
    train = points()
    assert membership_inference(train, points(seed=1), train) == {"auc": 1, "advantage": 1}


def test_independent_cells_give_nothing_away():
    n_cells = 1_000
    found = membership_inference(points(500, seed=3), points(n_cells, seed=1), points(n_cells))
    # given the synthetic cells, distances are exchangeable: the AUC is a Mann-Whitney statistic with this standard
    # error
    standard_error = np.sqrt((2 * n_cells + 1) / (12 * n_cells**2))
    assert abs(found["auc"] - 0.5) < 4 * standard_error
    # Kolmogorov's distribution: exceeded once in 10 000
    assert found["advantage"] < 2.23 * np.sqrt(2 / n_cells)


def test_copies_of_half_of_the_training_cells_give_an_auc_of_three_quarters():
    train = points(2_000)
    found = membership_inference(train[::2], points(2_000, seed=1), train)
    # copies (half) are ranked first; the other half is as near as held-out cells: 1 / 2 + 1 / 4
    assert found["auc"] == pytest.approx(0.75, abs=0.03)
    assert found["advantage"] == pytest.approx(0.5, abs=0.05)


def test_a_space_fitted_on_the_training_cells_hides_them():
    """Why cells that a PCA was fitted on must not be attacked."""
    train, held_out, synthetic, others = (some_counts(150, 300, seed=seed) for seed in range(4))
    on_train, on_others = (ComparisonSpace.fit(cells).project for cells in (train, others))
    assert membership_inference(on_train(synthetic), on_train(held_out), on_train(train))["auc"] < 0.2
    # four standard errors of a Mann-Whitney statistic of 150 and 150 cells
    assert abs(membership_inference(on_others(synthetic), on_others(held_out), on_others(train))["auc"] - 0.5) < 0.14


def test_both_sides_have_equal_numbers_drawn_by_seed():
    train, held_out, synthetic = points(1_000), points(100, seed=1), points(200, seed=2)
    first, again, other = (membership_inference(synthetic, held_out, train, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
