"""Each corruption does what it says, and nothing else."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

corruptions = pytest.importorskip("corruptions")


def rng(seed=0):
    return np.random.default_rng(seed)


def cells(n_cells=400, n_genes=30, seed=0, sizes=(0.5, 0.3, 0.2)):
    """Return cells of three types with their own means."""
    labels = np.repeat(["a", "b", "c"], (np.array(sizes) * n_cells).astype(int))
    means = {label: rng(i).gamma(2.0, 3.0, n_genes) for i, label in enumerate("abc")}
    counts = sp.csr_matrix(rng(seed).poisson([means[label] for label in labels]), dtype=np.float32)
    obs = pd.DataFrame({"cell_type": pd.Categorical(labels)}, index=[f"{seed}_{i}" for i in range(len(labels))])
    return ad.AnnData(counts, obs=obs, layers={"counts": counts.copy()})


def dense(adata):
    return adata.layers["counts"].toarray()


def rows_of(adata):
    return {tuple(row) for row in dense(adata)}


@pytest.mark.parametrize("name", list(corruptions.CORRUPTIONS))
def test_every_corruption_gives_counts_and_leaves_its_arguments_alone(name):
    original, train = cells(), cells(seed=1)
    before, before_train = original.copy(), train.copy()
    changed = corruptions.CORRUPTIONS[name](original, train, rng())
    np.testing.assert_array_equal(dense(changed), changed.X.toarray())
    np.testing.assert_array_equal(dense(changed) % 1, 0)
    assert dense(changed).min() >= 0
    assert list(changed.var_names) == list(original.var_names)
    for now, then in ((original, before), (train, before_train)):
        np.testing.assert_array_equal(dense(now), dense(then))
        pd.testing.assert_frame_equal(now.obs, then.obs)


@pytest.mark.parametrize("name", list(corruptions.CORRUPTIONS))
def test_the_same_generator_gives_the_same_cells(name):
    first, second = (corruptions.CORRUPTIONS[name](cells(), cells(seed=1), rng(5)) for _ in range(2))
    np.testing.assert_array_equal(dense(first), dense(second))


def test_dropout_sets_a_share_of_the_entries_to_zero_and_keeps_the_others():
    original, changed = cells(), corruptions.drop_counts(cells(), rng(), share=0.3)
    expressed = dense(original) > 0
    lost = expressed & (dense(changed) == 0)
    assert lost.sum() / expressed.sum() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_array_equal(dense(changed)[~lost], dense(original)[~lost])


def test_thinning_keeps_a_share_of_the_counts():
    assert dense(corruptions.thin_counts(cells(), rng(), share=0.5)).sum() == pytest.approx(
        dense(cells()).sum() / 2, rel=0.02
    )


def test_multiplying_keeps_profiles():
    np.testing.assert_array_equal(dense(corruptions.multiply_counts(cells(), factor=2)), 2 * dense(cells()))


@pytest.mark.parametrize("within_label", [True, False])
def test_shuffling_keeps_the_values_of_each_gene(within_label):
    original, changed = cells(), corruptions.shuffle_genes(cells(), rng(), within_label=within_label)
    np.testing.assert_array_equal(np.sort(dense(changed), axis=0), np.sort(dense(original), axis=0))
    first_type = (original.obs["cell_type"] == "a").to_numpy()
    kept = np.array_equal(np.sort(dense(changed)[first_type], axis=0), np.sort(dense(original)[first_type], axis=0))
    assert kept == within_label
    assert not rows_of(changed) & rows_of(original)


def test_the_second_most_frequent_type_is_dropped():
    changed = corruptions.drop_label(cells())
    assert set(changed.obs["cell_type"]) == {"a", "c"}
    assert rows_of(changed) <= rows_of(cells())


def test_swapping_exchanges_the_two_most_frequent_labels_only():
    changed = corruptions.swap_labels(cells())
    np.testing.assert_array_equal(dense(changed), dense(cells()))
    swapped = cells().obs["cell_type"].astype(str).map({"a": "b", "b": "a", "c": "c"})
    np.testing.assert_array_equal(changed.obs["cell_type"], swapped)


def test_copies_are_training_cells_with_their_labels():
    train = cells(seed=1)
    changed = corruptions.copy_cells(cells(), train, rng(), share=0.5)
    label_of = {tuple(row): label for row, label in zip(dense(train), train.obs["cell_type"], strict=True)}
    copied = [(tuple(row), label) for row, label in zip(dense(changed), changed.obs["cell_type"], strict=True)]
    copied = [(row, label) for row, label in copied if row in label_of]
    assert len(copied) == 200
    assert len({row for row, _ in copied}) == 200
    assert all(label_of[row] == label for row, label in copied)


def test_rough_copies_are_equal_to_no_training_cell_but_near_one():
    train = cells(seed=1)
    changed = corruptions.copy_roughly(cells(), train, rng(), share=1.0, kept=0.95)
    assert not rows_of(changed) & rows_of(train)
    nearest = [np.abs(dense(train) - row).sum(axis=1).min() for row in dense(changed)[:20]]
    unrelated = [np.abs(dense(train) - row).sum(axis=1).min() for row in dense(cells())[:20]]
    assert np.median(nearest) < 0.5 * np.median(unrelated)


def test_duplicates_have_a_twin_in_the_same_set():
    changed = corruptions.duplicate_cells(cells(), rng(), share=0.1)
    assert rows_of(changed) <= rows_of(cells())
    assert len(rows_of(changed)) == pytest.approx(360, abs=2)


def test_ambient_counts_come_from_the_mean_profile():
    added = dense(corruptions.add_ambient(cells(), rng(), share=0.2)) - dense(cells())
    assert added.min() >= 0
    assert added.sum() == pytest.approx(0.2 * dense(cells()).sum(), rel=0.03)
    assert np.corrcoef(added.sum(axis=0), dense(cells()).sum(axis=0))[0, 1] > 0.98


def test_noise_keeps_zeros_and_adds_spread():
    original, changed = cells(), corruptions.multiply_noise(cells(), rng(), sd=0.5)
    assert (dense(changed)[dense(original) == 0] == 0).all()
    assert dense(changed).mean() == pytest.approx(dense(original).mean(), rel=0.03)
    assert dense(changed).var(axis=0).mean() > 1.1 * dense(original).var(axis=0).mean()


def test_mean_only_cells_have_the_means_of_their_label_and_no_other_structure():
    original = corruptions.multiply_noise(cells(n_cells=4000), rng(1), sd=0.8)
    changed = corruptions.draw_from_means(original, rng())
    of_a = (changed.obs["cell_type"] == "a").to_numpy()
    drawn, real = dense(changed)[of_a], dense(original)[of_a]
    np.testing.assert_allclose(drawn.mean(axis=0), real.mean(axis=0), rtol=0.1, atol=0.1)
    np.testing.assert_allclose(drawn.var(axis=0), drawn.mean(axis=0), rtol=0.2)  # as Poisson counts


def test_averages_keep_the_means_and_lose_spread():
    original, changed = cells(), corruptions.average_cells(cells(), rng(), n_cells=3)
    of_a = (changed.obs["cell_type"] == "a").to_numpy()
    assert dense(changed)[of_a].mean() == pytest.approx(dense(original)[of_a].mean(), rel=0.02)
    assert dense(changed)[of_a].var(axis=0).mean() < 0.6 * dense(original)[of_a].var(axis=0).mean()
