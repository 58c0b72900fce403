"""``train_transport``, and predictions by it."""

import anndata
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from scgen_diffusion.data import CellFiles, Conditions
from scgen_diffusion.diffusion import Guidance
from scgen_diffusion.generation import CellGenerator, LackingChanges
from scgen_diffusion.model import SCLDM
from scgen_diffusion.model._training_pairs import TrainingPairs
from scgen_diffusion.train import PairData

QUICK = {"accelerator": "cpu", "enable_progress_bar": False}
PERTURBED = {"dose": 10}


@pytest.fixture(scope="module")
def transported(make_trained):
    """Take cells of the lowest dose as unperturbed."""
    model = make_trained(max_epochs=2)
    model.train_transport(2, control_values={"dose": 1}, **QUICK)
    return model


def controls(model):
    return np.flatnonzero(model.adata.obs["dose"] == 1)


def test_treated_cells_need_the_prior(transported, monkeypatch):
    monkeypatch.setattr(transported, "is_trained_", False)
    treated = np.flatnonzero(transported.adata.obs["dose"] == 10)
    with pytest.raises(RuntimeError, match=r"perturbed already.* needs the prior: train_prior\(\)"):
        transported.predict_perturbation(transported.adata[treated].copy(), condition={"dose": 100})


def test_totals_are_not_predicted_by_a_head_of_former_latents(make_trained):
    model = make_trained()
    model.train_autoencoder(1, **QUICK)
    model.train_transport(1, control_values={"dose": 1}, **QUICK)

    with pytest.raises(ValueError, match="needs totals that are predicted from cells"):
        model.predict_perturbation(model.adata[controls(model)].copy(), condition=PERTURBED, library_size="latent")


def test_latents_move_and_the_cells_with_them(transported):
    rows = controls(transported)

    new = transported.predict_perturbation(
        transported.adata[rows].copy(), condition=PERTURBED, method="transport", residuals="new", seed=0
    )
    old = transported.predict_perturbation(transported.adata[rows].copy(), residuals="new", seed=0)

    assert (new.X != old.X).nnz > 0
    assert new.uns["scgen_diffusion"]["method"] == "transport"


def test_changes_that_the_decoder_misses_are_added(make_cells, make_trained, monkeypatch):
    """An autoencoder of one epoch decodes next to no effect, but all types miss the same gene.

    What new combinations lack besides is left out, since it would hide whether groups of training cells tell of it.
    """
    monkeypatch.setattr(LackingChanges, "of_verdicts", lambda *_: None)
    cells = make_cells(400)
    cells.obs["treated"] = np.arange(400) % 2 == 1
    counts = cells.X
    counts[cells.obs["treated"], 0] += 10
    is_nk = (cells.obs["cell_type"] == "NK").to_numpy()
    model = make_trained(
        cells[~(is_nk & cells.obs["treated"])].copy(),
        condition_keys=["cell_type", "treated"],
        setup={"control_values": {"treated": False}},
    )
    rows = np.flatnonzero(model.adata.obs["cell_type"] == "NK")

    def mean_of_first_gene(cells):
        return np.log1p(1e4 * cells[:, 0] / cells.sum(1, keepdims=True)).mean()

    before = mean_of_first_gene(model.adata.X[rows])
    real = mean_of_first_gene(counts[is_nk & cells.obs["treated"]]) - before

    def change():
        found = model.predict_perturbation(model.adata[rows].copy(), {"treated": True}, seed=0)
        return mean_of_first_gene(found.X.toarray()) - before

    whole = change()
    model.module.transport.missed = None
    without = change()

    assert whole == pytest.approx(real, rel=0.3)
    assert without < 0.3 * real


