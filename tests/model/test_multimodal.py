"""SCLDM on cells with several modalities, some of which are missing in some cells."""

from copy import deepcopy

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from scgen_diffusion.model import MULTISCLDM, SCLDM, load
from scgen_diffusion.module import Posterior

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:var_names are not unique"),
    pytest.mark.usefixtures("nothing_of_sparse_is_compiled"),
]

TYPES = np.array(["B", "T", "NK"])
N_CELLS, N_WITH_PROTEIN = 90, 60
UNPAIRED = [3, 60, 88]  # the last two have no protein


def make_mudata(seed=0):
    """Build cells with rna, protein (of the first sixty, in reverse order), and 0/1 accessibility."""
    rng = np.random.default_rng(seed)
    types = rng.integers(0, 3, N_CELLS)
    names = [f"cell_{number}" for number in range(N_CELLS)]

    def part(prefix, n_features, scale, largest=np.inf):
        programme = rng.gamma(1.0, scale, (3, n_features))
        counts = rng.poisson(programme[types] * rng.lognormal(0, 0.3, (N_CELLS, 1)))
        counts[:, 0] += 1
        var = pd.DataFrame({"symbol": "s"}, index=[f"{prefix}{number}" for number in range(n_features)])
        x = sp.csr_matrix(np.minimum(counts, largest).astype(np.float32))
        return anndata.AnnData(x, obs=pd.DataFrame(index=names), var=var)

    parts = {"rna": part("f", 9, 3.0), "prot": part("f", 4, 30.0), "atac": part("peak", 7, 0.5, largest=1)}
    parts["prot"] = parts["prot"][:N_WITH_PROTEIN][::-1].copy()
    mdata = mudata.MuData(parts)
    mdata.obs["cell_type"] = pd.Series(TYPES[types], index=names).reindex(mdata.obs_names)
    return mdata


def make_model(tiny, mdata=None, setup=None, **options):
    mdata = make_mudata() if mdata is None else mdata
    MULTISCLDM.setup_mudata(mdata, condition_keys=["cell_type"], **(setup or {}))
    return MULTISCLDM(mdata, **{**tiny, **options})


@pytest.fixture(scope="module")
def multimodal(tiny, quick):
    torch.manual_seed(0)
    model = make_model(tiny)
    model.train(3, **quick)
    return model


def values(mdata):
    return np.hstack([mdata[name].X.toarray() for name in mdata.mod])


def rna_of(mdata, n_cells=10):
    alone = mudata.MuData({"rna": mdata["rna"][:n_cells].copy()})
    alone.obs = mdata.obs.reindex(alone.obs_names)
    return alone


def test_generated_cells_are_paired(multimodal, tmp_path):
    cells = multimodal.generate(40, condition={"cell_type": ["B", "T"]}, seed=0)
    cells.write_h5mu(tmp_path / "cells.h5mu")

    np.testing.assert_array_equal(values(mudata.read_h5mu(tmp_path / "cells.h5mu")), values(cells))
    found = {name: modality.likelihood for name, modality in multimodal.modalities.items()}
    assert found == {"rna": "negative_binomial", "prot": "negative_binomial", "atac": "bernoulli"}
    assert list(cells.mod) == list(found)
    for name, part in cells.mod.items():
        assert part.obs_names.equals(cells.obs_names)
        assert list(part.var_names) == list(multimodal.adata[name].var_names)
        assert part.var["symbol"].eq("s").all()
        assert (part.X.data >= 1).all()
        assert (part.X.data == np.round(part.X.data)).all()
    assert cells["atac"].X.max() == 1
    assert cells.obs["cell_type"].tolist() == ["B"] * 20 + ["T"] * 20
    assert cells.uns["scgen_diffusion"]["seed"] == 0


def test_same_seed_same_cells_whatever_the_batch_also_of_a_loaded_model(multimodal, tmp_path):
    first = values(multimodal.generate(200, seed=3))

    np.testing.assert_array_equal(values(multimodal.generate(200, seed=3, batch_size=1)), first)
    assert (values(multimodal.generate(200, seed=4)) != first).any()
    multimodal.save(tmp_path / "model")
    found = MULTISCLDM.load(tmp_path / "model", adata=False, accelerator="cpu").generate(20, seed=3)
    np.testing.assert_array_equal(values(found), first[:20])
    assert found["prot"].var["symbol"].eq("s").all()


