"""Cells without a label: they train the model, are shown as dropped conditions, and are no class."""

from __future__ import annotations

import warnings

import mudata
import numpy as np
import pandas as pd
import pytest
import torch

from scgen_diffusion.data import CellFiles
from scgen_diffusion.model import MULTISCLDM, SCLDM, SCRDIT, load
from scgen_diffusion.model._training import split_cells
from scgen_diffusion.model._training_pairs import TrainingPairs

UNKNOWN = {"unlabeled_category": "Unknown"}


def hide(adata, share=0.7, *, key="cell_type", seed=0):
    """Hide a share of the labels, half by the value and half by missing values; return the cells and what is hidden."""
    rng = np.random.default_rng(seed)
    hidden = rng.random(adata.n_obs) < share
    labels = adata.obs[key].astype(object)
    labels[hidden] = np.array(["Unknown", np.nan], dtype=object)[rng.integers(0, 2, hidden.sum())]
    adata.obs[key] = labels
    return adata, hidden


@pytest.fixture(scope="module")
def half_labeled(make_cells, make_trained):
    """Train a model of cells of which 70 % have no type; "dose" is known."""
    adata, hidden = hide(make_cells(300))
    model = make_trained(adata, condition_keys=["cell_type", "dose"], setup=UNKNOWN, max_epochs=2)
    return model, adata, hidden


def test_the_value_and_missing_values_are_no_class(half_labeled, make_cells):
    model, _, hidden = half_labeled
    types = make_cells(300).obs["cell_type"].astype(object)[~hidden]

    assert model.conditions.categories["cell_type"] == sorted(set(types))
    assert model.conditions.n_cells.sum() == (~hidden).sum()


def test_the_description_says_how_many_cells_have_no_label(half_labeled, tmp_path):
    model, _, hidden = half_labeled
    model.save(tmp_path / "model")

    assert f"cell_type (3 classes; {hidden.sum()} cells without a label), dose (3 classes)\n" in str(model)
    assert "cell_type (3 classes), dose" in str(load(tmp_path / "model", adata=False))  # which has no cells


def test_categories_keep_their_order_without_the_value(make_cells, make_model):
    adata = make_cells()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"NK": "Unknown"})

    model = make_model(adata, condition_keys=["cell_type"], setup=UNKNOWN)

    assert model.conditions.categories["cell_type"] == ["B cell", "T cell", "rare", "never seen"]


def test_generated_cells_are_never_unlabeled_and_come_from_labeled_combinations(half_labeled):
    model, adata, hidden = half_labeled
    seen = set(adata.obs[~hidden][["cell_type", "dose"]].itertuples(index=False, name=None))

    cells = model.generate(200)

    assert cells.obs["cell_type"].notna().all()
    assert "Unknown" not in cells.obs["cell_type"].cat.categories
    assert set(cells.obs[["cell_type", "dose"]].itertuples(index=False, name=None)) <= seen


@pytest.mark.parametrize("value", ["Unknown", np.nan])
def test_asking_for_cells_without_a_label_names_the_labels(half_labeled, value):
    with pytest.raises(ValueError, match="B cell"):
        half_labeled[0].generate(3, condition={"cell_type": value})


def test_an_embedding_of_the_value_makes_it_no_class(make_cells, make_trained, tmp_path):
    def table(*labels):
        return pd.DataFrame(np.random.default_rng(0).normal(size=(len(labels), 2)), list(labels), ["x", "y"])

    adata, _ = hide(make_cells())
    rows = {"cell_type": table("Unknown", "B cell", "NK", "T cell", "rare")}
    model = make_trained(adata, condition_keys=["cell_type"], setup={**UNKNOWN, "condition_embeddings": rows})
    new, _ = hide(make_cells(48, seed=1))
    new.uns["rows"] = table("plasma", "Unknown")
    new.write_h5ad(tmp_path / "new.h5ad")
    options = {"condition_embeddings": {"cell_type": "rows"}, "trainable": "network"}
    of_files, query = (SCLDM.load_query_data(cells, model, **options) for cells in (tmp_path / "new.h5ad", new))

    assert model.conditions.categories["cell_type"] == ["B cell", "NK", "T cell", "rare"]
    for some in (query, of_files):
        assert some.conditions.categories["cell_type"] == ["B cell", "NK", "T cell", "rare", "plasma"]
        with pytest.raises(ValueError, match="Unknown"):
            some.generate(3, {"cell_type": "Unknown"})


