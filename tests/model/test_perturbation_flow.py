"""``train_perturbation_flow``, and predictions by it."""

import re
import warnings

import anndata
import numpy as np
import pytest
import torch

from scgen_diffusion.data import CellFiles
from scgen_diffusion.generation import Corrections
from scgen_diffusion.model import SCLDM
from scgen_diffusion.model._training_pairs import TrainingPairs

QUICK = {"accelerator": "cpu", "enable_progress_bar": False}
UNPERTURBED = {"control_values": {"dose": 1}, **QUICK}
PERTURBED = {"dose": 10}


@pytest.fixture(scope="module")
def perturbing(make_trained):
    """Take cells of the lowest dose as unperturbed."""
    model = make_trained(max_epochs=2)
    model.train_perturbation_flow(2, **UNPERTURBED)
    return model


def controls(model, changed=slice(None)):
    return model.adata[(model.adata.obs["dose"] == 1).to_numpy()][changed].copy()


def test_latents_move_and_own_residuals_keep_more_of_a_cell_than_new_ones(perturbing):
    given = controls(perturbing)
    request = {"condition": PERTURBED, "method": "perturbation_flow", "seed": 0}

    own, new = (perturbing.predict_perturbation(given, **request, keep_residuals=keep) for keep in (True, False))
    unmoved = perturbing.predict_perturbation(given, keep_residuals=False, seed=0)
    same = perturbing.predict_perturbation(given, condition={"dose": 1}, method="perturbation_flow", seed=0)

    def likeness(cells):
        return np.corrcoef(cells.X.toarray().ravel(), given.X.ravel())[0, 1]

    assert (new.X != unmoved.X).nnz > 0
    assert likeness(own) > likeness(new) + 0.05
    assert (same.X != given.X).mean() < 0.01  # a last bit of a rate may turn a count


def test_changes_that_the_decoder_misses_are_added(make_cells, make_trained, monkeypatch):
    """An autoencoder of one epoch decodes next to no effect, but all types miss the same gene.

    What new combinations lack besides is left out, since it would hide whether groups of training cells tell of it.
    """
    monkeypatch.setattr(Corrections, "of_supports", lambda *_: None)
    cells = make_cells(400)
    cells.obs["treated"] = np.arange(400) % 2 == 1
    cells.X[cells.obs["treated"], 0] += 10
    is_new = ((cells.obs["cell_type"] == "NK") & cells.obs["treated"]).to_numpy()
    keys, control = ["cell_type", "treated"], {"treated": False}
    model = make_trained(cells[~is_new].copy(), condition_keys=keys, setup={"control_values": control})
    given = model.adata[model.adata.obs["cell_type"] == "NK"].copy()

    def mean_of_first_gene(cells):
        return np.log1p(1e4 * cells[:, 0] / cells.sum(1, keepdims=True)).mean()

    def change():
        return mean_of_first_gene(model.predict_perturbation(given, {"treated": True}, seed=0).X.toarray()) - before

    before = mean_of_first_gene(given.X)
    real, whole = mean_of_first_gene(cells.X[is_new]) - before, change()
    model.module.perturbation_flow.missed = None
    without = change()

    assert whole == pytest.approx(real, rel=0.3)
    assert without < 0.3 * real


def test_a_part_of_a_perturbation_is_not_enough_for_a_new_combination(make_cells, make_trained):
    cells = make_cells(120)
    is_nk = cells.obs["cell_type"] == "NK"
    cells.obs["treated"] = np.where(is_nk | (np.arange(120) % 2 == 0), "no", "yes")
    cells.obs["dose"] = np.where(cells.obs["treated"] == "no", 1, 10)
    cells.obsm["spatial"] = np.where(cells.obs["treated"] == "no", 100, 0)[:, None] + np.arange(240).reshape(120, 2) / 9
    setup = {"control_values": {"treated": "no", "dose": 1}, "continuous_condition_keys": ["spatial"]}
    model = make_trained(cells, condition_keys=["cell_type", "treated", "dose"], setup=setup)
    part = {"cell_type": "NK", "treated": "yes"}

    with pytest.warns(UserWarning, match="treated='yes' does not occur"):
        assert "support" not in model.generate(10, part).uns["scgen_diffusion"]
    assert "support" in model.generate(10, part | {"dose": 10}, seed=0).uns["scgen_diffusion"]
    known = part | {"cell_type": "T cell"}
    with pytest.warns(UserWarning, match="spatial=.* does not occur"):
        elsewhere = model.generate(10, known | {"spatial": [110, 110]}, seed=0)
    for found in (elsewhere, model.generate(10, known, seed=0)):
        assert found.obs["dose"].eq(10).all()


