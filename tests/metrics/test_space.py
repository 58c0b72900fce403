"""Scales of modalities: their formulas, and when each is chosen."""

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given
from hypothesis.extra.numpy import arrays

from scgen_diffusion.metrics import ComparisonSpace
from scgen_diffusion.metrics._cells import Expression, log_normalise, on_scale
from scgen_diffusion.metrics._space import choose_scales, log1p_of_counts, make_scale, tf_idf


def test_tf_idf_by_hand():
    reference = sp.csr_matrix([[1, 1, 0], [1, 0, 0]])  # found in 2, 1 and 0 of 2 cells
    values = tf_idf(reference)(sp.csr_matrix([[1, 1, 0], [0, 0, 1], [0, 0, 0]])).toarray()
    expected = np.log1p([[5_000, 10_000, 0], [0, 0, 20_000], [0, 0, 0]])
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@given(arrays(np.int64, (6, 4), elements=st.integers(0, 50)))
def test_every_scale_keeps_zeros_and_the_order_within_a_cell(counts):
    counts = sp.csr_matrix(counts)
    for scale in (log_normalise, log1p_of_counts):
        values = scale(counts).toarray()
        np.testing.assert_array_equal(values == 0, counts.toarray() == 0)
        np.testing.assert_array_equal(
            np.argsort(values, 1, kind="stable"), np.argsort(counts.toarray(), 1, kind="stable")
        )
    np.testing.assert_array_equal(tf_idf(counts)(counts).toarray() == 0, counts.toarray() == 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scales_leave_the_users_counts_as_they_are(dtype):
    unsorted = sp.csr_matrix((np.array([1, 2, 3, 4], dtype), [2, 0, 1, 0], [0, 2, 4]), shape=(2, 3))
    data, indices = unsorted.data.copy(), unsorted.indices.copy()
    for array in (unsorted.data, unsorted.indices):
        array.flags.writeable = False  # as in memory that is shared

    for scale in (log_normalise, log1p_of_counts):
        np.testing.assert_allclose(scale(unsorted).toarray() > 0, [[True, False, True], [True, True, False]])
    np.testing.assert_array_equal(unsorted.data, data)
    np.testing.assert_array_equal(unsorted.indices, indices)


def test_a_rise_of_one_protein_is_no_fall_of_others_on_the_scale_of_proteins():
    low, high = sp.csr_matrix([[10, 20, 30]]), sp.csr_matrix([[1_000, 20, 30]])
    assert (log1p_of_counts(low) != log1p_of_counts(high)).nnz == 1
    assert (log_normalise(low) != log_normalise(high)).nnz == 3


@pytest.mark.parametrize(
    ("counts", "uns", "expected"),
    [
        (np.ones((3, 14)) * 5, {}, "log1p"),
        (np.ones((3, 600)) * 5, {}, "log_normalised"),
        (np.eye(14), {}, "tf_idf"),
        (np.eye(600), {}, "tf_idf"),
        (np.zeros((3, 600)), {}, "log_normalised"),
        (np.eye(600) * 0.5, {"log1p": {}}, "log_normalised"),
    ],
)
def test_the_default_is_chosen_by_the_values_and_the_number_of_features(counts, uns, expected):
    cells = AnnData(counts.astype(np.float32), uns=uns)
    assert choose_scales({"rna": cells}, None, {}) == {"rna": expected}


def test_an_unknown_scale_is_named():
    with pytest.raises(ValueError, match="`scales` has 'clr'"):
        make_scale("clr", AnnData(np.eye(3)), None)


def test_logarithms_stay_as_they_are_on_the_scale_of_proteins():
    values = np.log1p([[1.0, 5.0], [0.0, 3.0]])
    found = on_scale(values, np.e, name="cells", scale=log1p_of_counts)
    np.testing.assert_allclose(found.values.toarray(), values, rtol=1e-6)
    assert found.library_sizes is None


def test_a_space_is_of_the_genes_that_vary_most():
    x = np.random.default_rng(0).random((50, 6)) * [1, 5, 2, 9, 3, 0.1]
    assert ComparisonSpace.fit(Expression(sp.csr_matrix(x), None), n_genes=3).genes.tolist() == [1, 3, 4]


def test_cells_of_other_genes_are_refused():
    train = AnnData(np.random.default_rng(0).poisson(2.0, (50, 8)).astype(np.float32))
    space = ComparisonSpace.fit(train, n_components=3)
    assert space.project(train).shape == (50, 3)
    with pytest.raises(ValueError, match="5 genes.* 8"):
        space.project(train[:, :5].copy())
    with pytest.raises(ValueError, match="order"):
        space.project(train[:, ::-1].copy())