def test_a_part_of_a_perturbation_is_not_enough_for_a_new_combination(make_cells, make_trained):
    cells = make_cells(120)
    is_nk = cells.obs["cell_type"] == "NK"
    cells.obs["treated"] = np.where(is_nk | (np.arange(120) % 2 == 0), "no", "yes")
    cells.obs["dose"] = np.where(cells.obs["treated"] == "no", 1, 10)
    keys, control = ["cell_type", "treated", "dose"], {"treated": "no", "dose": 1}
    cells.obsm["spatial"] = np.where(cells.obs["treated"] == "no", 100, 0)[:, None] + np.arange(240).reshape(120, 2) / 9
    setup = {"control_values": control, "continuous_condition_keys": ["spatial"]}
    model = make_trained(cells, condition_keys=keys, setup=setup)

    with pytest.raises(
        ValueError,
        match=r"cell_type='NK', treated='yes', which no training cell has. Also give \['dose'\]: these keys perturb",
    ):
        model.generate(10, {"cell_type": "NK", "treated": "yes"})

    assert model.generate(10, {"cell_type": "T cell", "treated": "yes"}, seed=0).obs["dose"].eq(10).all()
    with pytest.warns(UserWarning, match="The combination .*'yes', spatial=.* does not occur in the training cells"):
        elsewhere = model.generate(10, {"cell_type": "T cell", "treated": "yes", "spatial": [110, 110]}, seed=0)
    assert elsewhere.obs["dose"].eq(10).all()
    assert (
        "verdict"
        in model.generate(10, {"cell_type": "NK", "treated": "yes", "dose": 10}, seed=0).uns["scgen_diffusion"]
    )


def test_it_is_the_default_where_it_fits(transported):
    rows = controls(transported)

    def method(**changes):
        request = {"adata_control": transported.adata[rows].copy(), "condition": PERTURBED} | changes
        return transported.predict_perturbation(**request).uns["scgen_diffusion"]["method"]

    assert method() == "transport"
    assert method(adata_control=None) == "inversion"  # some are perturbed already
    assert method(condition={"dose": 10, "cell_type": "NK"}) == "inversion"


def test_unperturbed_cells_stay_what_they_are(transported):
    rows = controls(transported)

    same = transported.predict_perturbation(
        transported.adata[rows].copy(), condition={"dose": 1}, method="transport", seed=0
    )

    assert (same.X != transported.adata.X[rows]).mean() < 0.01  # a last bit of a rate may turn a count


def test_own_residuals_keep_more_of_a_cell_than_new_ones(transported):
    rows = controls(transported)
    given = transported.adata.X[rows].ravel()

    own, new = (
        transported.predict_perturbation(
            transported.adata[rows].copy(), condition=PERTURBED, residuals=residuals, seed=0
        ).X.toarray()
        for residuals in ("own", "new")
    )

    assert np.corrcoef(own.ravel(), given)[0, 1] > np.corrcoef(new.ravel(), given)[0, 1] + 0.05


def test_it_is_saved_with_the_model(transported, tmp_path):
    transported.save(tmp_path / "model")
    loaded = SCLDM.load(tmp_path / "model", adata=transported.adata)
    rows = controls(transported)

    expected, found = (
        model.predict_perturbation(model.adata[rows].copy(), condition=PERTURBED, seed=0).X
        for model in (transported, loaded)
    )

    assert (expected != found).nnz == 0


def test_it_needs_no_prior(make_model):
    model = make_model()
    model.train_autoencoder(1, **QUICK)
    model.train_transport(1, control_values={"dose": 1}, **QUICK)

    assert model.predict_perturbation(model.adata[controls(model)].copy(), condition=PERTURBED).n_obs == len(
        controls(model)
    )
    with pytest.raises(RuntimeError, match="train_prior"):
        model.predict_perturbation(model.adata[controls(model)].copy(), condition=PERTURBED, method="inversion")


def test_a_new_autoencoder_forgets_it(make_trained):
    model = make_trained()
    model.train_transport(1, control_values={"dose": 1}, **QUICK)
    model.train_autoencoder(1, **QUICK)

    assert model.trained_stages_ == ["autoencoder"]


def test_a_prior_of_other_cells_leaves_its_scale_alone(make_trained, tmp_path):
    model = make_trained()
    model.train_transport(1, control_values={"dose": 1}, **QUICK)
    before = model.module.latent_mean.clone()
    model.adata[: model.adata.n_obs // 2].write_h5ad(tmp_path / "cells.h5ad")

    model.train_prior(1, datamodule=CellFiles.like(model.registry, tmp_path / "cells.h5ad"), **QUICK)

    assert torch.equal(model.module.latent_mean, before)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_it_must_be_trained(trained):
    with pytest.raises(RuntimeError, match="train_transport"):
        trained.predict_perturbation(condition=PERTURBED, method="transport")


def test_perturbed_cells_are_refused(transported):
    with pytest.raises(ValueError, match="perturbed already"):
        transported.predict_perturbation(condition=PERTURBED, method="transport")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "teleport"}, "does not support `method` 'teleport'"),
        ({"residuals": "old"}, "does not support `residuals` 'old'"),
    ],
)
def test_unknown_options_are_refused(trained, options, match):
    with pytest.raises(ValueError, match=match):
        trained.predict_perturbation(**options)


