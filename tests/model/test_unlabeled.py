"""Cells without a label: they train the model, are shown as dropped conditions, and are no class."""

import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from builders import same_cells

from scgen_diffusion.data import CellFiles
from scgen_diffusion.model import MULTISCLDM, SCLDM, SCRDIT, WBDIT, load
from scgen_diffusion.model._training_pairs import TrainingPairs
from scgen_diffusion.train import PriorPlan, PriorRecipe

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
    model, adata, hidden = half_labeled
    types = make_cells(300).obs["cell_type"].astype(object)[~hidden]

    assert model.conditions.categories["cell_type"] == sorted(set(types))
    assert model.conditions.n_cells.sum() == (~hidden).sum()


def test_the_order_of_categories_stays_and_rows_for_the_value_do_no_harm(make_cells, make_model):
    adata = make_cells()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"NK": "Unknown"})
    known = ["B cell", "T cell", "rare", "never seen"]
    rows = pd.DataFrame(np.eye(5), [*known, "Unknown"], list("abcde"))

    for embeddings in (None, {"cell_type": rows}):
        setup = {**UNKNOWN, "condition_embeddings": embeddings}
        model = make_model(adata, condition_keys=["cell_type"], setup=setup)
        assert model.conditions.categories["cell_type"] == known


def test_generated_cells_are_never_unlabeled_and_come_from_labeled_combinations(half_labeled):
    model, adata, hidden = half_labeled
    seen = set(adata.obs[~hidden][["cell_type", "dose"]].itertuples(index=False, name=None))

    cells = model.generate(200)

    assert cells.obs["cell_type"].notna().all()
    assert "Unknown" not in cells.obs["cell_type"].cat.categories
    assert set(cells.obs[["cell_type", "dose"]].itertuples(index=False, name=None)) <= seen
    for value in ("Unknown", np.nan):
        with pytest.raises(ValueError, match="cell_type"):
            model.generate(3, condition={"cell_type": value})


@pytest.mark.parametrize("strategy", ["joint", "additive"])
def test_an_unlabeled_cell_gives_the_gradient_of_a_dropped_condition(make_cells, make_model, strategy):
    adata, hidden = hide(make_cells())
    model = make_model(adata, condition_keys=["cell_type"], setup=UNKNOWN, condition_strategy=strategy)
    module, generator = model.module, torch.Generator().manual_seed(0)
    for parameter in module.prior.parameters():  # untrained, it ignores conditions
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    unlabeled = module.condition_tensor(model._registered_codes[hidden])
    z = torch.randn(len(unlabeled), *module.latent_shape, generator=generator)

    def gradients(condition, probability):
        module.zero_grad()
        generator = torch.Generator().manual_seed(1)
        plan = PriorPlan(module, PriorRecipe(drop_probability=probability), seed=0)
        batch = {"mean": z, "std": torch.zeros_like(z), "condition": condition, "log_total": torch.zeros(len(z))}
        plan.compute_losses(batch, generator, training=True)["velocity_loss"].backward()
        return [p.grad.clone() for p in module.prior.parameters() if p.grad is not None]

    found, labeled = gradients(unlabeled, 0.0), torch.zeros_like(unlabeled)
    assert all(map(torch.equal, found, gradients(labeled, 1.0)))
    assert not all(map(torch.equal, found, gradients(labeled, 0.0)))


def test_a_saved_model_works_without_its_cells_and_with_them_trains_on(half_labeled, tmp_path, quick):
    model, adata, _ = half_labeled
    model.save(tmp_path / "model", save_anndata=True)

    without = load(tmp_path / "model", adata=False)
    assert same_cells(without.generate(4, seed=0), model.generate(4, seed=0))
    assert without.get_latent_representation(adata[:20].copy()).shape == (20, 8)
    again = load(tmp_path / "model")
    again.train(1, **quick)
    assert again.conditions.n_cells.sum() == model.conditions.n_cells.sum()


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_new_cells_without_labels_can_fine_tune_a_model(half_labeled, make_cells, quick, share):
    model, _, _ = half_labeled
    new, hidden = hide(make_cells(60, seed=1), share)
    new.obs["cell_type"] = new.obs["cell_type"].replace({"NK": "new type"})
    query = SCLDM.load_query_data(new, model, **({"trainable": "all"} if hidden.all() else {}))

    query.train(1, **quick)

    known, found = (each.conditions.categories["cell_type"] for each in (model, query))
    assert found[: len(known)] == known
    assert ("new type" in found) == (not hidden.all())
    assert (query.conditions.n_cells.sum() - model.conditions.n_cells.sum()) == (~hidden).sum()
    assert query.generate(20, condition={"cell_type": found[-1]}).n_obs == 20
    assert query.generate(20).obs["cell_type"].notna().all()