def test_it_is_the_default_where_it_fits_and_else_you_are_warned(perturbing):
    cells, treated = controls(perturbing), (perturbing.adata.obs["dose"] == 100).to_numpy()
    mixed = anndata.concat([cells, perturbing.adata[treated][:2]])

    for given, changes, found, warning in (
        (cells, {}, "perturbation_flow", None),
        (cells, {"cell_type": "NK"}, "inversion", rf"of {len(cells)} cells"),
        (mixed, {}, "inversion", rf"inversion.* 2 of {len(mixed)} cells.*{mixed.obs_names[-2]}"),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cells = perturbing.predict_perturbation(given, PERTURBED | changes)
        assert cells.uns["scgen_diffusion"]["method"] == found
        assert warning is None or any(re.search(warning, str(one.message)) for one in caught)


def test_it_needs_no_prior(make_model):
    model = make_model()
    model.train_autoencoder(1, **QUICK)
    model.train_perturbation_flow(1, **UNPERTURBED)
    cells, treated = controls(model), model.adata[(model.adata.obs["dose"] == 10).to_numpy()].copy()

    assert model.predict_perturbation(cells, PERTURBED).n_obs == cells.n_obs
    for given, request in ((cells, {"method": "inversion"}), (treated, {"condition": {"dose": 100}})):
        with pytest.raises(RuntimeError, match="train"):
            model.predict_perturbation(given, **{"condition": PERTURBED} | request)


def test_stages_that_it_needs_must_be_trained(trained, make_model):
    with pytest.raises(RuntimeError, match="train_perturbation_flow"):
        trained.predict_perturbation(condition=PERTURBED, method="perturbation_flow")
    with pytest.raises(RuntimeError, match="train"):
        make_model().train_perturbation_flow(1, **UNPERTURBED)


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        ({"method": "teleport"}, "method"),
        ({"method": "perturbation_flow", "adata_control": None}, "inversion"),
        ({"sampler": "euler", "n_steps": 0}, "n_steps"),
        ({"guidance_scale": 3.0}, "guidance"),
    ],
)
def test_bad_requests_are_refused(perturbing, tmp_path, request_, name):
    request_ = {"adata_control": controls(perturbing), "condition": PERTURBED} | request_
    with pytest.raises(ValueError, match=name):
        perturbing.predict_perturbation(**request_)
    with pytest.raises(ValueError, match=name):
        perturbing.predict_perturbation_to(tmp_path / "cells.h5ad", **request_)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"control_values": None}, ValueError, "control_values"),
        ({"control_values": {"dose": 7}}, ValueError, "dose"),
        ({"control_values": {"day": 0}}, ValueError, "day"),
        ({"match_keys": "donor"}, TypeError, "match_keys"),
        ({"match_keys": ["patient"]}, KeyError, "patient"),
        ({"match_keys": ["dose"]}, ValueError, "dose"),
    ],
)
def test_wrong_control_values_and_keys_to_match_are_refused(trained, options, error, name):
    with pytest.raises(error, match=name):
        trained.train_perturbation_flow(1, **UNPERTURBED | options)


def test_groups_without_control_cells_give_a_warning_or_an_error_where_none_has_any(make_cells, make_trained):
    cells = make_cells()
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
    cells.obs.loc[cells.obs["dose"] == 100, "cell_type"] = "only perturbed"
    none = make_cells()
    none.obs["dose"] = (none.obs["cell_type"] == "NK").astype(int).astype("category")

    with pytest.warns(UserWarning, match="no control cells"):
        make_trained(cells).train_perturbation_flow(1, **UNPERTURBED)
    with pytest.raises(ValueError, match="control cells"):
        make_trained(none).train_perturbation_flow(1, **UNPERTURBED)


def of_nk_unperturbed(make_cells):
    """Build cells of which those of type NK are unperturbed only."""
    cells = make_cells()
    return cells[~((cells.obs["cell_type"] == "NK") & (cells.obs["dose"] != 1))].copy()


@pytest.fixture(scope="module")
def without_a_combination(make_cells, make_trained):
    return make_trained(of_nk_unperturbed(make_cells), max_epochs=2)


NEW = {"cell_type": "NK", **PERTURBED}


@pytest.mark.filterwarnings("ignore:The combination")
def test_generate_moves_control_cells_to_a_combination_never_seen(without_a_combination):
    model, seen = without_a_combination, {"cell_type": "B cell", **PERTURBED}

    def cells():
        return [model.generate(200, request, seed=0, library_size=500) for request in (NEW, seen)]

    before, seen_before = cells()
    model.train_perturbation_flow(1, **UNPERTURBED)
    after, seen_after = cells()

    assert "support" not in before.uns["scgen_diffusion"]
    assert "support" in after.uns["scgen_diffusion"]
    assert (after.X != before.X).nnz
    assert (after.obs["dose"] == 10).all()
    assert (seen_after.X != seen_before.X).nnz == 0  # what training saw stays as it was


@pytest.fixture
def with_donors(make_cells, make_trained):
    """Return a trained model whose cells have a donor, which is no condition."""
    cells = make_cells()
    cells.obs["donor"] = np.resize(["d1", "d2"], cells.n_obs)
    return make_trained(cells)


