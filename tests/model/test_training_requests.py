"""Arguments and cells of ``train`` are checked before the first stage starts."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import warnings
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from lightning.pytorch.callbacks import Callback
from mudata import MuData

from scgen_diffusion.data import CellFiles
from scgen_diffusion.model import MULTISCLDM, SCLDM, SCRDIT
from scgen_diffusion.model._end_of_training import TOO_SHORT
from scgen_diffusion.train import _initialise

pytestmark = pytest.mark.usefixtures("seed_0")


# --- cells that were changed ------------------------------------------------------------------------------------------


def normalise(adata):
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)


def break_one(adata):
    adata.X[3, 4] = np.nan


def empty_one(adata):
    adata.X[3] = 0


CHANGES = {
    "normalised": (normalise, "not whole numbers.*set up again with `layer='counts'`"),
    "scaled": (sc.pp.scale, "negative values"),
    "NaN": (break_one, "NaN or infinite"),
    "empty": (empty_one, "without any count: 1 .'cell_3'"),
    "fewer genes": (lambda adata: adata._inplace_subset_var(adata.var_names[:9]), "3 .*missing"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_cells_that_were_changed_since_they_were_set_up_are_refused(
    either_class, change, make_cells, make_model, quick
):
    adata = make_cells()
    model = make_model(adata, cls=either_class)
    work, message = CHANGES[change]
    work(adata)

    with pytest.raises(ValueError, match=message):
        model.train(1, **quick)
    assert model.trained_stages_ == []


def test_changed_values_of_a_backed_file_are_refused(make_cells, make_model, quick, tmp_path):
    make_cells().write_h5ad(tmp_path / "cells.h5ad")
    adata = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r+")
    model = make_model(adata)
    adata.X[:, :] = np.log1p(adata.X[:, :])

    with pytest.raises(ValueError, match="have changed since they were set up"):
        model.train(1, **quick)


# --- checkpoints of other cells ---------------------------------------------------------------------------------------


def shuffle_labels(adata):
    adata.obs["dose"] = np.roll(adata.obs["dose"], 1)


def add_a_count(adata):
    adata.X[50, 3] += 1


def rename_a_cell(adata):
    adata.obs_names = ["another", *adata.obs_names[1:]]


def another_layer(adata):
    adata.layers["same"] = adata.X.copy()
    return {"layer": "same"}


@pytest.mark.parametrize("change", [add_a_count, shuffle_labels, rename_a_cell, another_layer])
def test_a_checkpoint_of_other_values_labels_names_or_layers_is_refused(
    either_class, change, make_cells, make_model, quick, tmp_path
):
    build = partial(make_model, cls=either_class)
    build(adata=make_cells()).train(1, checkpoint_dir=tmp_path, **quick)
    build(adata=make_cells()).train(1, checkpoint_dir=tmp_path, **quick)  # the same cells are taken for the same
    others = make_cells()
    setup = change(others)

    with pytest.raises(ValueError, match="checkpoint_dir"):
        build(adata=others, setup=setup).train(1, checkpoint_dir=tmp_path, **quick)


def test_a_checkpoint_of_other_known_embeddings_is_refused(make_cells, make_model, quick, tmp_path):
    table = pd.DataFrame(np.eye(5), make_cells().obs["cell_type"].cat.categories, list("abcde"))
    setups = [{"condition_embeddings": {"cell_type": table * scale}} for scale in (1, 2)]
    make_model(setup=setups[0]).train(1, checkpoint_dir=tmp_path, **quick)

    with pytest.raises(ValueError, match="checkpoint_dir"):
        make_model(setup=setups[1]).train(1, checkpoint_dir=tmp_path, **quick)


# --- arguments --------------------------------------------------------------------------------------------------------


MISTAKES = [
    ({"epochs": 3}, TypeError, "epochs"),
    ({"enable_checkpointing": True}, TypeError, "enable_checkpointing"),
    ({"plan_kwargs": {"compile": True}}, TypeError, "compile"),
    ({"plan_kwargs": {"learning_rat": 1e-3}}, TypeError, "learning_rate"),
    ({"plan_kwargs": {"learning_rate": "high"}}, TypeError, "learning_rate"),
    ({"plan_kwargs": [1]}, TypeError, "plan_kwargs"),
    ({"plan_kwargs": {"decoder": {"learning_rate": 1e-3}}}, ValueError, "decoder"),
    ({"max_epochs": 0}, ValueError, "max_epochs"),
    ({"max_epochs": 1.5}, ValueError, "max_epochs"),
    ({"max_epochs": {"decoder": 3}}, ValueError, "decoder"),
    ({"batch_size": 0}, ValueError, "batch_size"),
    ({"batch_size": 2.5}, ValueError, "batch_size"),
    ({"plan_kwargs": {"batch_size": -1}}, ValueError, "batch_size"),
    ({"train_size": 1.5}, ValueError, "train_size"),
    ({"train_size": "most"}, ValueError, "train_size"),
    ({"train_size": 0.8, "validation_size": 0.3}, ValueError, "validation_size"),
    ({"validation_size": 1.0}, ValueError, "validation_size"),
    ({"train_size": 1.0, "early_stopping": True}, ValueError, "early_stopping"),
    ({"precision": "64-true"}, ValueError, "precision"),
    ({"accelerator": "tpu"}, ValueError, "accelerator|xla"),
    ({"strategy": "nonsense"}, ValueError, "strategy"),
    ({"devices": 10**400}, ValueError, ""),
    ({"limit_train_batches": 10**400}, ValueError, ""),
    ({"callbacks": [3]}, TypeError, "callbacks"),
    ({"check_val_every_n_epoch": 0}, ValueError, "check_val_every_n_epoch"),
    ({"early_stopping_patience": "five"}, ValueError, "early_stopping_patience"),
    ({"early_stopping_patience": 2.5}, ValueError, "early_stopping_patience"),
    ({"early_stopping_min_delta": float("nan")}, ValueError, "early_stopping_min_delta"),
    ({"checkpoint_minutes": "5"}, ValueError, "checkpoint_minutes"),
    *(({"max_time": time}, ValueError, "max_time") for time in ("1 hour", {"minute": 90}, 3600, {"hours": 10**400})),
]
LATE_MISTAKES = [
    ({"max_epochs": {"prior": 0}}, ValueError, "max_epochs"),
    ({"max_epochs": {"transport": 3}}, ValueError, "transport.*control_values"),
    ({"plan_kwargs": {"prior": {"batch_size": 0}}}, ValueError, "batch_size"),
    ({"plan_kwargs": {"prior": {"learnig_rate": 1.0}}}, TypeError, "learning_rate"),
    ({"plan_kwargs": {"prior": {"drop_probability": 1.5}}}, ValueError, "drop_probability"),
    (
        {"max_epochs": 5, "check_val_every_n_epoch": 2, "plan_kwargs": {"autoencoder": {"max_rounds": 3}}},
        ValueError,
        "check_val_every_n_epoch",
    ),
]


@pytest.mark.parametrize(("mistake", "error", "named"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_answered_by_name_before_any_work(either_class, mistake, error, named, make_model, quick):
    model = make_model(cls=either_class)

    with pytest.raises(error, match=named):
        model.train(**{**quick, **mistake})
    assert model.trained_stages_ == []


@pytest.mark.parametrize(("mistake", "error", "named"), LATE_MISTAKES)
def test_mistakes_about_later_stages_are_found_before_the_first(make_model, quick, mistake, error, named):
    model = make_model()

    with pytest.raises(error, match=named):
        model.train(**{**quick, **mistake})
    assert model.trained_stages_ == []


def test_a_stage_alone_says_what_it_does_not_take(make_trained, quick):
    with pytest.raises(TypeError, match="train_size"):
        make_trained().train_prior(1, train_size=0.5, **quick)


def test_options_hold_for_all_stages_or_by_stage(make_model, quick, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "scgen_diffusion.train.StagePlan.configure_optimizers",
        lambda self: seen.update({self.name: self.recipe.learning_rate}),
    )
    model = make_model()
    model.train(1, plan_kwargs={"learning_rate": 0.5}, **quick)
    assert seen == {"autoencoder": 0.5, "prior": 0.5}
    model.train(1, plan_kwargs={"prior": {"learning_rate": 0.25}}, **quick)
    assert seen == {"autoencoder": 4e-3, "prior": 0.25}


def test_sizes_split_the_cells_as_in_scvi_tools(make_model, quick):
    model = make_model()

    model.train(1, train_size=0.5, validation_size=0.25, **quick)

    parts = [model.train_indices, model.validation_indices, model.test_indices]
    assert [len(part) for part in parts] == [48, 24, 24]
    assert len(np.unique(np.concatenate(parts))) == 96
    model.train_prior(1, **quick)
    assert len(model.test_indices) == 24
    model.train(1, validation_size=0.25, **quick)
    assert [len(model.train_indices), len(model.validation_indices), len(model.test_indices)] == [72, 24, 0]


def test_test_cells_are_no_training_cells(make_model, quick, monkeypatch):
    model, fitted = make_model(), []
    library_size = type(model.module.library_size)
    for name in ("fit", "fit_predicted"):
        fit = getattr(library_size, name)
        monkeypatch.setattr(
            library_size, name, lambda self, totals, *rest, fit=fit: (fitted.append(totals), fit(self, totals, *rest))
        )
    monkeypatch.setattr(_initialise, "N_TOTALS", 1)

    model.train(1, train_size=0.5, validation_size=0.25, **quick)

    assert model.combination_sizes_.sum() == 72
    totals = np.log(np.asarray(model.adata.X.sum(1)).ravel())
    np.testing.assert_allclose(fitted[0].ravel(), np.delete(totals, model.test_indices), rtol=1e-5)
    assert len(fitted[1]) == 72


def test_batches_are_no_larger_than_the_default_or_the_cells(make_model, quick, monkeypatch):
    sizes = {}
    for name in ("AutoencoderPlan", "PriorPlan"):
        plan = getattr(__import__("scgen_diffusion").train, name)
        original = plan.compute_losses

        def spy(self, batch, *args, original=original, **kwargs):
            sizes.setdefault(self.name, set()).add(len(next(iter(batch.values()))))
            return original(self, batch, *args, **kwargs)

        monkeypatch.setattr(plan, "compute_losses", spy)

    make_model().train(1, train_size=1.0, **{**quick, "batch_size": 1_000_000})

    assert sizes == {"autoencoder": {96}, "prior": {256}}


# --- what the user sees -----------------------------------------------------------------------------------------------


def lines_of(model, capsys):
    print(model)
    printed = capsys.readouterr().out
    assert printed == repr(model) + "\n"
    lines = printed.splitlines()
    assert len(lines) == 5
    return lines


def test_a_model_is_printed_in_five_lines(make_model, quick, capsys):
    model = make_model(setup={"control_values": {"dose": 1}})
    first, genes, conditions, trained, following = lines_of(model, capsys)
    assert "SCLDM of 96 cells" in first
    assert "12" in genes
    assert "cell_type (5 classes), dose (3 classes; control: 1)" in conditions
    assert "nothing yet (stages: autoencoder, prior, transport)" in trained
    assert following.endswith("model.train()")
    model.train_autoencoder(1, **quick)
    model.cut_short_ = {}
    following = lines_of(model, capsys)[4]
    assert following.endswith("model.train_transport() to predict perturbations, or model.train_prior() to generate")
    model.train_transport(1, **quick)
    model.cut_short_ = {}
    assert "model.predict_perturbation(control_cells, {'dose': ...})" in lines_of(model, capsys)[4]
    model.train(1, **quick)
    *_, trained, following = lines_of(model, capsys)
    assert trained.endswith("autoencoder, prior (far too short), transport (far too short)")
    assert "model.train_prior() and model.train_transport(), as the training so far" in following
    model.cut_short_ = {**model.cut_short_, "autoencoder": TOO_SHORT}
    assert lines_of(model, capsys)[4].endswith("model.train(), as the training so far was far too short")
    model.cut_short_ = {}
    assert lines_of(model, capsys)[4].endswith(
        "model.generate(1_000, condition={'cell_type': 'B cell'}), model.predict_perturbation(control_cells, "
        "{'dose': ...}) and model.save('my_model')"
    )


def test_models_of_other_kinds_are_printed_too(trained, trained_gene_space, make_cells, tiny, tmp_path, capsys):
    trained.save(tmp_path / "model")
    loaded = SCLDM.load(tmp_path / "model", adata=False)
    assert lines_of(loaded, capsys)[0] == "SCLDM trained on 96 cells (cells not in memory)"
    again = "set model.adata to cells, then model.train(), as the training so far was far too short"
    assert lines_of(loaded, capsys)[4].endswith(again)
    cells = make_cells(seed=1)
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str).replace({"NK": "ILC"})
    _, _, conditions, state, following = lines_of(SCLDM.load_query_data(cells, loaded), capsys)
    assert "cell_type (6 classes; new: 'ILC')" in conditions
    assert state.endswith("prior (far too short) (by the reference; not fine-tuned yet)")
    assert following.endswith("model.train()")
    loaded.cut_short_ = {}
    assert "model.generate(1_000, condition={'cell_type': 'B cell'})" in lines_of(loaded, capsys)[4]
    assert lines_of(trained_gene_space, capsys)[3].endswith("diffusion (far too short)")
    mdata = MuData({"rna": make_cells(), "prot": make_cells(n_genes=5)})
    MULTISCLDM.setup_mudata(mdata)
    _, features, conditions, *_ = lines_of(MULTISCLDM(mdata, **tiny), capsys)
    assert "rna (12, negative_binomial), prot (5, negative_binomial)" in features
    assert conditions.endswith("none")


QUIET = """
import sys
sys.path.insert(0, sys.argv[1])
import warnings
import builders
warnings.filterwarnings("ignore", message="Too few ")
sys.stderr.write("begin\\n")
builders._make_model().train(2)
"""


def test_in_a_log_file_training_shows_a_line_per_stage_and_one_at_the_end(run_apart):
    out, err = run_apart(QUIET, Path(__file__).parents[1])

    *stages, words = err.partition("begin\n")[2].splitlines()
    assert out == ""
    assert [line.partition(":")[0] for line in stages] == ["Autoencoder (compresses cells)", "Prior (generates cells)"]
    assert all("100%, epoch 2 of 2, validation loss " in line for line in stages)
    assert "\r" not in err
    assert re.fullmatch(
        r"Training took \d+\.\d minutes \(autoencoder: epochs 2, validation loss \S+; prior: epochs 2, .*", words
    )


class Stop(Callback):
    """Press Ctrl-C in the second epoch of the prior."""

    def on_train_epoch_start(self, trainer, plan):
        if (plan.name, trainer.current_epoch) == ("prior", 1):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_stopped_run_is_told_and_printed(make_model, quick, capsys, tmp_path):
    model = make_model()
    model.train(3, **{**quick, "enable_progress_bar": True}, callbacks=[Stop()])
    assert "prior (stopped far too early)" in str(model)
    assert "with `checkpoint_dir`, make the same call again, which trains on; without, model.train_prior()" in str(
        model
    )
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("Training was stopped after")
    assert "prior: epochs 1" in last
    model.save(tmp_path / "model")
    assert "prior (stopped far too early)\n" in str(type(model).load(tmp_path / "model"))
    model.train_prior(1, **quick)
    assert "prior (far too short)\n" in str(model)


def test_a_refused_call_keeps_split_and_cells(make_model, make_cells, quick, tmp_path):
    model = make_model()
    model.train_autoencoder(1, **quick)
    before, others = model.train_indices_, make_cells(200, seed=1)
    others.write_h5ad(tmp_path / "others.h5ad")
    files = CellFiles.like(model.registry, tmp_path / "others.h5ad")

    for wrong in ({"plan_kwargs": {"typo": 1}}, {"max_epochs": 0}, {"precision": "typo"}):
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong)) + "|typo"):
            model.train(**{"max_epochs": 1, "train_size": 0.5, "datamodule": files, **quick, **wrong})

    assert model.train_indices_ is before
    assert model._cells.n_cells == len(model.adata)


@pytest.mark.parametrize("stays_in_file", [False, True])
def test_few_cells_are_repeated_to_fill_an_epoch(make_model, make_cells, quick, tmp_path, stays_in_file):
    make_cells().write_h5ad(tmp_path / "cells.h5ad")
    cells = CellFiles(tmp_path / "cells.h5ad", condition_keys=["cell_type", "dose"]) if stays_in_file else None
    model = make_model()

    model.train_autoencoder(2, plan_kwargs={"smallest_epoch": 7}, datamodule=cells, **quick)

    assert model.trainer.global_step == 14


def test_repeated_cells_of_files_come_in_whole_batches_and_new_orders(make_model, make_cells, quick, tmp_path):
    make_cells().write_h5ad(tmp_path / "cells.h5ad")
    cells = CellFiles(tmp_path / "cells.h5ad", condition_keys=["cell_type", "dose"])
    seen, model = [], make_model()

    class Watch(Callback):
        def on_train_batch_start(self, trainer, module, batch, *_):
            seen.append(batch["X"].sum(1).tolist())

    options = {**quick, "datamodule": cells, "batch_size": 60, "train_size": 1.0, "callbacks": [Watch()]}
    model.train_autoencoder(1, plan_kwargs={"smallest_epoch": 6}, **options)

    assert [len(batch) for batch in seen] == [60] * 6
    assert len({tuple(batch) for batch in seen}) == 6


def test_a_label_of_validation_cells_alone_is_named(make_model, quick, monkeypatch):
    model = make_model()
    rare = np.flatnonzero(model.adata.obs["cell_type"] == "rare")
    parts = np.setdiff1d(np.arange(model.adata.n_obs), rare), rare, np.array([], dtype=int)
    monkeypatch.setattr("scgen_diffusion.model._base.split_cells", lambda *_: parts)

    with pytest.warns(UserWarning, match=r"of cell_type 'rare' \(0\): "):
        model.train_autoencoder(2, **quick)


def test_labels_with_few_cells_are_named_once(make_model, quick):
    model = make_model()
    with pytest.warns(UserWarning, match=r"Too few training cells \(under 10\) of cell_type 'rare' \(1\): "):
        model.train_autoencoder(2, **quick, train_size=1.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Too few training cells")
        model.train_prior(2, **quick)


def test_a_training_that_is_far_too_short_is_named(make_model, quick):
    with pytest.warns(UserWarning, match=r"Too few epochs for 86 training cells: 2 of the diffusion \(default 133"):
        (model := make_model(cls=SCRDIT)).train(2, **quick)
    assert "diffusion (far too short)" in str(model)


def test_a_training_that_an_option_ends_is_judged_by_the_epochs_it_had(make_model, quick):
    usual = {"plan_kwargs": {"reference_steps": 120}, **quick}  # 20 epochs
    (model := make_model(cls=SCRDIT)).train(max_steps=1, **usual)
    assert model.cut_short_ == {"diffusion": TOO_SHORT}
    model.train(**usual)
    assert model.trainer.current_epoch == 20
    assert model.cut_short_ == {}


def test_a_deterministic_run_does_not_warn_of_a_default(make_model, quick):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*deterministic")
        try:
            make_model().train_autoencoder(1, deterministic=True, **quick)
        finally:
            torch.use_deterministic_algorithms(False)


class Terminal(io.StringIO):
    """What a terminal shows."""

    def isatty(self):
        return True


def test_in_a_terminal_training_shows_a_bar_per_stage(make_model, quick, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    make_model().train(2, **quick | {"enable_progress_bar": True})
    shown = sys.stderr.getvalue().replace("\r", "\n").splitlines()
    assert any(line.startswith("Autoencoder (compresses cells)   0%|") for line in shown)
    assert any(
        line.startswith("Prior (generates cells) 100%|") and "epoch 2 of 2, validation loss" in line for line in shown
    )
