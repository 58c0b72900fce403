"""Points come from arrays and from AnnData alike."""

import anndata as ad
import numpy as np
import pytest

from scgen_diffusion.metrics import (
    ComparisonSpace,
    augmentation_gain,
    energy_distance,
    representation,
    wasserstein_2,
)


def counts(n_cells=60, n_genes=20, *, seed=0):
    return np.random.default_rng(seed).poisson(3.0, (n_cells, n_genes)).astype(np.float32)


def test_arrays_are_points_as_they_are():
    values = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    assert representation(values) is values


def test_the_entry_of_obsm_is_read():
    adata = ad.AnnData(counts(), obsm={"X_mine": np.ones((60, 3))})
    assert representation(adata, "X_mine").shape == (60, 3)


def test_a_space_writes_what_the_metrics_read():
    real, synthetic = ad.AnnData(counts(seed=1)), ad.AnnData(counts(seed=2))
    space = ComparisonSpace.fit(counts(seed=3), n_components=4)
    space.write(real, synthetic)
    assert real.obsm["X_pca"].shape == (60, 4)
    assert wasserstein_2(real, synthetic) == wasserstein_2(space.project(real), space.project(synthetic))


def test_the_layer_of_a_space_is_that_of_the_real_cells_and_generated_ones_may_lack_it():
    real, synthetic = ad.AnnData(np.log1p(counts(seed=1)), layers={"raw": counts(seed=1)}), ad.AnnData(counts(seed=2))
    space = ComparisonSpace.fit(counts(seed=3), n_components=4)
    space.write(real, synthetic, layer="raw")
    assert np.array_equal(real.obsm["X_pca"], space.project(counts(seed=1)))
    assert np.array_equal(synthetic.obsm["X_pca"], space.project(counts(seed=2)))
    with pytest.raises(KeyError, match="raw"):
        space.write(synthetic, real, layer="raw")


def test_components_that_were_computed_apart_are_refused():
    def with_components(loadings):
        return ad.AnnData(counts(), obsm={"X_pca": np.ones((60, 2))}, varm={"PCs": loadings})

    real, synthetic = with_components(np.eye(20, 2)), with_components(-np.eye(20, 2))
    with pytest.raises(ValueError, match="of `real` and `synthetic` were computed apart, so their axes differ"):
        wasserstein_2(real, synthetic)
    labels = np.repeat(["a", "b"], 30)
    with pytest.raises(ValueError, match="of `train_values` and `synthetic_values` were computed apart"):
        augmentation_gain(real, labels, synthetic, labels, real, labels)
    fewer = ad.AnnData(counts()[:, :15], obsm={"X_pca": np.ones((60, 2))}, varm={"PCs": np.eye(15, 2)})
    with pytest.raises(ValueError, match="computed apart"):
        wasserstein_2(real, fewer)

    assert wasserstein_2(real, with_components(np.eye(20, 2))) == 0
    ComparisonSpace.fit(counts(seed=3), n_components=4).write(synthetic)
    assert "PCs" not in synthetic.varm


def test_an_unknown_entry_is_named_with_the_known_ones():
    adata = ad.AnnData(counts(), obsm={"X_umap": np.ones((60, 2))})
    with pytest.raises(KeyError, match="'X_pca', which `real.obsm` lacks. Known, closest first: 'X_umap'"):
        energy_distance(adata, adata)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones(3), r"shape \(cells, features\), but its shape is \(3,\)"),
        (np.ones((0, 3)), r"its shape is \(0, 3\)"),
        ([[1.0, np.nan]], "infinite or missing"),
    ],
)
def test_arrays_that_are_not_points_raise(values, message):
    with pytest.raises(ValueError, match=message):
        representation(values)


def test_sets_of_different_features_are_refused():
    with pytest.raises(ValueError, match="`real` has 2 features and `synthetic` 3"):
        wasserstein_2(np.ones((4, 2)), np.ones((4, 3)))