@pytest.mark.parametrize(
    ("control_values", "match"),
    [(None, "needs `control_values`"), ({"dose": 7}, "unknown value 7"), ({"day": 0}, "unknown key 'day'")],
)
def test_what_is_unperturbed_must_be_known(trained, control_values, match):
    with pytest.raises(ValueError, match=match):
        trained.train_transport(1, control_values=control_values, **QUICK)


def test_groups_without_both_kinds_of_cells_are_refused(make_cells, make_trained):
    adata = make_cells()
    adata.obs["dose"] = (adata.obs["cell_type"] == "NK").astype(int).astype("category")
    model = make_trained(adata)

    with pytest.raises(ValueError, match="No perturbed training cells have control cells"):
        model.train_transport(1, control_values={"dose": 1}, **QUICK)


def test_the_autoencoder_comes_first(make_model):
    with pytest.raises(RuntimeError, match="call train"):
        make_model().train_transport(1, control_values={"dose": 1}, **QUICK)


# --- generate --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_a_combination(make_cells, make_trained):
    """A model that saw NK cells unperturbed only, with and without a transport."""
    cells = make_cells()
    cells = cells[~((cells.obs["cell_type"] == "NK") & (cells.obs["dose"] != 1))].copy()
    return make_trained(cells, max_epochs=2)


NEW = {"cell_type": "NK", **PERTURBED}


@pytest.mark.filterwarnings("ignore:The combination")
def test_generate_moves_control_cells_to_a_combination_never_seen(without_a_combination):
    model, options = without_a_combination, {"seed": 0, "library_size": 500}
    seen = {"cell_type": "B cell", **PERTURBED}
    before, seen_before = model.generate(200, NEW, **options), model.generate(20, seen, **options)
    control = model.generate(200, NEW | {"dose": 1}, **options)

    model.train_transport(1, control_values={"dose": 1}, **QUICK)
    after, seen_after = model.generate(200, NEW, **options), model.generate(20, seen, **options)

    assert "method" not in before.uns["scgen_diffusion"]
    assert after.uns["scgen_diffusion"]["method"].startswith("transport")
    assert (after.X != before.X).nnz
    assert (after.obs["dose"] == 10).all()
    assert (seen_after.X != seen_before.X).nnz == 0  # what training saw stays as it was
    path = model.get_sampling_path(20, NEW, seed=0)
    start = model.get_sampling_path(20, NEW | {"dose": 1}, seed=0)
    is_last = (path.obs["frame"] == path.obs["frame"].max()).to_numpy()
    assert np.abs(path.X[is_last] - start.X[is_last]).mean() > 1e-4
    assert control.n_obs == 200