def test_library_sizes_are_given_per_modality(multimodal):
    given = multimodal.generate(60, library_size={"prot": 5000, "atac": np.full(60, 3.0)}, seed=0)
    drawn = multimodal.generate(60, seed=0)

    assert abs(given["prot"].X.sum(1).mean() / 5000 - 1) < 0.2  # overdispersed counts around their means
    assert abs(given["atac"].X.sum(1).mean() - 3) < 0.8
    assert (given["rna"].X != drawn["rna"].X).nnz == 0
    assert [cells.uns["scgen_diffusion"]["library_size"] for cells in (given, drawn)] == ["given", "drawn"]


def test_library_sizes_that_cannot_be_are_refused(multimodal):
    for error, name, library_size in (
        (TypeError, "library_size", 1000),
        (TypeError, "library_size", "uniform"),
        (TypeError, "rna", {"rna": "normal"}),
        (ValueError, "rna", {"rna": [1, 2]}),
        (ValueError, "protein", {"protein": 10}),
        (ValueError, "atac", {"atac": 7}),
    ):
        with pytest.raises(error, match=name):
            multimodal.generate(3, library_size=library_size)


def test_latents_and_likelihoods_do_not_depend_on_neighbours(multimodal):
    def errors(**options):
        return multimodal.get_reconstruction_error(return_mean=False, seed=0, **options)["reconstruction_loss"]

    mean, variance = multimodal.get_latent_representation(return_dist=True)
    close = {"rtol": 1e-4, "atol": 1e-4}  # matrix products of other shapes add in another order

    assert mean.shape == (N_CELLS, 8)
    np.testing.assert_allclose(multimodal.get_latent_representation(batch_size=1), mean, **close)
    np.testing.assert_allclose(errors(indices=[70, 3], batch_size=1), errors()[[70, 3]], **close)
    divergence = ((mean**2 + variance - 1 - np.log(variance)) / 2).sum(1)  # of the modalities that a cell has
    elbo = multimodal.get_elbo(return_mean=False, seed=0)
    np.testing.assert_allclose(elbo, -(errors() + divergence), rtol=1e-4)


def test_what_a_cell_lacks_is_imputed(multimodal):
    alone = rna_of(multimodal.adata)
    expected, drawn = (multimodal.get_reconstruction(alone, sample=sample, seed=0) for sample in (False, True))
    one, two = ({"modality": name, "library_size": "latent"} for name in ("prot", "atac"))
    denoised = multimodal.get_normalized_expression(alone, **one, gene_list=["f2"])

    measured = multimodal.adata["prot"].X.sum(1).mean()
    assert expected["prot"].shape == (10, 4)
    assert (expected["prot"].X > 0).all()
    assert 0.5 < expected["prot"].X.sum(1).mean() / measured < 2  # far from the smallest library size, 1
    assert set(np.unique(drawn["atac"].X.toarray())) <= {0.0, 1.0}
    assert drawn.obs["cell_type"].tolist() == alone.obs["cell_type"].tolist()
    assert denoised.index.equals(alone.obs_names)
    assert list(denoised.columns) == ["f2"]
    assert (denoised > 0).all(axis=None)
    assert multimodal.get_normalized_expression(alone, **two, return_numpy=True).shape == (10, 7)


def test_denoised_values_are_those_of_reconstructions(multimodal, monkeypatch):
    monkeypatch.setattr(Posterior, "draw", lambda posterior, noise: posterior.mean)
    expected = multimodal.get_reconstruction(indices=UNPAIRED, sample=False)

    own = multimodal.get_normalized_expression(indices=UNPAIRED, library_size="latent")

    assert list(own) == ["rna", "prot", "atac"]
    drawn = multimodal.posterior_predictive_sample(indices=UNPAIRED, seed=4)
    reconstructed = multimodal.get_reconstruction(indices=UNPAIRED, seed=4)
    for name, table in own.items():
        np.testing.assert_array_equal(drawn[name].todense(), reconstructed[name].X.toarray())
        assert table.index.equals(multimodal.adata.obs_names[UNPAIRED])
        assert list(table.columns) == list(multimodal.modalities[name].features)
        np.testing.assert_allclose(table, expected[name].X, rtol=1e-5)
    for name in ("rna", "prot"):
        scaled = multimodal.get_normalized_expression(indices=UNPAIRED, modality=name, library_size=1e4)
        counts = expected[name].X
        np.testing.assert_allclose(scaled, 1e4 * counts / counts.sum(1, keepdims=True), rtol=1e-4)