def test_cells_are_paired_within_their_donor_and_those_without_control_cells_are_named(with_donors):
    obs, matched = with_donors.adata.obs, {"match_keys": ["donor"]}
    data = with_donors.conditions, with_donors._cells, np.arange(96), {"dose": 1}
    together, apart = (TrainingPairs(*data, match_keys=keys).groups for keys in (None, ["donor"]))

    assert len(apart) > len(together)
    for group in apart:
        assert len(obs[["donor", "cell_type"]].iloc[[*group.control, *group.perturbed]].drop_duplicates()) == 1
    for groups in (together, apart):  # each perturbed cell once
        rows = np.concatenate([group.perturbed for group in groups])
        assert len(rows) == len(set(rows))
    obs.loc[(obs["donor"] == "d2") & (obs["dose"] == 1), "donor"] = "d1"
    with pytest.warns(UserWarning, match="'donor': 'd2'"):
        with_donors.train_perturbation_flow(1, **UNPERTURBED, **matched)
    cells = controls(with_donors)
    del cells.obs["donor"]
    assert with_donors.predict_perturbation(cells, PERTURBED).uns["scgen_diffusion"]["method"] == "perturbation_flow"
    obs["donor"] = np.where(obs["dose"] == 1, "d1", "d2")
    with pytest.raises(ValueError, match="donor"):
        with_donors.train_perturbation_flow(1, **UNPERTURBED, **matched)


def test_a_checkpoint_of_other_pairs_is_not_resumed(with_donors, tmp_path):
    options = {**UNPERTURBED, "checkpoint_dir": tmp_path}
    with_donors.train_perturbation_flow(1, **options)
    with pytest.raises(ValueError, match="checkpoint"):
        with_donors.train_perturbation_flow(1, match_keys=["donor"], **options)


def test_donors_are_read_from_files(with_donors, tmp_path):
    with_donors.adata.write_h5ad(tmp_path / "cells.h5ad")
    cells = CellFiles.like(with_donors.registry, tmp_path / "cells.h5ad")

    assert cells.match_labels(["donor"])["donor"].tolist() == with_donors.adata.obs["donor"].tolist()
    with pytest.raises(KeyError, match="'patient'"):
        cells.match_labels(["patient"])
    with_donors.train_perturbation_flow(1, control_values={"dose": 1}, match_keys=["donor"], datamodule=cells, **QUICK)


def test_a_saved_model_tells_how_its_perturbation_flow_was_trained(make_cells, make_trained, tmp_path):
    cells = make_cells()
    cells.obs["donor"] = np.resize(["d1", "d2", "d2"], cells.n_obs)
    cells.obs["drug"] = np.resize(["B+A", "A"], cells.n_obs)
    model = make_trained(cells, condition_keys=["dose"], setup={"set_condition_keys": ["drug"]})

    model.train_perturbation_flow(1, control_values={"drug": {"A", "B"}, "dose": [1]}, match_keys=["donor"], **QUICK)
    model.save(tmp_path / "model")

    saved = SCLDM.load(tmp_path / "model", adata=False, accelerator="cpu")
    recorded = saved.recipes_["perturbation_flow"]
    assert recorded["control_values"] == {"dose": 1, "drug": "B+A"}
    assert recorded["match_keys"] == ["donor"]
    model.train_autoencoder(1, **QUICK)
    assert model.trained_stages_ == ["autoencoder"]  # the perturbation flow is discarded


@pytest.mark.filterwarnings("ignore:The effect on")  # so few cells and epochs tell little
def test_a_number_says_what_is_unperturbed_also_in_a_loaded_model(make_trained, tmp_path):
    setup = {"continuous_condition_keys": ["dose"], "control_values": {"dose": 1}}
    model = make_trained(condition_keys=["cell_type"], setup=setup)
    model.save(tmp_path / "model")

    loaded = SCLDM.load(tmp_path / "model", adata=False)
    found, expected = (one.predict_perturbation(controls(model), {"dose": 30}, seed=0) for one in (loaded, model))

    assert found.uns["scgen_diffusion"]["method"] == "perturbation_flow"  # by default, between the doses of training
    assert (found.X != expected.X).nnz == 0
    assert loaded.registry_["setup_args"]["control_values"] == {"dose": 1}
    for dose, is_new in ((10, False), (30, True)):
        made = loaded.generate(5, {"cell_type": "B cell", "dose": dose})
        assert ("support" in made.uns["scgen_diffusion"]) == is_new


def test_every_stage_restores_its_own_part(make_model, tmp_path):
    def weights(stage):
        return {name: w.clone() for name, w in getattr(model.module, stage).state_dict().items()}

    model, quick = make_model(setup={"control_values": {"dose": 1}}), QUICK | {"checkpoint_dir": tmp_path}
    for _ in range(2):  # the checkpoints of the first stages know no perturbation flow
        model.train(1, batch_size=32, **quick)
    flow = weights("perturbation_flow")
    model.train_prior(2, **QUICK)
    prior = weights("prior")

    model.train_perturbation_flow(1, **quick)  # restores the finished stage

    for stage, expected in (("prior", prior), ("perturbation_flow", flow)):
        assert all(torch.equal(w, expected[name]) for name, w in weights(stage).items())
