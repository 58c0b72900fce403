"""Latents, reconstructions, likelihoods, normalised expression and posterior predictive samples of given cells."""

from inspect import signature

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import scvi
import torch
from anndata import AnnData
from scipy import stats
from scvi.model.base import VAEMixin

from scgen_diffusion.model import SCLDM

pytestmark = pytest.mark.usefixtures("nothing_of_sparse_is_compiled")

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
        *(("indices", value) for value in ([], [0.5], [True, False], [96], [[0, 1], [2, 3]])),
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


def test_frequencies_add_up_to_the_library_size(trained):
    frequencies = trained.get_normalized_expression(seed=0)
    scaled = trained.get_normalized_expression(library_size=1e4, seed=0)

    assert frequencies.index.equals(trained.adata.obs_names)
    assert frequencies.columns.equals(trained.adata.var_names)
    np.testing.assert_allclose(frequencies.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(scaled, 1e4 * frequencies, rtol=1e-5)


def test_samples_are_draws_of_the_latent(trained):
    samples = trained.get_normalized_expression(n_samples=3, return_mean=False, indices=[7, 3], seed=0)
    mean = trained.get_normalized_expression(n_samples=3, indices=[7, 3], seed=0, batch_size=1)
    first = trained.get_normalized_expression(seed=0, return_numpy=True)

    assert samples.shape == (3, 2, 12)
    assert mean.index.tolist() == ["cell_7", "cell_3"]
    np.testing.assert_allclose(mean, samples.mean(0), rtol=1e-4)
    np.testing.assert_allclose(samples[0], first[[7, 3]], rtol=1e-4)
    assert (samples[0] != samples[1]).all()


def test_genes_are_chosen_by_name(trained):
    whole = trained.get_normalized_expression(seed=0)
    part = trained.get_normalized_expression(gene_list=iter(["gene_5", "gene_2"]), seed=0)

    assert part.columns.tolist() == ["gene_2", "gene_5"]  # in the model's order, as in scvi-tools
    np.testing.assert_allclose(part, whole[part.columns], rtol=1e-5)
    assert trained.posterior_predictive_sample(gene_list=["gene_5", "gene_2"], n_samples=2).shape == (96, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"gene_list": ["gene_51"]}, ValueError, "gene_51"),
        ({"gene_list": "gene_5"}, TypeError, "gene_5"),
        ({"library_size": 0}, ValueError, "library_size"),
        ({"library_size": "own"}, ValueError, "own"),
        ({"n_samples": 0}, ValueError, "n_samples"),
    ],
)
def test_what_cannot_be_normalised_is_refused(trained, arguments, error, name):
    with pytest.raises(error, match=name):
        trained.get_normalized_expression(**arguments)


def test_posterior_predictive_samples_are_reconstructions(trained):
    reconstructed = trained.get_reconstruction(seed=4).X.toarray()

    samples = trained.posterior_predictive_sample(n_samples=3, seed=4, batch_size=10).todense()

    np.testing.assert_array_equal(trained.posterior_predictive_sample(seed=4).todense(), reconstructed)
    assert samples.shape == (96, 12, 3)
    assert (samples[..., 0] != reconstructed).sum() <= 1  # the last bit of a mean may flip a count
    assert (samples[..., 1] != samples[..., 0]).any()


def test_posterior_predictive_checks_of_scvi_tools_take_the_model(make_trained, make_cells):
    """Sparse counts must be integers: scvi-tools' own code fails for others."""
    model = make_trained(max_epochs={"autoencoder": 30, "prior": 1})

    for matrix in (np.asarray, lambda x: sp.csr_matrix(x.astype(int))):
        check = scvi.criticism.PosteriorPredictiveCheck(make_cells(matrix=matrix), {"SCLDM": model}, n_samples=4)
        check.coefficient_of_variation("cells")
        check.zero_fraction()

        variation, zeros = check.metrics["cv_gene"], check.metrics["zero_fraction"]
        assert variation.index.equals(model.adata.var_names)
        assert np.corrcoef(variation["SCLDM"], variation["Raw"])[0, 1] > 0.5
        assert zeros["SCLDM"].mean() == pytest.approx(zeros["Raw"].mean(), abs=0.1)


def test_a_gaussian_head_reconstructs_log_values_and_has_neither_frequencies_nor_samples(make_trained):
    model = make_trained(likelihood="gaussian")

    for method in (model.get_normalized_expression, model.posterior_predictive_sample):
        with pytest.raises(NotImplementedError, match="get_reconstruction"):
            method()
    assert "log1p" in model.get_reconstruction(sample=False).uns
    assert np.isfinite(model.get_elbo())


def test_a_gene_that_a_third_of_a_type_has_is_not_taken_for_outliers():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    profiles = rng.gamma(0.3, 1.0, (4, 120))
    counts = rng.poisson(80 * profiles[labels] / profiles.sum(1)[labels, None] * rng.gamma(5, 0.2, (400, 1)))
    is_on = (labels == 0) & (rng.random(400) < 0.3)
    counts[:, 0] = np.where(is_on, rng.negative_binomial(5, 0.1, 400), 0)
    cells = AnnData(counts.astype(np.float32), obs={"cell_type": labels.astype(str)})
    SCLDM.setup_anndata(cells, condition_keys=["cell_type"])
    scvi.settings.seed = 0
    model = SCLDM(cells)

    model.train_autoencoder(40, enable_progress_bar=False, accelerator="cpu")

    decoded = model.get_reconstruction(seed=0).X.toarray()
    share = decoded[labels == 0, 0].mean() / counts[labels == 0, 0].mean()
    assert share > 0.6  # if outliers count from the start, below 0.01
    assert decoded[labels > 0, 0].mean() < 0.2
