"""Training: both stages, their length, interruption and resumption."""

import signal
import warnings

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from builders import At, Canary, same_cells

from scgen_diffusion.data import CellFiles
from scgen_diffusion.model import SCLDM, SCRDIT, WBDIT, _training

pytestmark = pytest.mark.usefixtures("seed_0")


def weights(model, *, of=""):
    return {name: t.clone() for name, t in model.module.state_dict().items() if name.startswith(of)}


def differing(one, other):
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize(("idle", "n_warnings"), [(5, 1), (15, 0)])
def test_threads_are_warned_of_once_if_other_processes_leave_no_core_free(tmp_path, monkeypatch, idle, n_warnings):
    times = tmp_path / "stat"
    times.write_text("cpu 100 0 0 100 0 0 0 0 0 0\ncpu0 50")
    monkeypatch.setattr(_training, "TIMES_OF_CORES", times)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("time.sleep", lambda _: times.write_text(f"cpu {120 - idle} 0 0 {100 + idle} 0 0 0 0 0 0\n"))
    _training.warn_of_busy_cores.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        _training.warn_of_busy_cores()
        _training.warn_of_busy_cores()
    assert ["set_num_threads" in str(one.message) for one in caught] == [True] * n_warnings


def test_both_stages_are_recorded_epoch_by_epoch_and_lower_their_losses(make_model, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make_model()

    model.train({"autoencoder": 20, "prior": 12}, **quick)

    for stage, n_epochs in {"autoencoder": 20, "prior": 12}.items():
        assert len(model.history[f"{stage}_loss_train"]) == len(model.history[f"{stage}_loss_validation"]) == n_epochs
    assert all(isinstance(frame, pd.DataFrame) and frame.notna().all().all() for frame in model.history.values())
    with pytest.raises(KeyError, match="autoencoder_loss_validation"):  # which lists the names
        model.history["elbo_validation"]
    # not the KL divergence, whose weight rises, nor the averaged weights on ten cells, which hardly move
    for name in (
        "autoencoder_reconstruction_loss_train",
        "autoencoder_reconstruction_loss_validation",
        "prior_loss_train",
    ):
        losses = model.history[name][name]
        assert losses.iloc[-5:].mean() < losses.iloc[:3].mean(), name
    assert list(tmp_path.iterdir()) == []  # there is no folder for checkpoints


def test_each_stage_can_be_trained_alone_and_the_prior_needs_the_autoencoder(make_model, quick):
    model = make_model()

    with pytest.raises(RuntimeError, match="train_autoencoder"):
        model.train_prior(1, **quick)
    for _ in range(2):  # a new autoencoder needs a new prior
        model.train_autoencoder(1, **quick)
        assert [*model.recipes_] == model.trained_stages_ == ["autoencoder"]
        assert not model.is_trained
        assert model.module.absent_effects is None
        split = [model.train_indices_.copy(), model.validation_indices_.copy()]
        before = weights(model)
        with pytest.raises(RuntimeError, match="train"):
            model.generate(3)
        model.train_prior(1, **quick)
        assert [*model.recipes_] == model.trained_stages_ == ["autoencoder", "prior"]
        assert model.is_trained
        changed = {name.split(".")[0] for name in differing(before, weights(model))}
        assert not changed & {"encoder", "decoder", "likelihood"}
        assert model.module.absent_effects is not None
        assert all(map(np.array_equal, split, [model.train_indices_, model.validation_indices_]))
        assert sorted(np.concatenate(split)) == list(range(96))
        assert model.generate(2, seed=0).n_obs == 2


def test_a_saved_model_knows_the_seed_that_makes_it_again(make_model, any_class, quick, tmp_path):
    def make():
        model = make_model(cls=any_class, setup={"control_values": {"dose": 1}})
        model.train(1, **quick)
        return model

    other = make()
    scvi.settings.seed = 7
    make().save(tmp_path / "model")
    saved = any_class.load(tmp_path / "model")
    assert {stage: options["seed"] for stage, options in saved.recipes_.items()} == dict.fromkeys(any_class._stages, 7)

    scvi.settings.seed = saved.recipes_[any_class._stages[0]]["seed"]

    assert differing(weights(make()), weights(saved)) == []
    assert differing(weights(other), weights(saved))


@pytest.mark.parametrize(("options", "expected"), [({}, 0.06), ({"kl_weight": 0.5}, 0.5)])
def test_few_genes_have_a_smaller_kl_weight_unless_the_user_has_one(make_model, quick, options, expected):
    model = make_model()
    model.train_autoencoder(1, plan_kwargs=options, **quick)
    assert model.recipes_["autoencoder"]["kl_weight"] == expected


def test_the_prior_takes_fewer_steps_if_all_conditions_are_single_numbers(make_cells, make_model):
    cells = make_cells()
    cells.obs["age"], cells.obsm["place"] = np.linspace(0, 1, cells.n_obs), np.random.rand(cells.n_obs, 2)

    def n_steps(classes, *numbers):
        model = make_model(cells.copy(), condition_keys=classes, setup={"continuous_condition_keys": numbers})
        return model._recipe("prior").reference_steps

    assert n_steps([], "age") == n_steps(["cell_type"], "age") // 3 == n_steps([], "place") // 3 == n_steps([]) // 3


def test_early_stopping_ends_a_stage_that_no_longer_improves_and_all_cells_may_be_trained_on(
    make_model, either_class, quick
):
    model = make_model(cls=either_class)

    model.train(60, early_stopping=True, plan_kwargs={"learning_rate": 1e-12}, **quick)
    for stage in model.trained_stages_:
        assert 3 <= len(model.history[f"{stage}_loss_validation"]) < 60

    model.train(1, train_size=1.0, **quick)
    assert f"{either_class._stages[0]}_loss_train" in model.history
    assert len(model.validation_indices_) == 0


@pytest.mark.parametrize(("in_files", "stage"), [(False, "train"), (True, "train_prior")])
def test_cells_in_another_order_get_a_new_split(make_trained, quick, stage, in_files, tmp_path):
    model, cells = make_trained(), None
    if in_files:
        model.adata[::-1].copy().write_h5ad(tmp_path / "reversed.h5ad")
        cells = CellFiles.like(model.registry, [tmp_path / "reversed.h5ad"])
    else:
        model.adata._inplace_subset_obs(np.arange(model.adata.n_obs)[::-1])

    before = model.split_digest_
    getattr(model, stage)(1, datamodule=cells, **quick)
    assert model.split_digest_ != before


def test_a_model_that_is_trained_on_in_another_session_keeps_its_split_unless_asked(
    make_trained, quick, tmp_path, monkeypatch
):
    make_trained().save(tmp_path / "model", save_anndata=True)
    model = SCLDM.load(tmp_path / "model", accelerator="cpu")
    validation = set(model.validation_indices_)
    monkeypatch.setattr(scvi.settings, "_seed", 7)

    model.train(1, **quick)
    assert set(model.validation_indices_) == validation
    model.train(1, train_size=0.5, **quick)
    assert len(model.validation_indices_) == 48


def test_the_published_architecture_builds_and_trains(make_cells, quick):
    SCLDM.setup_anndata(adata := make_cells(), condition_keys=["cell_type", "dose"])
    model = SCLDM(adata, size="published")

    model.train(1, limit_train_batches=1, limit_val_batches=1, **quick)

    assert (model.architecture.pooling, model.architecture.decoder) == ("attention", "gene_queries")
    assert np.isfinite(model.history["autoencoder_loss_train"].iloc[0, 0])
    assert model.generate(2, seed=0, sampler="euler", n_steps=2).n_obs == 2


def test_combinations_without_cells_get_effects(make_cells, make_model, quick):
    cells = make_cells()
    cells.obs.iloc[0, cells.obs.columns.get_loc("dose")] = 100  # the only rare cell
    model = make_model(cells)

    model.train(1, **quick)

    codes = model.module.absent_effects.codes
    names = [key.decode(codes[:, [number]].numpy()) for number, key in enumerate(model.conditions.by_key)]
    assert set(zip(*names, strict=True)) == {("T cell", 100), ("rare", 1), ("rare", 10)}
    model.generate(3, condition={"cell_type": "T cell", "dose": 100})


@pytest.mark.parametrize(
    ("cls", "max_epochs", "stage"),
    [(SCLDM, {"autoencoder": 1, "prior": 50}, "prior"), (SCRDIT, 50, "diffusion"), (WBDIT, 50, "diffusion")],
)
def test_a_model_that_was_interrupted_in_its_last_stage_generates(make_model, quick, tmp_path, cls, max_epochs, stage):
    model = make_model(cls=cls)

    model.train(max_epochs, callbacks=[At(stage, 4, signal.SIGINT)], **quick)

    assert 1 <= len(model.history[f"{stage}_loss_train"]) <= 2
    cells = model.generate(5, seed=0, counts=True)
    assert np.isfinite(cells.X.data).all()
    model.save(tmp_path / "m")
    assert same_cells(cls.load(tmp_path / "m").generate(5, seed=0, counts=True), cells)


def test_a_checkpoint_with_code_or_with_changed_bytes_is_refused(make_model, quick, tmp_path):
    path = tmp_path / "autoencoder.ckpt"
    torch.save({"weights": torch.ones(1000)}, path)
    changed = path.read_bytes().replace(np.ones(16, np.float32).tobytes(), bytes(64), 1)
    torch.save({"state_dict": Canary(tmp_path / "canary")}, path)

    for content in (path.read_bytes(), changed):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="autoencoder.ckpt"):
            make_model().train(1, checkpoint_dir=tmp_path, **quick)
    assert not (tmp_path / "canary").exists()


