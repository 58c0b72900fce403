"""What ``train`` refuses, before the first stage starts: a refused or failed call changes nothing."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from builders import TYPES, At

from scgen_diffusion.data import CellFiles
from scgen_diffusion.model import SCLDM, SCRDIT, _training_pairs

pytestmark = pytest.mark.usefixtures("seed_0")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda adata: (sc.pp.normalize_total(adata), sc.pp.log1p(adata)), "layer"),
        (sc.pp.scale, "negative"),
        (lambda adata: adata.X.__setitem__((3, 4), np.nan), "NaN"),
        (lambda adata: adata.X.__setitem__(3, 0), "cell_3"),
        (lambda adata: adata._inplace_subset_var(adata.var_names[:9]), "missing"),
    ],
)
def test_cells_that_were_changed_since_they_were_set_up_are_refused(
    either_class, change, named, make_cells, make_model, quick
):
    adata = make_cells()
    model = make_model(adata, cls=either_class)
    change(adata)

    with pytest.raises(ValueError, match=named):
        model.train(1, **quick)
    assert model.trained_stages_ == []


def embeddings(scale):
    return {"condition_embeddings": {"cell_type": pd.DataFrame(scale * np.eye(5), TYPES, list("abcde"))}}


@pytest.mark.parametrize(
    ("change", "setups"),
    [
        (lambda adata: adata.X.__setitem__((50, 3), 99), [{}, {}]),
        (lambda adata: adata.obs.__setitem__("dose", np.roll(adata.obs["dose"], 1)), [{}, {}]),
        (lambda adata: setattr(adata, "obs_names", ["another", *adata.obs_names[1:]]), [{}, {}]),
        (lambda adata: adata.layers.update(same=adata.X.copy()), [{}, {"layer": "same"}]),
        (lambda adata: None, [embeddings(1), embeddings(2)]),
    ],
    ids=["values", "labels", "names", "layers", "embeddings"],
)
def test_a_checkpoint_of_other_cells_is_refused(either_class, change, setups, make_cells, make_model, quick, tmp_path):
    def train(adata, setup):
        make_model(adata, cls=either_class, setup=setup).train(1, checkpoint_dir=tmp_path, **quick)

    for _ in range(2):  # the same cells are taken for the same
        train(make_cells(), setups[0])
    others = make_cells()
    change(others)

    with pytest.raises(ValueError, match="checkpoint_dir"):
        train(others, setups[1])


@pytest.mark.parametrize(
    ("error", "named", "values"),
    [
        (ValueError, "max_epochs", [0, 1.5, {"decoder": 3}]),
        (ValueError, "batch_size", [0, 2.5]),
        (ValueError, "train_size", [1.5, "most"]),
        (ValueError, "validation_size", [1.0]),
        (ValueError, "precision", ["64-true"]),
        (ValueError, "strategy", ["nonsense"]),
        (TypeError, "max_time", ["00:01:00:00"]),
        (TypeError, "plan_kwargs", [[1]]),
        (TypeError, "epochs", [3]),
        (TypeError, "enable_checkpointing", [True]),
    ],
)
@pytest.mark.parametrize("cls", [SCLDM, SCRDIT])
def test_a_wrong_value_is_refused_by_name_before_any_work(cls, error, named, values, make_model, quick):
    model = make_model(cls=cls)
    for value in values:
        with pytest.raises(error, match=named):
            model.train(**{**quick, named: value})
    assert model.trained_stages_ == []


@pytest.mark.parametrize(
    ("error", "named", "arguments"),
    [
        (ValueError, "validation_size", {"train_size": 0.8, "validation_size": 0.3}),
        (ValueError, "early_stopping", {"train_size": 1.0, "early_stopping": True}),
        (ValueError, "decoder", {"plan_kwargs": {"decoder": {"learning_rate": 1e-3}}}),
        (ValueError, "batch_size", {"plan_kwargs": {"batch_size": -1}}),
        (TypeError, "learning_rat", {"plan_kwargs": {"learning_rat": 1e-3}}),
        (ValueError, "learning_rate", {"plan_kwargs": {"learning_rate": "high"}}),
        # of later stages
        (ValueError, "max_epochs", {"max_epochs": {"prior": 0}}),
        (ValueError, "perturbation_flow", {"max_epochs": {"perturbation_flow": 3}}),
        (ValueError, "drop_probability", {"plan_kwargs": {"prior": {"drop_probability": 1.5}}}),
        (TypeError, "learnig_rate", {"plan_kwargs": {"prior": {"learnig_rate": 1.0}}}),
    ],
)
def test_arguments_that_do_not_go_together_are_refused_before_any_work(
    error, named, arguments, make_model, quick, make_cells, tmp_path
):
    model = make_model()
    model.train_autoencoder(1, **quick)
    before = model.train_indices_
    make_cells(200, seed=1).write_h5ad(tmp_path / "others.h5ad")
    others = CellFiles.like(model.registry, tmp_path / "others.h5ad")

    with pytest.raises(error, match=named):
        model.train(**{**quick, "datamodule": others, **arguments})
    assert model.trained_stages_ == ["autoencoder"]
    assert model.train_indices_ is before
    assert model._cells.n_cells == len(model.adata)


def test_options_hold_for_all_stages_or_by_stage(make_model, quick):
    model = make_model()
    for options, expected in (
        ({"learning_rate": 0.5}, {"autoencoder": 0.5, "prior": 0.5}),
        ({"prior": {"learning_rate": 0.25}}, {"autoencoder": 4e-3, "prior": 0.25}),
    ):
        model.train(1, plan_kwargs=options, **quick)
        assert {stage: recipe["learning_rate"] for stage, recipe in model.recipes_.items()} == expected


def test_sizes_split_the_cells_as_in_scvi_tools(make_model, make_cells, quick):
    def sizes(model):
        return [len(part) for part in (model.train_indices, model.validation_indices, model.test_indices)]

    model = make_model()
    model.train(1, train_size=0.5, validation_size=0.25, **quick)
    assert sizes(model) == [48, 24, 24]
    parts = [model.train_indices, model.validation_indices, model.test_indices]
    assert len(np.unique(np.concatenate(parts))) == 96
    assert model.combination_sizes_.sum() == 72  # test cells are no training cells
    model.train_prior(1, **quick)
    assert sizes(model) == [48, 24, 24]
    with pytest.raises(TypeError, match="train_size"):
        model.train_prior(1, train_size=0.5, **quick)
    (model := make_model(make_cells(97))).train_autoencoder(1, train_size=0.5, validation_size=0.5, **quick)
    assert sizes(model) == [48, 49, 0]  # shares that add up to all leave no cell over


@pytest.mark.parametrize("n_cells", [0, 1])
def test_labels_with_few_training_cells_are_named_once(make_model, quick, monkeypatch, n_cells):
    model = make_model()
    rare = np.flatnonzero(model.adata.obs["cell_type"] == "rare")
    others, none = np.setdiff1d(np.arange(model.adata.n_obs), rare), np.array([], dtype=int)
    parts = (np.arange(model.adata.n_obs), none, none) if n_cells else (others, rare, none)
    monkeypatch.setattr("scgen_diffusion.model._base.split_cells", lambda *_: parts)

    with pytest.warns(UserWarning, match=rf"cell_type 'rare' \({n_cells}\)"):
        model.train_autoencoder(2, **quick)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Too few training cells")
        model.train_prior(2, **quick)


def cells_of(model):
    return model.generate(20, seed=0).X.toarray()


@pytest.fixture
def own(make_trained, make_cells):
    return make_trained(make_cells(100))


@pytest.mark.parametrize("stage", ["train", "train_prior"])
def test_a_checkpoint_of_another_model_costs_nothing(own, make_model, make_cells, quick, stage, tmp_path):
    make_model(make_cells(60, seed=9)).train(1, checkpoint_dir=tmp_path, **quick)
    before, stages = cells_of(own), list(own.trained_stages_)
    if stage == "train_prior":
        richer = make_cells(60, seed=9)  # would have other library sizes and combinations
        richer.X = 20 * richer.X
        own.adata = richer
    with pytest.raises(ValueError, match="checkpoint"):
        getattr(own, stage)(1, checkpoint_dir=tmp_path, **quick)
    assert own.trained_stages_ == stages
    assert np.array_equal(cells_of(own), before)


def test_a_later_stage_that_is_refused_leaves_the_model_as_the_stage_before_made_it(make_model, quick, tmp_path):
    whole, model = make_model(), make_model()
    whole.train(1, checkpoint_dir=tmp_path, **quick)

    with pytest.raises(ValueError, match="learning_rate"):
        model.train(1, checkpoint_dir=tmp_path, plan_kwargs={"prior": {"learning_rate": 1e-3}}, **quick)

    assert model.trained_stages_ == ["autoencoder"]
    of_whole = whole.module.encoder.state_dict()
    assert all(torch.equal(value, of_whole[name]) for name, value in model.module.encoder.state_dict().items())


def test_after_an_error_in_the_first_stage_a_trained_model_is_as_before(make_trained, either_class, quick):
    def fail(plan):
        raise OSError("the disk is full")

    model = make_trained(cls=either_class)
    before, shown = cells_of(model), str(model)
    with pytest.raises(OSError, match="disk"):
        model.train(2, callbacks=[At(either_class._stages[0], 1, fail)], **quick)
    assert str(model) == shown
    assert np.array_equal(cells_of(model), before)


def test_a_perturbation_flow_of_too_many_groups_is_refused_before_the_other_stages_are_trained(
    make_model, quick, monkeypatch
):
    monkeypatch.setattr(_training_pairs, "MOST_GROUPS", 2)
    model = make_model(setup={"control_values": {"dose": 1}})
    with pytest.warns(UserWarning, match="groups"):
        model.train(1, **quick)
    assert model.trained_stages_ == ["autoencoder", "prior"]
    with pytest.raises(ValueError, match="groups"):
        model.train_perturbation_flow(1, **quick)


def test_fine_tuning_of_a_better_reference_does_not_resume_that_of_the_old_one(own, make_cells, quick, tmp_path):
    def fine_tune():
        query = SCLDM.load_query_data(make_cells(40, seed=3), own, trainable="network", accelerator="cpu")
        query.train(1, checkpoint_dir=tmp_path / "query", **quick)

    fine_tune()
    fine_tune()  # the same reference: its finished checkpoints
    own.train_prior(1, **quick)
    with pytest.raises(ValueError, match="checkpoint"):
        fine_tune()