def test_unlabeled_cells_are_no_rare_label(make_cells, make_model, quick):
    adata, _ = hide(make_cells(60), 0.1)
    model = make_model(adata, setup=UNKNOWN)

    with pytest.warns(UserWarning, match="Too few training cells") as record:
        model.train(1, **quick)

    assert not any("Unknown" in str(one.message) or "nan" in str(one.message) for one in record)


@pytest.mark.parametrize("strategy", ["joint", "additive"])
def test_an_unlabeled_cell_gives_the_gradient_of_a_dropped_condition(make_cells, make_model, strategy):
    adata, hidden = hide(make_cells())
    model = make_model(adata, condition_keys=["cell_type"], setup=UNKNOWN, condition_strategy=strategy)
    module = model.module
    generator = torch.Generator().manual_seed(0)
    for parameter in module.prior.parameters():  # untrained, it ignores conditions
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    codes = model._registered_codes[hidden]
    z = torch.randn(len(codes), *module.latent_shape, generator=torch.Generator().manual_seed(0))

    def gradients(condition, probability):
        module.zero_grad()
        generator = torch.Generator().manual_seed(1)
        loss = module.prior_loss(z, condition, drop_probability=probability, generator=generator).sum()
        loss.backward()
        return [p.grad.clone() for p in module.prior.parameters() if p.grad is not None]

    unlabeled = gradients(module.condition_tensor(codes), 0.0)
    dropped = gradients(torch.zeros_like(module.condition_tensor(codes)), 1.0)

    labeled = gradients(torch.zeros_like(module.condition_tensor(codes)), 0.0)

    assert all(torch.equal(*pair) for pair in zip(unlabeled, dropped, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(unlabeled, labeled, strict=True))


def test_with_joint_conditions_a_cell_that_lacks_one_label_shows_none(half_labeled):
    model, _, hidden = half_labeled
    condition = model.module.condition_tensor(model._registered_codes)

    shown = model.module.drop_conditions(condition, 0.0, torch.Generator())

    assert (condition[hidden, 1] != model.module.null_condition[1]).all()
    assert (shown[hidden] == model.module.null_condition).all()
    assert torch.equal(shown[~hidden], condition[~hidden])


def test_with_additive_conditions_a_cell_shows_the_labels_it_has(make_cells, make_model):
    adata, _ = hide(make_cells())
    model = make_model(adata, setup=UNKNOWN, condition_strategy="additive")
    condition = model.module.condition_tensor(model._registered_codes)

    assert torch.equal(model.module.drop_conditions(condition, 0.0, torch.Generator()), condition)


def test_library_sizes_are_those_of_labeled_cells(half_labeled):
    model, adata, hidden = half_labeled
    totals = np.log(adata.X[~hidden].sum(1))

    sizes = model.module.library_size

    assert float(sizes.means[0]) == pytest.approx(totals.mean(), abs=1e-4)
    assert (sizes.codes[:, 0] < len(model.conditions.categories["cell_type"])).all()


def test_what_is_not_given_has_no_effect_at_the_start(make_cells, make_model):
    """The overall profile is that of all cells, also of those without a label."""
    adata, _ = hide(make_cells(300))
    model = make_model(adata, condition_keys=["cell_type"], setup=UNKNOWN, likelihood="negative_binomial")
    codes, number, sizes = np.unique(model._registered_codes, axis=0, return_inverse=True, return_counts=True)
    counts = np.zeros((len(codes), adata.n_vars))
    np.add.at(counts, number.ravel(), adata.X)
    module = model.module

    module.start_effects(module.condition_tensor(codes), torch.from_numpy(counts), torch.from_numpy(sizes))

    effects = module.condition_effects(module.condition_tensor(codes))[..., 0]
    assert effects[-1].abs().max() < 0.2 * effects[:-1].abs().max()


def test_a_saved_model_works_without_its_cells(half_labeled, tmp_path):
    model, adata, _ = half_labeled
    model.save(tmp_path / "model")

    again = load(tmp_path / "model", adata=False)

    assert again.generate(4, seed=0).X.sum() == model.generate(4, seed=0).X.sum()
    assert again.get_latent_representation(adata[:20].copy()).shape == (20, 8)


def test_a_model_saved_with_its_cells_can_be_trained_further(half_labeled, tmp_path, quick):
    model, _, _ = half_labeled
    model.save(tmp_path / "model", save_anndata=True)

    again = load(tmp_path / "model")
    again.train(1, **quick)

    assert again.conditions.n_cells.sum() == model.conditions.n_cells.sum()


def test_new_cells_without_labels_can_fine_tune_a_model(half_labeled, make_cells, quick):
    model, _, _ = half_labeled
    new, hidden = hide(make_cells(60, seed=1), 0.5)
    new.obs["cell_type"] = new.obs["cell_type"].replace({"NK": "new type"})
    query = SCLDM.load_query_data(new, model)

    query.train(1, **quick)

    known = model.conditions.categories["cell_type"]
    assert query.conditions.categories["cell_type"][: len(known)] == known
    assert "new type" in query.conditions.categories["cell_type"]
    assert (query.conditions.n_cells.sum() - model.conditions.n_cells.sum()) == (~hidden).sum()
    assert query.generate(20, condition={"cell_type": "new type"}).n_obs == 20
    assert (query.module.library_size.codes[:, 0] < len(query.conditions.categories["cell_type"])).all()


def test_cells_without_any_label_can_fine_tune_a_model(half_labeled, make_cells, quick):
    model, _, _ = half_labeled
    new, _ = hide(make_cells(60, seed=1), 1.0)
    query = SCLDM.load_query_data(new, model, trainable="all")

    query.train(1, **quick)

    assert np.array_equal(query.conditions.n_cells, model.conditions.n_cells)
    assert query.generate(20).obs["cell_type"].notna().all()


def test_the_transport_pairs_labeled_cells_only(make_cells, make_model, quick):
    adata, hidden = hide(make_cells(300), 0.3)
    model = make_model(
        adata, condition_keys=["cell_type", "treated"], setup={**UNKNOWN, "control_values": {"treated": False}}
    )
    model.train({"autoencoder": 1, "prior": 1, "transport": 1}, **quick)

    groups = TrainingPairs(model.conditions, model._cells, model.train_indices_, {"treated": False}).groups

    assert groups
    assert not hidden[np.concatenate([rows for group in groups for rows in (group.control, group.perturbed)])].any()
    labeled = adata[~hidden & ~adata.obs["treated"].to_numpy()].copy()
    assert model.predict_perturbation(labeled, {"treated": True}).n_obs == labeled.n_obs
    with pytest.raises(ValueError, match="cell_type"):
        model.predict_perturbation(adata, {"treated": True})


def test_gene_space_models_learn_from_unlabeled_cells(make_cells, make_trained, gene_space_class):
    adata, _ = hide(make_cells())
    model = make_trained(adata, cls=gene_space_class, condition_keys=["cell_type"], setup=UNKNOWN)

    assert "Unknown" not in model.generate(50).obs["cell_type"].to_list()


def test_cells_in_files_are_registered_like_those_in_memory(make_cells, make_model, tiny, tmp_path, quick):
    adata, hidden = hide(make_cells())
    adata.write_h5ad(tmp_path / "cells.h5ad")
    cells = CellFiles(tmp_path / "cells.h5ad", condition_keys=["cell_type"], **UNKNOWN)
    in_memory = make_model(adata, condition_keys=["cell_type"], setup=UNKNOWN)
    model = SCLDM(registry=cells.registry, **tiny)

    model.train(1, datamodule=CellFiles.like(model.registry, tmp_path / "cells.h5ad"), **quick)

    assert np.array_equal(cells.codes, in_memory._registered_codes)
    assert np.array_equal(model.conditions.n_cells, in_memory.conditions.n_cells)
    assert np.array_equal(cells.read(np.arange(96)).obs["cell_type"].isna(), hidden)


def test_several_modalities_learn_from_unlabeled_cells(make_cells, tiny, quick):
    rna, _ = hide(make_cells())
    mdata = mudata.MuData({"rna": rna, "protein": make_cells(seed=1)})
    mdata.obs["cell_type"] = rna.obs["cell_type"]
    MULTISCLDM.setup_mudata(mdata, condition_keys=["cell_type"], **UNKNOWN)
    model = MULTISCLDM(mdata, **tiny)

    model.train(1, **quick)

    assert model.generate(20).obs["cell_type"].notna().all()


def test_missing_labels_are_an_error_that_names_the_option(make_cells):
    adata, _ = hide(make_cells())

    with pytest.raises(ValueError, match="unlabeled_category"):
        SCLDM.setup_anndata(adata, condition_keys=["cell_type"])


def test_missing_numbers_and_sets_stay_errors(make_cells):
    adata = make_cells()
    adata.obs["dose"] = adata.obs["dose"].astype(float)
    adata.obs.loc["cell_3", "dose"] = np.nan
    with pytest.raises(ValueError, match="no number for 1 of 96 cells"):
        SCLDM.setup_anndata(adata, condition_keys=["cell_type"], continuous_condition_keys=["dose"], **UNKNOWN)

    adata, _ = hide(make_cells(), key="treated")
    with pytest.raises(ValueError, match="treated"):
        SCLDM.setup_anndata(adata, condition_keys=["cell_type"], set_condition_keys=["treated"], **UNKNOWN)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"unlabeled_category": np.nan}, TypeError, "unlabeled_category"),
        ({"unlabeled_category": -1}, TypeError, "unlabeled_category"),
        ({"condition_keys": [], **UNKNOWN}, ValueError, "condition_keys"),
    ],
)
def test_options_that_cannot_be_are_refused(make_cells, arguments, error, words):
    with pytest.raises(error, match=words):
        SCRDIT.setup_anndata(make_cells(), **{"condition_keys": ["cell_type"], **arguments})