def test_the_perturbation_flow_pairs_labeled_cells_only(make_cells, make_model, quick):
    adata, hidden = hide(make_cells(300), 0.3)
    setup = {**UNKNOWN, "control_values": {"treated": False}}
    model = make_model(adata, condition_keys=["cell_type", "treated"], setup=setup)
    model.train(1, **quick)

    groups = TrainingPairs(model.conditions, model._cells, model.train_indices_, {"treated": False}).groups

    assert groups
    assert not hidden[np.concatenate([rows for group in groups for rows in (group.control, group.perturbed)])].any()
    labeled = adata[~hidden & ~adata.obs["treated"].to_numpy()].copy()
    assert model.predict_perturbation(labeled, {"treated": True}).n_obs == labeled.n_obs
    with pytest.raises(ValueError, match="cell_type"):
        model.predict_perturbation(adata, {"treated": True})


def test_cells_in_files_are_registered_like_those_in_memory(make_cells, make_model, tmp_path, quick):
    adata, hidden = hide(make_cells())
    adata.write_h5ad(tmp_path / "cells.h5ad")
    cells = CellFiles(tmp_path / "cells.h5ad", condition_keys=["cell_type"], **UNKNOWN)
    model = make_model(adata, condition_keys=["cell_type"], setup=UNKNOWN)
    n_cells = model.conditions.n_cells.copy()

    assert np.array_equal(cells.codes, model._registered_codes)
    model.train(1, datamodule=CellFiles.like(cells.registry, tmp_path / "cells.h5ad"), **quick)

    assert np.array_equal(model.conditions.n_cells, n_cells)
    assert np.array_equal(cells.read(np.arange(96)).obs["cell_type"].isna(), hidden)


def test_other_models_learn_from_unlabeled_cells(make_cells, make_model, tiny, quick):
    adata, _ = hide(make_cells())
    mdata = mudata.MuData({"rna": adata, "protein": make_cells(seed=1)})
    mdata.obs["cell_type"] = adata.obs["cell_type"]
    MULTISCLDM.setup_mudata(mdata, condition_keys=["cell_type"], **UNKNOWN)
    models = [make_model(adata, cls=cls, condition_keys=["cell_type"], setup=UNKNOWN) for cls in (SCRDIT, WBDIT)]

    for model in (*models, MULTISCLDM(mdata, **tiny)):
        model.train(1, **quick)
        labels = model.generate(50).obs["cell_type"]
        assert labels.notna().all()
        assert "Unknown" not in set(labels)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"unlabeled_category": None}, ValueError, "unlabeled_category"),
        ({"unlabeled_category": np.nan}, TypeError, "unlabeled_category"),
        ({"condition_keys": []}, ValueError, "condition_keys"),
        ({"condition_keys": ["donor", "cell_type"]}, ValueError, "donor"),  # no cell has both labels
        ({"continuous_condition_keys": ["age"]}, ValueError, "age"),
        ({"set_condition_keys": ["drug"]}, ValueError, "drug"),
    ],
)
def test_what_cannot_be_set_up_is_refused(make_cells, options, error, named):
    adata, half = make_cells(), np.arange(96) < 48
    adata.obs["cell_type"] = np.where(half, None, "B cell")
    adata.obs["donor"] = np.where(half, "A", "Unknown")
    adata.obs["age"], adata.obs["drug"] = np.where(half, np.nan, 7.0), np.where(half, None, "A")

    with pytest.raises(error, match=named):
        SCLDM.setup_anndata(adata, **{"condition_keys": ["cell_type"], **UNKNOWN, **options})
