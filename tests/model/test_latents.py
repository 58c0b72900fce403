"""Latents, reconstructions and likelihoods of given cells."""

from __future__ import annotations

from inspect import signature

import anndata
import numpy as np
import pytest
import scvi
import torch
from scipy import stats
from scvi.model.base import VAEMixin

from scgen_diffusion.model import SCLDM

# Matrix products of other shapes add in another order, in single precision.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
WITH_SCVI_NAMES = [
    "get_latent_representation",
    "get_elbo",
    "get_reconstruction_error",
    "get_normalized_expression",
    "posterior_predictive_sample",
]
READERS = [*WITH_SCVI_NAMES, "get_reconstruction"]


def divergences(model):
    """Return the divergence of each posterior from a standard normal, by the textbook."""
    mean, variance = model.get_latent_representation(return_dist=True)
    return ((mean**2 + variance - 1 - np.log(variance)) / 2).sum(1)


@pytest.mark.parametrize("name", WITH_SCVI_NAMES)
def test_arguments_have_the_names_and_defaults_of_scvi_tools(name):
    ours, theirs = (signature(getattr(model, name)).parameters for model in (SCLDM, scvi.model.SCVI))

    for argument in set(ours) - {"seed"}:
        assert ours[argument].default == theirs[argument].default, argument


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

    for name in READERS:
        with pytest.raises(ValueError, match="another order.*get_var_names"):
            getattr(trained, name)(other)
    ordered = other[:, trained.get_var_names()].copy()
    np.testing.assert_allclose(trained.get_latent_representation(ordered), trained.get_latent_representation(), **CLOSE)


def test_missing_genes_are_named(trained):
    with pytest.raises(ValueError, match="1 .'gene_4'. missing"):
        trained.get_latent_representation(trained.adata[:, trained.adata.var_names != "gene_4"].copy())


@pytest.mark.parametrize("name", READERS)
def test_log_values_are_refused_where_the_model_learned_counts(trained, name):
    other = trained.adata.copy()
    other.raw = other
    other.X = np.log1p(other.X)

    message = r"adata.X holds values that are not whole numbers.*set up with counts there.*`adata = adata.raw.to_adata"
    with pytest.raises(ValueError, match=message):
        getattr(trained, name)(other)


def test_values_and_genes_that_changed_after_training_are_refused(make_trained):
    model = make_trained()
    counts = model.adata.X.copy()

    for change in (np.log1p, lambda x: np.where(x > 3, np.nan, x), lambda x: -x):
        model.adata.X = change(counts)
        with pytest.raises(ValueError, match="adata.X holds"):
            model.get_latent_representation()
    model.adata.X = counts
    model.adata._inplace_subset_var(np.arange(12) != 4)  # as scanpy.pp.filter_genes does
    with pytest.raises(ValueError, match="1 .'gene_4'. missing"):
        model.get_latent_representation()


def test_requested_cells_without_counts_are_named(trained):
    other = trained.adata.copy()
    other.X[3] = 0

    with pytest.raises(ValueError, match="cell_3"):
        trained.get_latent_representation(other, batch_size=2)
    assert len(trained.get_latent_representation(other, [2, 4])) == 2


def test_masked_values_and_genes_are_refused(trained):
    cells = trained.adata.copy()
    cells.X = np.ma.masked_array(cells.X, mask=cells.X > 5)

    with pytest.raises(ValueError, match=r"adata\.X"):
        trained.get_latent_representation(cells)
    with pytest.raises(ValueError, match="is a masked array"):
        type(trained).prepare_query_anndata(cells, trained)


def in_layer(make_cells):
    cells = make_cells()
    cells.layers["counts"] = cells.X.copy()
    cells.X = np.log1p(cells.X)
    return cells