def test_labels_that_a_trained_model_forgets_are_unknown(saved_model, make_cells, quick):
    cells = make_cells(n_cells=80)
    model = SCLDM.load(saved_model, adata=cells[cells.obs["cell_type"] != "NK"].copy())
    model.generate(1, {"cell_type": "NK"})

    model.train_prior(1, **quick)
    with pytest.raises(ValueError, match="'NK' of 'cell_type'"):
        model.generate(1, {"cell_type": "NK"})


DIVERGES = {"learning_rate": 1e300, "gradient_clip": 0}


@pytest.mark.parametrize("max_epochs", [1, 2])  # after its last step, only the weights are no numbers
def test_a_new_model_can_be_trained_after_its_training_diverged(make_model, either_class, quick, max_epochs):
    model = make_model(cls=either_class)

    with pytest.raises(FloatingPointError, match="learning rate"):
        model.train(max_epochs, plan_kwargs=DIVERGES, **{**quick, "batch_size": 128 if max_epochs == 1 else 32})
    assert model.trained_stages_ == []

    model.train(1, **quick)
    assert model.generate(3, seed=0).n_obs == 3


def test_a_trained_model_whose_training_diverges_is_as_before_this_stage(make_trained, quick):
    model = make_trained()
    before = model.generate(3, seed=0).X.toarray()

    with pytest.raises(FloatingPointError, match="prior"):
        model.train_prior(1, plan_kwargs=DIVERGES, **quick)
    assert np.array_equal(model.generate(3, seed=0).X.toarray(), before)

    with pytest.raises(FloatingPointError, match="prior"):
        model.train(1, plan_kwargs={"prior": DIVERGES}, **quick)
    assert model.trained_stages_ == ["autoencoder"]
    assert all(weight.isfinite().all() for weight in model.module.parameters())


def test_no_call_of_a_diverged_model_returns_cells(make_trained, tmp_path):
    diverged = make_trained()
    for parameter in diverged.module.parameters():  # as after a step along a gradient that was none
        parameter.data.fill_(torch.nan)
    calls = [
        *(lambda name=name: diverged.generate(3, seed=0, sampler=name) for name in ("euler", "midpoint")),
        lambda: diverged.generate_to(tmp_path / "cells.h5ad", 3, seed=0),
        *(lambda sample=sample: diverged.get_reconstruction(sample=sample) for sample in (True, False)),
        lambda: diverged.predict_perturbation(condition={"dose": 10}),
    ]
    for call in calls:
        with pytest.raises(FloatingPointError, match="diverged"):
            call()
    assert not (tmp_path / "cells.h5ad").exists()