def test_some_cell_must_have_all_labels(make_cells):
    adata = make_cells()
    adata.obs["donor"] = np.where(np.arange(96) < 48, "A", "Unknown")
    adata.obs["cell_type"] = np.where(np.arange(96) < 48, "Unknown", "B cell")

    with pytest.raises(ValueError, match="donor"):
        SCLDM.setup_anndata(adata, condition_keys=["donor", "cell_type"], **UNKNOWN)


def test_a_value_that_no_cell_has_is_warned_of(make_cells):
    adata = make_cells()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"NK": "unknown"})

    with pytest.warns(UserWarning, match=r"'Unknown', which no cell has in \['cell_type'\].*'unknown'"):
        SCLDM.setup_anndata(adata, condition_keys=["cell_type"], **UNKNOWN)


def test_labelled_cells_of_a_model_that_knows_unlabeled_ones_give_no_warning(half_labeled, make_cells):
    model, adata, _ = half_labeled
    new = make_cells(20, seed=3)
    new.obs["cell_type"], new.obs["dose"] = "B cell", 10

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for other in ("These cells have other names", "Too few epochs"):
            warnings.filterwarnings("ignore", other)
        assert model.get_latent_representation(new).shape == (20, 8)
        assert model.predict_perturbation(new, {"cell_type": "T cell"}, method="inversion").n_obs == 20
        model.adata, before = new, model.adata
        model.adata = before