def test_by_default_counts_are_frequencies_and_ones_are_probabilities(multimodal):
    def expression(**options):
        return multimodal.get_normalized_expression(seed=0, **options)

    values = expression()
    for name in ("rna", "prot"):
        np.testing.assert_allclose(values[name].sum(axis=1), 1, rtol=1e-5)
    assert values["atac"].to_numpy().min() > 0
    assert values["atac"].to_numpy().max() <= 1
    n_ones = multimodal.adata["atac"].X.toarray().sum(1).clip(max=6.5)  # the likelihood's limit, half a peak below all
    np.testing.assert_allclose(values["atac"].sum(axis=1), n_ones, rtol=1e-3)
    assert values["atac"].equals(expression(modality="atac", library_size="latent"))
    np.testing.assert_allclose(expression(modality="atac", library_size=3).sum(axis=1), 3, rtol=1e-3)


def test_a_saved_model_has_its_cells_or_reads_others(multimodal, tmp_path):
    multimodal.save(tmp_path / "model", save_anndata=True)
    alone = rna_of(multimodal.adata)
    loaded, without = (MULTISCLDM.load(tmp_path / "model", adata=adata, accelerator="cpu") for adata in (None, False))

    assert "_scgen_expression" not in mudata.read_h5mu(tmp_path / "model" / "mdata.h5mu").obsm
    assert "_scgen_expression" in multimodal.adata.obsm
    for given, model in ((None, loaded), (alone, without)):
        found, expected = (some.get_latent_representation(given) for some in (model, multimodal))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_padded", [False, True])
def test_modalities_may_lack_all_cells_that_a_trained_model_reads(multimodal, is_padded):
    """A part of a MuData keeps modalities that its cells lack, and others pad them with zeros."""
    part = multimodal.adata[[f"cell_{number}" for number in range(N_WITH_PROTEIN, N_CELLS)]].copy()
    part.obsm.clear()
    alone = mudata.MuData({name: part[name].copy() for name in ("rna", "atac")})
    alone.obs["cell_type"] = part.obs["cell_type"]
    if is_padded:
        zeros = anndata.AnnData(np.zeros((part.n_obs, 4), np.float32), obs=pd.DataFrame(index=part.obs_names))
        zeros.var_names = part["prot"].var_names
        part = mudata.MuData({"rna": part["rna"], "prot": zeros, "atac": part["atac"]})
        part.obs["cell_type"] = alone.obs["cell_type"]
    assert part["prot"].n_obs == (part.n_obs if is_padded else 0)

    found, expected = (multimodal.get_latent_representation(cells) for cells in (part, alone))
    np.testing.assert_array_equal(found, expected)
    latents = pd.DataFrame(multimodal.get_latent_representation(), index=multimodal.adata.obs_names)
    np.testing.assert_allclose(expected, latents.loc[alone.obs_names], rtol=1e-4, atol=1e-4)


def test_cells_and_methods_that_do_not_fit_are_refused(multimodal, treated, tmp_path):
    mdata = make_mudata()
    rna = mdata["rna"].copy()
    rna.obs["batch"] = "one"
    other = mudata.MuData({"rna": rna[:, ::-1].copy()})
    multimodal.save(tmp_path / "model")

    for error, named, use in (
        (KeyError, "batch", lambda: MULTISCLDM.setup_mudata(other, condition_keys=["batch"])),  # is not global
        (TypeError, "AnnData", lambda: MULTISCLDM.setup_mudata(rna)),
        (NotImplementedError, "setup_mudata", lambda: MULTISCLDM.setup_anndata(rna)),
        (TypeError, "MuData", lambda: SCLDM.setup_anndata(mdata)),
        (ValueError, "rna", lambda: multimodal.get_latent_representation(other)),
        (TypeError, "AnnData", lambda: multimodal.get_latent_representation(rna)),
        (TypeError, "AnnData", lambda: MULTISCLDM.load(tmp_path / "model", adata=rna)),
        (TypeError, "MuData", lambda: treated.predict_perturbation(rna, DRUG)),
        (TypeError, "AnnData", lambda: MULTISCLDM.load_query_data(rna, multimodal)),
        (TypeError, "AnnData", lambda: MULTISCLDM.prepare_query_anndata(other, multimodal)),
        (NotImplementedError, "write_h5mu", lambda: multimodal.generate_to(tmp_path / "cells.h5mu", 3)),
        (NotImplementedError, "write_h5mu", lambda: multimodal.predict_perturbation_to(tmp_path / "cells.h5mu")),
    ):
        with pytest.raises(error, match=named):
            use()


