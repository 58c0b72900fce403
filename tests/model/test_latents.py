"""Latents, reconstructions and likelihoods of given cells."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from scipy import stats

# Matrix products of other shapes add in another order, in single precision.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def test_there_is_one_row_of_all_tokens_per_cell(trained):
    latents = trained.get_latent_representation()

    assert latents.shape == (96, 2 * 4)
    assert latents.dtype == np.float32
    assert np.isfinite(latents).all()
    assert latents.std(0).min() > 0


def test_a_latent_does_not_depend_on_batch_neighbours(trained):
    latents = trained.get_latent_representation()

    np.testing.assert_allclose(trained.get_latent_representation(batch_size=1), latents, **CLOSE)
    np.testing.assert_allclose(trained.get_latent_representation(indices=[5, 2, 80]), latents[[5, 2, 80]], **CLOSE)
    other = trained.adata[[5, 2, 80]].copy()
    np.testing.assert_allclose(trained.get_latent_representation(other), latents[[5, 2, 80]], **CLOSE)


def test_genes_in_another_order_are_refused_and_can_be_put_in_order(trained):
    other = trained.adata[:, ::-1].copy()

    for method in (trained.get_latent_representation, trained.get_likelihood, trained.get_reconstruction):
        with pytest.raises(ValueError, match="another order.*get_var_names"):
            method(other)
    ordered = other[:, trained.get_var_names()].copy()
    np.testing.assert_allclose(trained.get_latent_representation(ordered), trained.get_latent_representation(), **CLOSE)


def test_missing_genes_are_named(trained):
    with pytest.raises(ValueError, match="1 .'gene_4'. missing"):
        trained.get_latent_representation(trained.adata[:, trained.adata.var_names != "gene_4"].copy())


def test_a_mask_selects_cells(trained):
    mask = np.zeros(96, dtype=bool)
    mask[[3, 50, 51]] = True

    by_mask = trained.get_reconstruction(indices=mask, seed=0)
    by_number = trained.get_reconstruction(indices=np.flatnonzero(mask), seed=0)

    assert by_mask.obs_names.tolist() == ["cell_3", "cell_50", "cell_51"]
    assert (by_mask.X != by_number.X).nnz == 0


def test_reconstructions_are_aligned_with_their_cells(trained):
    rows = [7, 3, 90]

    expected = trained.get_reconstruction(sample=False)
    picked = trained.get_reconstruction(indices=rows, sample=False)

    assert expected.obs_names.equals(trained.adata.obs_names)
    assert picked.obs_names.tolist() == ["cell_7", "cell_3", "cell_90"]
    np.testing.assert_allclose(picked.X, expected.X[rows], rtol=1e-3)
    assert picked.obs["dose"].tolist() == trained.adata.obs["dose"].iloc[rows].tolist()
    assert stats.pearsonr(expected.X.sum(1), trained.adata.X.sum(1)).statistic > 0.99  # each keeps its own total


def test_sampled_reconstructions_are_counts_that_depend_on_the_seed_alone(trained):
    one, same, other = (trained.get_reconstruction(seed=seed) for seed in (1, 1, 2))

    assert one.X.format == "csr"
    assert (one.X.data == one.X.data.round()).all()
    assert (one.X != same.X).nnz == 0
    assert (one.X != other.X).nnz > 0


def test_a_sampled_reconstruction_does_not_depend_on_which_others_are_asked_for(trained):
    whole, picked = trained.get_reconstruction(seed=1), trained.get_reconstruction(indices=[7, 3, 90], seed=1)

    differing = (whole.X[[7, 3, 90]] != picked.X).nnz
    assert differing <= 1  # the last bit of a mean may flip a count


def test_the_mean_of_many_reconstructions_is_the_expected_one(make_trained):
    model = make_trained(latent="deterministic")
    expected = model.get_reconstruction(sample=False).X.sum()

    totals = [model.get_reconstruction(seed=seed).X.sum() for seed in range(40)]

    assert np.mean(totals) == pytest.approx(expected, abs=5 * np.std(totals) / np.sqrt(40))  # five standard errors


def test_the_likelihood_is_that_of_the_reconstructed_distribution(make_trained):
    model = make_trained(outliers=False)
    mu = model.get_reconstruction(sample=False).X.astype(float)
    theta = model.module.likelihood.log_theta.detach().exp().numpy().astype(float)

    found = model.get_likelihood()

    expected = stats.nbinom.logpmf(model.adata.X, theta, theta / (theta + mu)).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # single precision


def test_cells_are_likelier_than_their_shuffled_selves(make_trained):
    model = make_trained(max_epochs=30)
    shuffled = model.adata.copy()
    shuffled.X = np.random.default_rng(0).permuted(shuffled.X, axis=1)

    assert model.get_likelihood().mean() > model.get_likelihood(shuffled).mean()


def test_an_untrained_autoencoder_says_what_to_call(make_model):
    model = make_model()

    for method in (model.get_latent_representation, model.get_likelihood, model.get_reconstruction):
        with pytest.raises(RuntimeError, match=r"call train\(\) or train_autoencoder\(\) first"):
            method()


def test_a_gaussian_model_reconstructs_log_values(make_trained):
    model = make_trained(likelihood="gaussian")

    reconstructed = model.get_reconstruction(sample=False)

    assert reconstructed.shape == (96, 12)
    assert "log1p" in reconstructed.uns
    assert np.isfinite(model.get_likelihood()).all()


def test_reconstructions_can_be_written(trained, tmp_path):
    trained.get_reconstruction(seed=0).write_h5ad(tmp_path / "cells.h5ad")


def test_rows_of_a_file_come_in_the_order_asked_for(trained, make_cells, tmp_path):
    cells = make_cells()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")

    expected = trained.get_latent_representation(cells, [7, 3, 5])

    np.testing.assert_allclose(trained.get_latent_representation(backed, [7, 3, 5]), expected, rtol=1e-5, atol=1e-6)