@pytest.mark.filterwarnings("ignore:The (combination|effect)")
def test_totals_of_moved_cells_do_not_depend_on_how_far_they_come(without_a_combination, monkeypatch):
    model, drawn = without_a_combination, []
    model.train_transport(1, control_values={"dose": 1}, **QUICK)
    module, draw = model.module, model.module.draw_totals
    monkeypatch.setattr(module, "draw_totals", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    for distance in (0, 9):
        monkeypatch.setattr(module.transport, "move", lambda x, *_, by=distance, **__: x + by)
        model.generate(9, NEW, library_size="latent", seed=0)

    assert torch.equal(*drawn)


def test_totals_of_given_cells_do_not_depend_on_how_far_they_come(transported, monkeypatch):
    module, drawn = transported.module, []
    draw = module.draw_totals
    monkeypatch.setattr(module, "draw_totals", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    for distance in (0, 9):
        monkeypatch.setattr(module.transport, "move", lambda x, *_, by=distance, **__: x + by)
        transported.predict_perturbation(
            transported.adata[controls(transported)[:9]].copy(),
            condition=PERTURBED,
            method="transport",
            library_size="latent",
            seed=0,
        )

    assert torch.equal(*drawn)


@pytest.mark.filterwarnings("ignore:The combination")
def test_a_finished_file_is_not_judged_again(without_a_combination, tmp_path, monkeypatch):
    model, judged, judge = without_a_combination, [], CellGenerator.verdicts
    model.train_transport(1, control_values={"dose": 1}, **QUICK)
    monkeypatch.setattr(CellGenerator, "verdicts", lambda *a: judged.append(a) or judge(*a))

    for _ in range(2):
        path = model.generate_to(tmp_path / "cells.h5ad", 5, NEW, seed=0)

    assert len(judged) == 1
    expected = model.generate(5, NEW, seed=0).uns["scgen_diffusion"]["verdict"]
    assert anndata.read_h5ad(path).uns["scgen_diffusion"]["verdict"].astype(str).equals(expected.astype(str))


@pytest.mark.filterwarnings("ignore:The (combination|effect)")
def test_generated_cells_at_many_places_have_one_verdict(make_cells, make_trained, monkeypatch):
    cells = make_cells()
    cells = cells[~((cells.obs["cell_type"] == "NK") & (cells.obs["dose"] != 1))].copy()
    cells.obsm["spatial"] = np.random.default_rng(0).uniform(size=(cells.n_obs, 2))
    model = make_trained(cells, max_epochs=2, setup={"continuous_condition_keys": ["spatial"]})
    model.train_transport(1, control_values={"dose": 1}, **QUICK)
    places = cells.obsm["spatial"][(cells.obs["cell_type"] == "NK").to_numpy()]
    started, fill = [], Conditions.fill
    monkeypatch.setattr(Conditions, "fill", lambda self, codes, *a: started.append(codes) or fill(self, codes, *a))

    made = model.generate(len(places), NEW | {"spatial": places}, seed=0)

    verdict = made.uns["scgen_diffusion"]["verdict"]
    assert verdict["n_cells"].tolist() == [len(places)]
    assert "spatial" not in verdict["combination"][0]
    assert len(np.unique(started[0], axis=0)) == len(places)  # control cells of all places are judged


# --- within donors ----------------------------------------------------------------------------------------------------


@pytest.fixture
def with_donors(make_cells, make_trained):
    """Return a trained model whose cells have a donor, which is no condition."""
    cells = make_cells()
    cells.obs["donor"] = np.resize(["d1", "d2"], cells.n_obs)
    return make_trained(cells)


def groups_of(model, monkeypatch, **options):
    """Return the groups of cells that a training pairs."""
    found = []

    def keep(cache, groups, *arguments):
        found.extend(groups)
        return PairData(cache, groups, *arguments)

    monkeypatch.setattr("scgen_diffusion.model._scldm.PairData", keep)
    model.train_transport(1, control_values={"dose": 1}, **options, **QUICK)
    return found


def test_cells_are_paired_within_their_donor(with_donors, monkeypatch):
    obs = with_donors.adata.obs
    together, apart = (groups_of(with_donors, monkeypatch, match_keys=keys) for keys in (None, ["donor"]))

    assert len(apart) > len(together)
    for group in apart:
        assert len(set(obs["donor"].iloc[[*group.control, *group.perturbed]])) == 1
        assert len(set(obs["cell_type"].iloc[[*group.control, *group.perturbed]])) == 1
    for groups in (together, apart):  # each perturbed cell once
        rows = np.concatenate([group.perturbed for group in groups])
        assert len(rows) == len(set(rows))
    cells = with_donors.adata[controls(with_donors)].copy()
    del cells.obs["donor"]
    assert with_donors.predict_perturbation(cells, PERTURBED).uns["scgen_diffusion"]["method"] == "transport"


def test_donors_without_control_cells_are_named(with_donors):
    obs = with_donors.adata.obs
    obs.loc[(obs["donor"] == "d2") & (obs["dose"] == 1), "donor"] = "d1"

    with pytest.warns(UserWarning, match=r"the same 'donor'; .* those of .*'NK', 'donor': 'd2'"):
        with_donors.train_transport(1, control_values={"dose": 1}, match_keys=["donor"], **QUICK)
    obs["donor"] = np.where(obs["dose"] == 1, "d1", "d2")
    with pytest.raises(ValueError, match="No perturbed training cells have control cells .* the same 'donor'"):
        with_donors.train_transport(1, control_values={"dose": 1}, match_keys=["donor"], **QUICK)


def test_match_keys_that_cannot_be_matched_are_refused(with_donors):
    for keys, error, match in (
        ("donor", TypeError, r"`match_keys` must be a list of names, but found the string 'donor'"),
        (["patient"], KeyError, "'patient'"),
        (["dose"], ValueError, "`match_keys` has 'dose', but this key perturbs"),
    ):
        with pytest.raises(error, match=match):
            with_donors.train_transport(1, control_values={"dose": 1}, match_keys=keys, **QUICK)


def test_donors_are_read_from_files(with_donors, tmp_path):
    with_donors.adata.write_h5ad(tmp_path / "cells.h5ad")
    cells = CellFiles.like(with_donors.registry, tmp_path / "cells.h5ad")

    assert cells.match_labels(["donor"])["donor"].tolist() == with_donors.adata.obs["donor"].tolist()
    with pytest.raises(KeyError, match="'patient'"):
        cells.match_labels(["patient"])
    with_donors.train_transport(1, control_values={"dose": 1}, match_keys=["donor"], datamodule=cells, **QUICK)


def test_a_saved_model_tells_how_its_transport_was_trained(make_cells, make_trained, tmp_path):
    cells = make_cells()
    cells.obs["donor"] = np.resize(["d1", "d2", "d2"], cells.n_obs)
    cells.obs["drug"] = np.resize(["B+A", "A"], cells.n_obs)
    model = make_trained(cells, condition_keys=["dose"], setup={"set_condition_keys": ["drug"]})

    model.train_transport(1, control_values={"drug": {"A", "B"}, "dose": [1]}, match_keys=["donor"], **QUICK)
    model.cut_short_ = {}  # as if trained long enough
    model.save(tmp_path / "model")

    saved = SCLDM.load(tmp_path / "model", adata=False, accelerator="cpu")
    recorded = saved.recipes_["transport"]
    assert recorded["control_values"] == {"dose": 1, "drug": "B+A"}
    assert recorded["match_keys"] == ["donor"]
    assert "dose (3 classes; control: 1), drug (combinations of 2 members; control: 'B+A')" in str(saved)
    assert "model.predict_perturbation(control_cells, {'dose': ..., 'drug': ...})" in str(saved)
    model.train_autoencoder(1, **QUICK)  # discards the transport
    assert "control" not in str(model)


def test_a_checkpoint_of_other_pairs_is_not_resumed(with_donors, tmp_path):
    quick = QUICK | {"control_values": {"dose": 1}, "checkpoint_dir": tmp_path}
    with_donors.train_transport(1, **quick)
    with pytest.raises((RuntimeError, ValueError), match="checkpoint"):
        with_donors.train_transport(1, match_keys=["donor"], **quick)


# --- as a part of train() ---------------------------------------------------------------------------------------------


def test_train_trains_it_where_the_setup_says_what_is_unperturbed(make_trained):
    without, with_it = (make_trained(setup=setup).history_ for setup in (None, {"control_values": {"dose": 1}}))

    assert "transport_loss_train" not in without
    assert len(with_it["transport_loss_train"]) == 1


def test_the_transport_has_its_own_end_and_batch_size(make_model, quick):
    model = make_model(setup={"control_values": {"dose": 1}})

    model.train(2, early_stopping=True, **quick)

    assert len(model.history_["transport_loss_train"]) == 2
    assert model.recipes_["transport"]["batch_size"] > quick["batch_size"]


@pytest.mark.filterwarnings("ignore:The effect on")  # so few cells and epochs tell little
def test_a_number_says_what_is_unperturbed_also_in_a_loaded_model(make_trained, tmp_path):
    setup = {"continuous_condition_keys": ["dose"], "control_values": {"dose": 1}}
    model = make_trained(condition_keys=["cell_type"], setup=setup)
    control = model.adata[controls(model)].copy()
    model.save(tmp_path / "model")

    loaded = SCLDM.load(tmp_path / "model", adata=False)
    found, expected = (one.predict_perturbation(control, {"dose": 30}, seed=0) for one in (loaded, model))

    assert found.uns["scgen_diffusion"]["method"] == "transport"  # by default, between the doses of training
    assert (found.X != expected.X).nnz == 0
    assert loaded.registry_["setup_args"]["control_values"] == {"dose": 1}
    assert "method" not in loaded.generate(5, {"cell_type": "B cell", "dose": 30}).uns["scgen_diffusion"]


def test_an_aborted_training_leaves_the_former_transport_or_none(transported, make_trained):
    class Abort(Callback):
        def on_train_batch_end(self, *_):
            raise MemoryError

    model, rows = make_trained(max_epochs=2), controls(transported)
    request = {
        "adata_control": transported.adata[rows].copy(),
        "condition": PERTURBED,
        "method": "transport",
        "seed": 0,
    }
    before = transported.predict_perturbation(**request).X.toarray()

    for aborted in (transported, model):
        with pytest.raises(MemoryError):
            aborted.train_transport(2, control_values={"dose": 10}, callbacks=[Abort()], **QUICK)

    np.testing.assert_array_equal(transported.predict_perturbation(**request).X.toarray(), before)
    assert model.module.transport is None


def test_the_transport_refuses_what_it_does_not_know(transported, tmp_path):
    rows = controls(transported)
    with pytest.raises(ValueError, match="`n_steps`.*0"):
        transported.predict_perturbation_to(
            tmp_path / "cells.h5ad", transported.adata[rows].copy(), condition=PERTURBED, sampler="heun", n_steps=0
        )
    assert not list(tmp_path.iterdir())
    for unknown in ({"guidance_scale": 3.0}, {"guidance_scale": Guidance(rescale=0.5)}):
        with pytest.raises(ValueError, match="The transport has no guidance"):
            transported.predict_perturbation(transported.adata[rows].copy(), condition=PERTURBED, **unknown)
    request = {"adata_control": transported.adata[rows].copy(), "condition": PERTURBED, "guidance_scale": {"dose": 1}}
    assert transported.predict_perturbation(**request).uns["scgen_diffusion"]["method"] == "transport"


def test_a_change_of_method_gives_a_warning(transported):
    rows = controls(transported)
    treated = np.flatnonzero(transported.adata.obs["dose"] == 100)[:2]
    name = transported.adata.obs_names[treated[0]]

    message = rf"Predicted by inversion.*dose=1\).* 2 of {len(rows) + 2} cells are perturbed already \(such as '{name}'"
    with pytest.warns(UserWarning, match=message):
        transported.predict_perturbation(transported.adata[[*rows, *treated]].copy(), condition=PERTURBED)
    with pytest.warns(UserWarning, match=rf"of {len(rows)} cells would change in other keys too"):
        transported.predict_perturbation(transported.adata[rows].copy(), condition=PERTURBED | {"cell_type": "NK"})


def test_a_small_dose_is_no_control_value(make_cells, make_model):
    cells = make_cells(120)
    cells.obs["dose"] = np.resize([0.0, 1.0, 1e6], 120)
    model = make_model(
        cells, setup={"continuous_condition_keys": ["dose"], "control_values": {"dose": 0}}, condition_keys=[]
    )

    model.train_indices_ = np.arange(120)

    assert np.array_equal(
        TrainingPairs(model.conditions, model._cells, model.train_indices_, {"dose": 0}).perturbed,
        np.flatnonzero(cells.obs["dose"] > 0),
    )


def test_cells_without_control_give_a_warning(make_trained, make_cells):
    cells = make_cells()
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
    cells.obs.loc[cells.obs["dose"] == 100, "cell_type"] = "only perturbed"
    model = make_trained(cells)

    with pytest.warns(UserWarning, match="perturbed cells have no control cells"):
        model.train_transport(1, control_values={"dose": 1}, **QUICK)


def test_every_stage_restores_its_own_part(make_model, tmp_path):
    model = make_model(setup={"control_values": {"dose": 1}})
    quick = QUICK | {"checkpoint_dir": tmp_path}
    model.train(1, batch_size=32, **quick)
    model.train(1, batch_size=32, **quick)  # the checkpoints of the first stages know no transport
    transport = {name: w.clone() for name, w in model.module.transport.state_dict().items()}
    model.train_prior(2, accelerator="cpu", enable_progress_bar=False)
    prior = {name: w.clone() for name, w in model.module.prior.state_dict().items()}

    model.train_transport(1, **quick)  # restores the finished stage

    assert all(torch.equal(w, prior[name]) for name, w in model.module.prior.state_dict().items())
    assert all(torch.equal(w, transport[name]) for name, w in model.module.transport.state_dict().items())


def test_with_a_gaussian_head_a_cell_comes_back_as_its_logarithms(make_trained):
    model = make_trained(likelihood="gaussian")
    profile = model.module.modelled_values(torch.tensor(np.asarray(model.adata.X, dtype=np.float32))).numpy()

    same = model.predict_perturbation(seed=0)
    other = model.predict_perturbation(condition={"dose": 100, "cell_type": "NK"}, seed=0)

    np.testing.assert_allclose(same.X, profile, atol=1e-4)
    assert other.X.min() >= 0