def test_arrays_are_conditions_of_all_modalities(tiny, quick):
    mdata = make_mudata()
    mdata.obsm["spatial"] = np.random.default_rng(0).uniform(0, 9, (mdata.n_obs, 2))
    model = make_model(tiny, mdata, setup={"continuous_condition_keys": ["spatial"]})
    model.train(1, **quick)

    made = model.generate(condition={"spatial": [[1, 2], [3, 4]]}, seed=0, n_steps=2)

    for cells in (made, *made.mod.values()):
        assert cells.obsm["spatial"].tolist() == [[1, 2], [3, 4]]
        assert "spatial" not in cells.obs
    assert model.generate(condition=mdata[:3], seed=0, n_steps=1).n_obs == 3


def make_treated(seed=0):
    """Build cells of which half are treated; treatment moves a feature of rna and a protein."""
    mdata = make_mudata(seed)
    mdata.obs["drug"] = np.where(pd.Index(mdata.obs_names).str[5:].astype(int) % 2, "yes", "no")
    for name, feature in (("rna", 3), ("prot", 2)):
        part = mdata[name]
        x = part.X.toarray()
        x[part.obs_names.str[5:].astype(int) % 2 == 1, feature] += 300 if name == "prot" else 100
        part.X = sp.csr_matrix(x)
    return mdata


def of_drugs(mdata, tiny):
    MULTISCLDM.setup_mudata(mdata, condition_keys=["cell_type", "drug"], control_values={"drug": "no"})
    return MULTISCLDM(mdata, **tiny)


@pytest.fixture(scope="module")
def treated(tiny, quick):
    """Train a model with a perturbation flow from untreated to treated cells."""
    torch.manual_seed(0)
    model = of_drugs(make_treated(), tiny)
    small_steps = {**quick, "batch_size": 16, "train_size": 1.0}
    model.train({"autoencoder": 15, "prior": 1, "perturbation_flow": 5}, **small_steps)
    return model


def untreated(model):
    return model.adata[(model.adata.obs["drug"] == "no").to_numpy()].copy()


DRUG = {"drug": "yes"}


def test_treated_counterparts_of_untreated_cells(treated, tmp_path):
    """The way of a user: prepare, save, load, predict, write, read."""
    treated.save(tmp_path / "model")
    control = untreated(treated)

    loaded = MULTISCLDM.load(tmp_path / "model", adata=False)
    found = loaded.predict_perturbation(control, DRUG, seed=0)
    found.write_h5mu(tmp_path / "cells.h5mu")

    of_copy, again = (model.predict_perturbation(control.copy(), DRUG, seed=0) for model in (loaded, treated))
    for same in (of_copy, again, mudata.read_h5mu(tmp_path / "cells.h5mu")):
        np.testing.assert_array_equal(values(found), values(same))
    assert list(found.mod) == ["rna", "prot", "atac"]
    assert found.obs_names.str.replace(r"^MULTISCLDM-[0-9a-f]{10}-\d+-", "", regex=True).equals(control.obs_names)
    for cells in (found, *found.mod.values()):
        assert set(cells.obs["drug"]) == {"yes"}
        assert set(cells.obs["drug_of_control"]) == {"no"}
        assert cells.obs["cell_type"].tolist() == control.obs["cell_type"].tolist()
        assert cells.uns["scgen_diffusion"]["method"] == "perturbation_flow"
    for name, feature in (("rna", "f3"), ("prot", "f2")):
        measured = control[name].to_df()
        change = (found[name].to_df().set_axis(control.obs_names).loc[measured.index] - measured).mean()
        assert change.idxmax() == feature
        assert change.max() > 1  # of about thirty counts in rna, 200 in proteins; totals stay
    assert found["atac"].X.max() == 1