def test_training_without_any_cell_that_has_all_labels_is_refused(make_cells, make_model, quick, seed_0):
    adata = make_cells(100)
    train, validation, _ = split_cells(adata.n_obs, 0.5, 0.1)
    labels = adata.obs["cell_type"].astype(object)
    labels.iloc[np.concatenate([train, validation])] = "Unknown"
    adata.obs["cell_type"] = labels
    model = make_model(adata, setup=UNKNOWN)

    with pytest.raises(ValueError, match="No training or validation cell has all labels"):
        model.train(1, train_size=0.5, validation_size=0.1, **quick)

    assert not model.is_trained_
    model.train_autoencoder(1, train_size=0.5, validation_size=0.1, **quick)  # it needs no labels
    assert model.trained_stages_ == ["autoencoder"]


def test_new_conditions_are_not_learned_from_cells_without_labels(half_labeled, make_cells, quick, seed_0):
    adata = make_cells(100)
    train, validation, _ = split_cells(adata.n_obs, 0.5, 0.1)
    labels = pd.Series("new", adata.obs_names, dtype=object)
    labels.iloc[np.concatenate([train, validation])] = "Unknown"
    adata.obs["cell_type"] = labels
    query = SCLDM.load_query_data(adata, half_labeled[0])

    with pytest.raises(ValueError, match="No training or validation cell has all labels"):
        query.train(1, train_size=0.5, validation_size=0.1, **quick)
