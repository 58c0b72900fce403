"""Arguments and cells of ``train`` are checked before the first stage starts."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from builders import TYPES
from lightning.pytorch.callbacks import Callback
from mudata import MuData

from scgen_diffusion.data import CellFiles
from scgen_diffusion.model import MULTISCLDM, SCLDM, SCRDIT
from scgen_diffusion.model._end_of_training import TOO_SHORT
from scgen_diffusion.train import _initialise

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


def test_changed_values_of_a_backed_file_are_refused(make_cells, make_model, quick, tmp_path):
    make_cells().write_h5ad(tmp_path / "cells.h5ad")
    adata = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r+")
    model = make_model(adata)
    adata.X[:, :] = np.log1p(adata.X[:, :])

    with pytest.raises(ValueError, match="changed"):
        model.train(1, **quick)


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


WRONG_VALUES = {
    "max_epochs": [0, 1.5, {"decoder": 3}],
    "batch_size": [0, 2.5],
    "train_size": [1.5, "most"],
    "validation_size": [1.0],
    "precision": ["64-true"],
    "accelerator": ["tpu"],
    "strategy": ["nonsense"],
    "devices": [10**400],
    "limit_train_batches": [10**400],
    "check_val_every_n_epoch": [0],
    "early_stopping_patience": ["five", 2.5],
    "early_stopping_min_delta": [float("nan")],
    "checkpoint_minutes": ["5"],
    "max_time": ["1 hour", {"minute": 90}, 3600, {"hours": 10**400}],
}
NOT_NAMED = {"accelerator": "accelerator|xla", "devices": "", "limit_train_batches": ""}  # answers of Lightning
MISTAKES = [
    *((ValueError, NOT_NAMED.get(name, name), {name: v}) for name, values in WRONG_VALUES.items() for v in values),
    (ValueError, "decoder", {"plan_kwargs": {"decoder": {"learning_rate": 1e-3}}}),
    (ValueError, "batch_size", {"plan_kwargs": {"batch_size": -1}}),
    (ValueError, "validation_size", {"train_size": 0.8, "validation_size": 0.3}),
    (ValueError, "early_stopping", {"train_size": 1.0, "early_stopping": True}),
    (TypeError, "epochs", {"epochs": 3}),
    (TypeError, "enable_checkpointing", {"enable_checkpointing": True}),
    (TypeError, "compile", {"plan_kwargs": {"compile": True}}),
    (TypeError, "learning_rate", {"plan_kwargs": {"learning_rat": 1e-3}}),
    (TypeError, "learning_rate", {"plan_kwargs": {"learning_rate": "high"}}),
    (TypeError, "plan_kwargs", {"plan_kwargs": [1]}),
    (TypeError, "callbacks", {"callbacks": [3]}),
]
#: Of the second stage of SCLDM, and of its rounds.
LATE_MISTAKES = [
    (ValueError, "max_epochs", {"max_epochs": {"prior": 0}}),
    (ValueError, "flow.*control_values", {"max_epochs": {"perturbation_flow": 3}}),
    (ValueError, "batch_size", {"plan_kwargs": {"prior": {"batch_size": 0}}}),
    (TypeError, "learning_rate", {"plan_kwargs": {"prior": {"learnig_rate": 1.0}}}),
    (ValueError, "drop_probability", {"plan_kwargs": {"prior": {"drop_probability": 1.5}}}),
    (
        ValueError,
        "check_val_every_n_epoch",
        {"max_epochs": 5, "check_val_every_n_epoch": 2, "plan_kwargs": {"autoencoder": {"max_rounds": 3}}},
    ),
]


@pytest.mark.parametrize(
    ("cls", "error", "named", "mistake"),
    [*((cls, *m) for cls in (SCLDM, SCRDIT) for m in MISTAKES), *((SCLDM, *m) for m in LATE_MISTAKES)],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_is_answered_by_name_before_any_work(cls, error, named, mistake, make_model, quick):
    model = make_model(cls=cls)

    with pytest.raises(error, match=named):
        model.train(**{**quick, **mistake})
    assert model.trained_stages_ == []


def test_a_stage_alone_says_what_it_does_not_take(make_trained, quick):
    with pytest.raises(TypeError, match="train_size"):
        make_trained().train_prior(1, train_size=0.5, **quick)


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
    model.train_prior(1, **quick)
    assert sizes(model) == [48, 24, 24]
    model.train(1, validation_size=0.25, **quick)
    assert sizes(model) == [72, 24, 0]
    (model := make_model(make_cells(97))).train_autoencoder(1, train_size=0.5, validation_size=0.5, **quick)
    assert sizes(model) == [48, 49, 0]  # shares that add up to all leave no cell over


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


def test_batches_are_no_larger_than_the_default_or_the_cells(make_model, quick):
    sizes = {}

    class Watch(Callback):
        def on_train_batch_start(self, trainer, plan, batch, *_):
            sizes.setdefault(plan.name, set()).add(len(next(iter(batch.values()))))

    make_model().train(1, train_size=1.0, callbacks=[Watch()], **{**quick, "batch_size": 1_000_000})

    assert sizes == {"autoencoder": {96}, "prior": {256}}


def lines_of(model):
    lines = repr(model).splitlines()
    assert len(lines) == 5
    return lines


def test_a_model_is_printed_in_five_lines(make_model, quick):
    model = make_model(setup={"control_values": {"dose": 1}})
    first, genes, conditions, trained, following = lines_of(model)
    assert "SCLDM of 96 cells" in first
    assert "12" in genes
    assert "cell_type (5 classes), dose (3 classes; control: 1)" in conditions
    assert "autoencoder, prior, perturbation_flow" in trained
    assert "model.train()" in following
    for stage, suggested in (
        ("autoencoder", ["model.train_perturbation_flow()", "model.train_prior()"]),
        ("perturbation_flow", ["model.predict_perturbation(control_cells, {'dose': ...})"]),
        ("prior", ["model.generate(1_000, condition={'cell_type': 'B cell'})", "predict_perturbation", "model.save("]),
    ):
        getattr(model, f"train_{stage}")(1, **quick)
        *_, trained, following = lines_of(model)
        assert f"{stage} (far too short)" in trained
        model.cut_short_ = {}
        assert all(call in lines_of(model)[4] for call in suggested)
    for stages, suggested in ((["autoencoder", "prior"], "model.train(),"), (["prior"], "model.train_prior(),")):
        model.cut_short_ = dict.fromkeys(stages, TOO_SHORT)
        assert suggested in lines_of(model)[4]


def test_models_of_other_kinds_are_printed_too(saved_model, trained_gene_space, make_cells, tiny):
    loaded = SCLDM.load(saved_model, adata=False)
    assert "SCLDM trained on 96 cells" in lines_of(loaded)[0]
    assert "model.adata" in lines_of(loaded)[4]
    cells = make_cells(seed=1)
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str).replace({"NK": "ILC"})
    _, _, conditions, _, following = lines_of(SCLDM.load_query_data(cells, loaded))
    assert "cell_type (6 classes; new: 'ILC')" in conditions
    assert "model.train()" in following
    loaded.cut_short_ = {}
    assert "model.generate(1_000, condition={'cell_type': 'B cell'})" in lines_of(loaded)[4]
    assert "diffusion" in lines_of(trained_gene_space)[3]
    mdata = MuData({"rna": make_cells(), "prot": make_cells(n_genes=5)})
    MULTISCLDM.setup_mudata(mdata)
    _, features, conditions, *_ = lines_of(MULTISCLDM(mdata, **tiny))
    assert "rna (12, negative_binomial), prot (5, negative_binomial)" in features
    assert "none" in conditions


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

    *stages, last = err.partition("begin\n")[2].splitlines()
    assert out == ""
    assert [line.split()[0] for line in stages] == ["Autoencoder", "Prior"]
    assert all("100%, epoch 2 of 2, validation loss " in line for line in stages)
    assert "\r" not in err
    assert re.search(r"autoencoder: epochs 2, validation loss \S+; prior: epochs 2, ", last)


def test_a_stopped_run_is_told_and_printed(make_model, quick, capsys, tmp_path):
    class Stop(Callback):
        def on_train_epoch_start(self, trainer, plan):
            if (plan.name, trainer.current_epoch) == ("prior", 1):
                os.kill(os.getpid(), signal.SIGINT)

    model = make_model()
    model.train(3, **{**quick, "enable_progress_bar": True}, callbacks=[Stop()])
    assert "prior: epochs 1" in capsys.readouterr().err.splitlines()[-1]
    assert all(words in str(model) for words in ("checkpoint_dir", "model.train_prior()"))
    model.save(tmp_path / "model")
    for printed in (str(model), str(SCLDM.load(tmp_path / "model"))):
        assert "prior (stopped far too early)\n" in printed
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
def test_few_cells_are_repeated_in_whole_batches_and_new_orders(make_model, make_cells, quick, tmp_path, stays_in_file):
    make_cells().write_h5ad(tmp_path / "cells.h5ad")
    cells = CellFiles(tmp_path / "cells.h5ad", condition_keys=["cell_type", "dose"]) if stays_in_file else None
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, module, batch, *_):
            seen.append(tuple(batch["X"].sum(1).tolist()))

    options = {**quick, "batch_size": 60, "train_size": 1.0, "callbacks": [Watch()]}
    make_model().train_autoencoder(2, plan_kwargs={"smallest_epoch": 6}, datamodule=cells, **options)

    assert [len(batch) for batch in seen] == [60] * 12
    assert len(set(seen)) == 12


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


def test_a_far_too_short_training_is_named_by_the_epochs_it_had(make_model, quick):
    usual = {"plan_kwargs": {"reference_steps": 120}, **quick}  # 20 epochs
    model = make_model(cls=SCRDIT)
    with pytest.warns(UserWarning, match="86 training cells: 2 of the diffusion"):
        model.train(2, **quick)
    assert "diffusion (far too short)" in str(model)
    model.train(max_steps=1, **usual)
    assert model.cut_short_ == {"diffusion": TOO_SHORT}
    model.train(**usual)
    assert model.trainer.current_epoch == 20
    assert model.cut_short_ == {}


def test_in_a_terminal_training_shows_a_bar_per_stage(make_model, quick, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    make_model().train(2, **quick | {"enable_progress_bar": True})
    shown = terminal.getvalue().replace("\r", "\n").splitlines()
    assert any(re.match(r"Autoencoder .* 0%\|", line) for line in shown)
    assert any(re.match(r"Prior .* 100%\|.*epoch 2 of 2, validation loss", line) for line in shown)


def test_a_deterministic_run_does_not_warn_of_a_default(make_model, quick):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*deterministic")
        try:
            make_model().train_autoencoder(1, deterministic=True, **quick)
        finally:
            torch.use_deterministic_algorithms(False)