def test_cells_keep_what_they_have_and_get_what_they_lack(treated):
    control = untreated(treated)
    control.obsm.clear()

    same = treated.predict_perturbation(control, seed=0)

    for name in ("rna", "prot", "atac"):
        rows = same.obs_names.str.split("-").str[-1].get_indexer(control[name].obs_names)
        np.testing.assert_allclose(same[name].X[rows].toarray(), control[name].X.toarray())
    lacking = ~control.obs_names.isin(control["prot"].obs_names)
    assert lacking.any()
    totals = same["prot"].X[lacking].sum(1)
    assert 0.2 < totals.mean() / control["prot"].X.sum(1).mean() < 5  # far from the smallest, 1


def test_rna_alone_is_enough_and_its_cells_stay_whatever_else_is_there(treated):
    alone = rna_of(untreated(treated), N_CELLS)

    found, few = (treated.predict_perturbation(cells, DRUG, seed=0) for cells in (alone, alone[:5].copy()))

    assert found["prot"].X.sum(1).min() > 0
    assert found["rna"].n_obs == alone.n_obs
    np.testing.assert_array_equal(values(few), values(found)[:5])


def test_the_inversion_takes_any_change(multimodal, treated):
    request = {"condition": {"cell_type": "B"}, "seed": 0, "n_steps": 2}
    found = multimodal.predict_perturbation(**request)

    assert found.uns["scgen_diffusion"]["method"] == "inversion"
    assert set(found.obs["cell_type"]) == {"B"}
    assert (values(multimodal.predict_perturbation(**request, keep_residuals=False)) != values(found)).any()
    with pytest.warns(UserWarning, match="Predicted by inversion"):
        treated.predict_perturbation(condition={"drug": "no"}, seed=0, n_steps=2)


def test_totals_of_predictions_are_given_per_modality(treated):
    control = untreated(treated)
    request = {"condition": DRUG, "seed": 0, "keep_residuals": False}

    own, given = (treated.predict_perturbation(control, **request, library_size=s) for s in (None, {"prot": 5000}))

    assert given["prot"].X.sum(1).mean() == pytest.approx(5000, rel=0.1)
    assert (given["rna"].X != own["rna"].X).nnz == 0
    assert own["rna"].X.sum(1).mean() == pytest.approx(control["rna"].X.sum(1).mean(), rel=0.1)


def query_mudata():
    """Build cells of which some are of a new type."""
    mdata = make_mudata(seed=1)
    labels = mdata.obs["cell_type"].astype(object)
    labels[labels == "NK"] = "plasma"
    mdata.obs["cell_type"] = labels
    return mdata


def test_fine_tuning_adds_a_type_and_keeps_what_the_reference_knew(multimodal, quick, tmp_path):
    known = {"cell_type": ["B", "T", "NK"]}
    before = values(multimodal.generate(30, known, seed=3))
    model = MULTISCLDM.load_query_data(query_mudata(), multimodal, accelerator="cpu")
    model.train(2, **quick)

    np.testing.assert_array_equal(values(model.generate(30, known, seed=3)), before)
    new = model.generate(5, {"cell_type": "plasma"}, seed=0)
    assert list(new.mod) == ["rna", "prot", "atac"]
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model", adata=False, accelerator="cpu")
    np.testing.assert_array_equal(values(loaded.generate(5, {"cell_type": "plasma"}, seed=0)), values(new))


def test_the_whole_model_is_fine_tuned_on_cells_without_a_modality(multimodal, quick):
    alone = rna_of(query_mudata(), N_CELLS)
    model = MULTISCLDM.load_query_data(alone, multimodal, trainable="all", accelerator="cpu")
    parts = model.module.decoder.parts
    former = deepcopy(parts)
    model.train(1, **quick)

    cells = model.generate(6, {"cell_type": "plasma"}, seed=0)

    rna, proteins = (
        all(torch.equal(*pair) for pair in zip(former[n].parameters(), parts[n].parameters(), strict=True))
        for n in (0, 1)
    )
    assert not rna
    assert proteins  # which no new cell has: not even weight decay changes them
    assert list(cells.mod) == ["rna", "prot", "atac"]
    assert cells["prot"].X.sum() > 0
    assert cells["prot"].var["symbol"].tolist() == ["s"] * 4  # as the reference knows them
