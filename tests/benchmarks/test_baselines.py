"""The baselines draw counts with the requested labels."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

baselines = pytest.importorskip("benchmarks.quality.baselines")

QUICK = [name for name in baselines.BASELINES if name != "scVI"]


def training_cells(n_cells=300, n_genes=40):
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b", "c"])[rng.integers(0, 3, n_cells)]
    means = np.random.default_rng(1).gamma(1.0, 3.0, (3, n_genes))[np.searchsorted(["a", "b", "c"], labels)]
    hidden = np.exp(0.5 * rng.standard_normal((n_cells, 1)))
    counts = sp.csr_matrix(rng.poisson(means * hidden).astype(np.float32))
    return ad.AnnData(counts, layers={"counts": counts.copy()}), labels


def requested(n_cells=600):
    return np.array(["c", "a"])[np.random.default_rng(2).integers(0, 2, n_cells)]


@pytest.mark.parametrize("name", QUICK)
def test_counts_are_integers_in_the_requested_shape(name):
    drawn = baselines.BASELINES[name](*training_cells(), requested(), 0)
    assert sp.issparse(drawn)
    assert drawn.format == "csr"
    assert drawn.shape == (600, 40)
    np.testing.assert_array_equal(drawn.data, drawn.data.round())
    assert drawn.data.min() > 0


@pytest.mark.parametrize("name", QUICK)
def test_each_label_has_its_own_means(name):
    adata, labels = training_cells()
    drawn = baselines.BASELINES[name](adata, labels, requested(), 0).toarray()
    for label in ("a", "c"):
        real = adata.layers["counts"].toarray()[labels == label].mean(0)
        assert np.corrcoef(real, drawn[requested() == label].mean(0))[0, 1] > 0.98  # about 100 cells per label


@pytest.mark.parametrize("name", QUICK)
def test_seed_decides(name):
    first, again, other = (
        baselines.BASELINES[name](*training_cells(), requested(), seed).toarray() for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("name", QUICK)
def test_a_label_without_training_cells_is_an_error(name):
    with pytest.raises(ValueError, match=r"\['d'\].*Known: \['a', 'b', 'c'\]"):
        baselines.BASELINES[name](*training_cells(), np.array(["a", "d"]), 0)


def test_copula_keeps_correlations_and_shuffling_does_not():
    adata, labels = training_cells()
    kept, lost = (
        np.corrcoef(np.log1p(draw(adata, labels, np.repeat("a", 600), 0).toarray()).T)[np.triu_indices(40, 1)].mean()
        for draw in (baselines.gaussian_copula, baselines.genes_shuffled)
    )
    assert kept > 0.15
    assert abs(lost) < 0.03


def test_shuffling_keeps_the_margins_exactly():
    adata, labels = training_cells()
    drawn = baselines.genes_shuffled(adata, labels, labels, 0).toarray()
    real = adata.layers["counts"].toarray()
    for label in "abc":
        np.testing.assert_array_equal(np.sort(drawn[labels == label], axis=0), np.sort(real[labels == label], axis=0))


@pytest.mark.slow
def test_scvi_draws_counts_with_the_library_sizes_of_each_label():
    adata, labels = training_cells()
    counts = adata.layers["counts"].toarray()
    counts[labels == "a"] *= 10
    adata.layers["counts"] = sp.csr_matrix(counts)
    drawn = baselines.scvi_prior(adata, labels, requested(), 0, max_epochs=2).toarray()
    np.testing.assert_array_equal(drawn, drawn.round())
    for label in ("a", "c"):
        real, synthetic = counts[labels == label].sum(1).mean(), drawn[requested() == label].sum(1).mean()
        assert synthetic == pytest.approx(real, rel=0.2)  # 100 training cells, 300 draws
