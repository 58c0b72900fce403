"""Normalised expression and posterior predictive samples of given cells."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import scvi
from anndata import AnnData

from scgen_diffusion.model import SCLDM

pytestmark = pytest.mark.usefixtures("nothing_of_sparse_is_compiled")


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

    model.train_autoencoder(40, plan_kwargs={"max_rounds": 1}, enable_progress_bar=False, accelerator="cpu")

    decoded = model.get_reconstruction(seed=0).X.toarray()
    share = decoded[labels == 0, 0].mean() / counts[labels == 0, 0].mean()
    assert share > 0.6  # if outliers count from the start, below 0.01
    assert decoded[labels > 0, 0].mean() < 0.2
