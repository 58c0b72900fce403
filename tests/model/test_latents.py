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


def test_a_latent_of_all_tokens_does_not_depend_on_batch_neighbours(trained, tmp_path):
    latents, rows, cells = trained.get_latent_representation(), [5, 2, 80], trained.adata.copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    ordered = cells[:, ::-1][:, trained.get_var_names()].copy()
    cells.X[3] = 0  # it is not read

    assert latents.shape == (96, 2 * 4)
    assert latents.dtype == np.float32
    assert latents.std(0).min() > 0
    np.testing.assert_allclose(trained.get_latent_representation(batch_size=1), latents, **CLOSE)
    for given in (None, cells, backed, ordered):
        np.testing.assert_allclose(trained.get_latent_representation(given, rows), latents[rows], **CLOSE)
    np.testing.assert_allclose(trained.get_latent_representation(cells[rows].copy()), latents[rows], **CLOSE)


CANNOT_BE_READ = {
    "genes in another order": (lambda cells: cells[:, ::-1].copy(), "get_var_names"),
    "missing genes": (lambda cells: cells[:, cells.var_names != "gene_4"].copy(), "gene_4"),
    "log values": (lambda cells: setattr(cells, "X", np.log1p(cells.X)), r"adata\.X"),
    "empty cells": (lambda cells: cells.X.__setitem__(3, 0), "cell_3"),
    "no cells": (lambda cells: cells[:0].copy(), "no cells"),
}


@pytest.mark.parametrize(("change", "named"), CANNOT_BE_READ.values(), ids=CANNOT_BE_READ)
@pytest.mark.parametrize("name", READERS)
def test_cells_that_cannot_be_read_are_refused_by_every_reader(trained, make_model, name, change, named):
    cells = trained.adata.copy()
    changed = change(cells)
    with pytest.raises(ValueError, match=named):
        getattr(trained, name)(cells if changed is None else changed, batch_size=2)
    with pytest.raises(RuntimeError, match="train_autoencoder"):
        getattr(make_model(), name)()


@pytest.fixture(scope="module")
def of_layer(make_trained, make_cells):
    cells = make_cells()
    cells.layers["counts"] = cells.X.copy()
    cells.X = np.log1p(cells.X)
    return make_trained(cells, setup={"layer": "counts"})


@pytest.mark.usefixtures("nothing_of_sparse_is_compiled")
@pytest.mark.parametrize("name", READERS)
def test_cells_need_no_conditions_but_their_layer(of_layer, make_cells, capsys, tmp_path, name):
    cells = of_layer.adata
    bare, other = cells.copy(), cells.copy()
    del bare.obs["dose"]
    other.obs["cell_type"] = "a type that the model does not know"
    bare.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    read = getattr(of_layer, name)
    reading = {"return_mean": False} if "return_mean" in signature(read).parameters else {}

    def values(adata):
        found = read(adata, seed=0, **reading)
        found = found.get("reconstruction_loss") if isinstance(found, dict) else getattr(found, "X", found)
        return found.toarray() if hasattr(found, "toarray") else getattr(found, "todense", lambda: found)()

    expected = values(cells)
    for given in (bare, other, backed, cells[:]):
        np.testing.assert_array_equal(values(given), expected)
    assert "dose" not in bare.obs
    assert "Input AnnData not setup" not in capsys.readouterr().out
    with pytest.raises(KeyError, match="layer"):
        read(make_cells())


@pytest.mark.parametrize(
    ("named", "value"),
    [
        *(("indices", value) for value in ([], [0.5], [True, False], [96])),
        ("batch_size", 0),
        ("seed", -1),
    ],
)
def test_rows_and_sizes_that_cannot_be_are_refused(trained, named, value):
    with pytest.raises(ValueError, match=named):
        trained.get_elbo(**{named: value})


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


def test_reconstructions_are_aligned_with_their_cells(trained):
    rows = [7, 3, 90]

    expected = trained.get_reconstruction(sample=False)
    picked = trained.get_reconstruction(indices=rows, sample=False)

    assert expected.obs_names.equals(trained.adata.obs_names)
    assert picked.obs_names.tolist() == ["cell_7", "cell_3", "cell_90"]
    np.testing.assert_allclose(picked.X, expected.X[rows], rtol=1e-3)
    assert picked.obs["dose"].tolist() == trained.adata.obs["dose"].iloc[rows].tolist()
    assert stats.pearsonr(expected.X.sum(1), trained.adata.X.sum(1)).statistic > 0.99  # each keeps its own total


def test_sampled_reconstructions_are_counts_that_depend_on_seed_and_row_alone(trained, tmp_path):
    one, same, other = (trained.get_reconstruction(seed=seed) for seed in (1, 1, 2))

    assert one.X.format == "csr"
    assert (one.X.data == one.X.data.round()).all()
    assert (one.X != same.X).nnz == 0
    assert (one.X != other.X).nnz > 0
    for indices, rows in (([7, 3, 90], [7, 3, 90]), (np.isin(np.arange(96), [7, 3, 90]), [3, 7, 90])):
        picked = trained.get_reconstruction(indices=indices, seed=1)
        assert picked.obs_names.tolist() == [f"cell_{row}" for row in rows]
        assert (one.X[rows] != picked.X).nnz <= 1  # the last bit of a mean may flip a count
    one.write_h5ad(tmp_path / "cells.h5ad")