@pytest.mark.usefixtures("nothing_of_sparse_is_compiled")
@pytest.mark.parametrize("name", READERS)
def test_cells_need_no_conditions(make_trained, make_cells, capsys, name):
    cells = in_layer(make_cells)
    model = make_trained(cells, setup={"layer": "counts"})
    bare, other = cells.copy(), cells.copy()
    del bare.obs["dose"]
    other.obs["cell_type"] = "a type that the model does not know"
    read = getattr(model, name)
    reading = {"return_mean": False} if "return_mean" in signature(read).parameters else {}

    def values(adata):
        found = read(adata, seed=0, **reading)
        found = found.get("reconstruction_loss") if isinstance(found, dict) else getattr(found, "X", found)
        return found.toarray() if hasattr(found, "toarray") else getattr(found, "todense", lambda: found)()

    expected, n_known = values(cells), len(model._per_instance_manager_store[model.id])
    for given in (bare, other):
        np.testing.assert_array_equal(values(given), expected)
    assert "dose" not in bare.obs
    assert set(other.obs["cell_type"]) == {"a type that the model does not know"}
    assert len(model._per_instance_manager_store[model.id]) == n_known  # the given cells are not kept
    assert "Input AnnData not setup" not in capsys.readouterr().out


def test_other_cells_need_the_layer_and_no_conditions(make_trained, make_cells, tmp_path):
    cells = in_layer(make_cells)
    model = make_trained(cells, setup={"layer": "counts"})
    bare = cells.copy()
    del bare.obs["dose"]
    bare.write_h5ad(tmp_path / "cells.h5ad")
    expected = model.get_latent_representation()

    for other in (bare, anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")):
        np.testing.assert_array_equal(model.get_latent_representation(other), expected)
    with pytest.raises(KeyError, match="layer"):
        model.get_latent_representation(make_cells())


def test_generated_cells_are_read_by_a_model_of_a_layer(make_trained, make_cells):
    model = make_trained(in_layer(make_cells), setup={"layer": "counts"})
    assert model.get_latent_representation(model.generate(5, seed=0)).shape[0] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indices": []}, "indices"),
        ({"indices": [0.5]}, "indices"),
        ({"indices": ["cell_1"]}, "indices"),
        ({"indices": [True, False]}, "indices"),
        ({"indices": 3}, "indices"),
        ({"indices": [96]}, "indices"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_rows_and_sizes_that_cannot_be_are_refused(trained, arguments, message):
    with pytest.raises(ValueError, match=message):
        trained.get_elbo(**arguments)


def test_cells_of_which_none_are_left_are_refused(trained):
    with pytest.raises(ValueError, match="There are no cells"):
        trained.get_latent_representation(trained.adata[:0].copy())


def test_draws_of_the_latent_have_the_mean_and_variance_that_are_returned(trained):
    mean, variance = trained.get_latent_representation(return_dist=True)
    draws = np.stack([trained.get_latent_representation(give_mean=False, seed=seed) for seed in range(40)])

    np.testing.assert_array_equal(mean, trained.get_latent_representation())
    scattered = (draws - mean) / np.sqrt(variance)
    assert abs(scattered.mean()) < 5 / np.sqrt(scattered.size)  # five standard errors
    assert abs(scattered.var() - 1) < 5 * np.sqrt(2 / scattered.size)


def test_draws_depend_on_seed_and_row_alone(trained, monkeypatch):
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    draw = trained.get_latent_representation

    one = draw(give_mean=False, seed=1)

    np.testing.assert_allclose(draw(give_mean=False, seed=1, batch_size=7), one, **CLOSE)
    np.testing.assert_allclose(draw(indices=[7, 3], give_mean=False, seed=1), one[[7, 3]], **CLOSE)
    assert (draw(give_mean=False, seed=2) != one).all()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    monkeypatch.setattr(scvi.settings, "_seed", 1)
    np.testing.assert_array_equal(draw(give_mean=False), one)


def test_a_deterministic_latent_has_no_variance_and_no_bound(make_trained):
    model = make_trained(latent="deterministic")

    mean, variance = model.get_latent_representation(return_dist=True)
    np.testing.assert_array_equal(model.get_latent_representation(give_mean=False), mean)
    assert (variance == 0).all()
    with pytest.raises(NotImplementedError, match="latent"):
        model.get_elbo()
    error, theirs = model.get_reconstruction_error(), VAEMixin.get_reconstruction_error(model)
    assert error.keys() == theirs.keys()
    assert error["reconstruction_loss"] == pytest.approx(theirs["reconstruction_loss"].item(), rel=1e-5)


def test_the_elbo_is_the_likelihood_minus_the_divergence(make_trained):
    model = make_trained(outliers=False)
    mu = model.get_normalized_expression(library_size="latent", seed=2, return_numpy=True).astype(float)
    theta = model.module.likelihood.log_theta.detach().exp().numpy().astype(float)

    errors = model.get_reconstruction_error(return_mean=False, seed=2)["reconstruction_loss"]
    elbos = model.get_elbo(return_mean=False, seed=2)

    expected = -stats.nbinom.logpmf(model.adata.X, theta, theta / (theta + mu)).sum(1)
    np.testing.assert_allclose(errors, expected, rtol=1e-4)  # single precision
    np.testing.assert_allclose(elbos, -(errors + divergences(model)), rtol=1e-4)
    assert model.get_elbo(seed=2, batch_size=5) == pytest.approx(elbos.mean(), rel=1e-5)
    assert model.get_elbo(seed=3) != model.get_elbo(seed=2)


def test_scvi_tools_computes_the_same_bound_from_the_module(trained):
    """Without noise, which its call does not know of, the module takes the mean of the posterior."""
    module = trained.module
    x = torch.from_numpy(trained.adata.X)
    with torch.inference_mode():
        decoded = module.generative(module.inference(x)["z"], module.totals(x))
        expected = module.likelihood(x, **decoded).numpy() - divergences(trained)

    np.testing.assert_allclose(VAEMixin.get_elbo(trained, return_mean=False).numpy(), expected, rtol=1e-4)
    assert trained.get_elbo(seed=0) == pytest.approx(expected.mean(), rel=0.2)  # one draw in place of the mean


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


def test_a_sampled_reconstruction_does_not_depend_on_other_cells(trained):
    whole, picked = trained.get_reconstruction(seed=1), trained.get_reconstruction(indices=[7, 3, 90], seed=1)

    differing = (whole.X[[7, 3, 90]] != picked.X).nnz
    assert differing <= 1  # the last bit of a mean may flip a count


def test_the_mean_of_many_reconstructions_is_the_expected_one(make_trained):
    model = make_trained(latent="deterministic")
    expected = model.get_reconstruction(sample=False).X.sum()

    totals = [model.get_reconstruction(seed=seed).X.sum() for seed in range(40)]

    assert np.mean(totals) == pytest.approx(expected, abs=5 * np.std(totals) / np.sqrt(40))  # five standard errors


def test_cells_are_likelier_than_their_shuffled_selves(make_trained):
    model = make_trained(max_epochs={"autoencoder": 30, "prior": 1})
    shuffled = model.adata.copy()
    shuffled.X = np.random.default_rng(0).permuted(shuffled.X, axis=1)

    whole, mixed = (model.get_reconstruction_error(cells, seed=0)["reconstruction_loss"] for cells in (None, shuffled))
    assert whole < mixed


def test_an_untrained_autoencoder_says_what_to_call(make_model):
    model = make_model()

    for name in READERS:
        with pytest.raises(RuntimeError, match=r"call train\(\) or train_autoencoder\(\) first"):
            getattr(model, name)()


def test_a_gaussian_model_reconstructs_log_values(make_trained):
    model = make_trained(likelihood="gaussian")

    reconstructed = model.get_reconstruction(sample=False)

    assert reconstructed.shape == (96, 12)
    assert "log1p" in reconstructed.uns
    assert np.isfinite(model.get_reconstruction_error(seed=0)["reconstruction_loss"])


def test_reconstructions_can_be_written(trained, tmp_path):
    trained.get_reconstruction(seed=0).write_h5ad(tmp_path / "cells.h5ad")


def test_rows_of_a_file_come_in_the_requested_order(trained, make_cells, tmp_path):
    cells = make_cells()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")

    expected = trained.get_latent_representation(cells, [7, 3, 5])

    np.testing.assert_allclose(trained.get_latent_representation(backed, [7, 3, 5]), expected, rtol=1e-5, atol=1e-6)
