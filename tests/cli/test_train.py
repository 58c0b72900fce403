"""``train``: from files to a model, with the arguments of the Python interface, interrupted and resumed."""

import functools
import re
import signal
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import scvi
from builders import At
from mudata import MuData

import scgen_diffusion as sgd
from scgen_diffusion.model import SCLDM


@pytest.fixture
def told(monkeypatch):
    """Record the calls of ``SCLDM`` without training."""
    record = {}

    def note(name):
        original = getattr(SCLDM, name)

        def noting(self_or_cells, *args, **kwargs):
            record[name] = kwargs
            if name != "train":
                return original(self_or_cells, *args, **kwargs)
            self_or_cells.trainer = SimpleNamespace(interrupted=False, is_global_zero=True)
            return None

        return noting

    monkeypatch.setattr(SCLDM, "train", note("train"))
    monkeypatch.setattr(SCLDM, "setup_anndata", staticmethod(note("setup_anndata")))
    monkeypatch.setattr(SCLDM, "save", lambda self, folder, **_: (folder.mkdir(), record.update(model=self)))
    return record


def test_a_model_is_trained_and_saved(call, cells_file, small, tmp_path):
    out = tmp_path / "model"
    code, printed, err = call("train", cells_file, "-c", "cell_type", "--layer", "raw", "-o", out, *small)
    assert (code, printed) == (0, f"{out}\n"), err
    assert "SCLDM of 96 cells" in err
    assert "cell_type (5 classes)" in err
    assert re.search(r"Training 100%.*prior epoch 1 of 1, loss", err)
    assert len(re.findall(r"\rTraining +0%", err)) == 1  # one bar for both stages
    assert [path.name for path in out.iterdir()] == ["model.pt"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    model = sgd.model.load(out)
    assert model.conditions.keys == ["cell_type"]
    assert model.architecture.prior_width == 8


def test_what_is_not_given_is_left_to_python(call, cells_file, told, tmp_path):
    assert call("train", cells_file, "-o", tmp_path / "model")[0] == 0
    assert told["setup_anndata"] == {}
    assert told["train"] == {"checkpoint_dir": tmp_path / ".model.checkpoints"}


def test_options_reach_their_arguments(call, make_cells, told, tmp_path):
    cells, table = make_cells(), tmp_path / "vectors.csv"
    cells.obs["drugs"] = np.resize(["A", "A;B", "none"], len(cells))
    cells.obs["genes"] = np.resize(["A", "A+B"], len(cells))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    pd.DataFrame(np.eye(4), index=["B cell", "T cell", "NK", "rare"]).to_csv(table)
    line = f"""-c cell_type --continuous-condition dose --condition-embedding cell_type={table} --set-condition drugs=;
        --set-condition genes --control cell_type=NK --control dose=1 --unlabeled-category rare -e autoencoder=3
        -e prior=4 --devices 1 --num-nodes 2 --strategy ddp --accelerator cpu --batch-size 8 --seed 5
        --recipe prior.learning_rate=1e-4 --trainer log_every_n_steps=2 --trainer precision=32-true"""
    code, _, err = call("train", tmp_path / "cells.h5ad", "-o", tmp_path / "model", *line.split())
    assert code == 0, err
    setup, training = told["setup_anndata"], told["train"]
    assert setup.pop("condition_embeddings")["cell_type"].shape == (4, 4)
    assert setup == {
        "condition_keys": ["cell_type"],
        "continuous_condition_keys": ["dose"],
        "set_condition_keys": {"drugs": ";", "genes": "+"},
        "control_values": {"cell_type": "NK", "dose": 1},
        "unlabeled_category": "rare",
    }
    del training["checkpoint_dir"]
    assert training == {
        "max_epochs": {"autoencoder": 3, "prior": 4},
        "plan_kwargs": {"prior": {"learning_rate": 1e-4}},
        "devices": 1,
        "num_nodes": 2,
        "strategy": "ddp",
        "accelerator": "cpu",
        "batch_size": 8,
        "log_every_n_steps": 2,
        "precision": "32-true",
    }
    assert scvi.settings.seed == 5


@pytest.mark.parametrize("backed", [[], ["--backed"]], ids=["in memory", "in files"])
@pytest.mark.parametrize("classes", [["01", "NA", "1"], [1, 0, 2], [0.5, 1.0, -2.0], [True, False]], ids=str)
@pytest.mark.filterwarnings("ignore:.*learned as a class:UserWarning")
def test_rows_of_an_embedding_file_name_classes_of_every_type(call, make_cells, told, tmp_path, classes, backed):
    cells, table = make_cells(), tmp_path / "vectors.csv"
    cells.obs["class"] = np.resize(classes, len(cells))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    pd.DataFrame(np.eye(len(classes)), index=classes).to_csv(table)
    options = ["-c", "class", "--condition-embedding", f"class={table}", *backed]
    code, _, err = call("train", tmp_path / "cells.h5ad", "-o", tmp_path / "model", *options)
    assert code == 0, err
    (values,) = told["model"].conditions.categories.values()
    assert [(value, type(value)) for value in values] == [(value, type(value)) for value in classes]


def test_several_files_are_read_as_one_set_of_cells(call, cells_file, make_cells, small, tmp_path):
    make_cells(seed=1).write_zarr(tmp_path / "second.zarr")
    out = tmp_path / "model"
    code, _, err = call("train", cells_file, tmp_path / "second.zarr", "-c", "cell_type", "-o", out, *small)
    assert code == 0, err
    assert "SCLDM of 192 cells" in err
    assert sgd.model.load(out).generate(3, seed=0).n_obs == 3


@pytest.mark.parametrize("options", [[], ["--backed"]])
def test_a_model_learns_a_new_type_from_the_command_line(call, make_cells, saved_model, tmp_path, options):
    cells, out = make_cells(48, seed=5), tmp_path / "model"
    cells.obs["cell_type"] = pd.Categorical(["plasma", "B cell"] * 24)
    cells[:, ::-1].write_h5ad(tmp_path / "new.h5ad")  # the genes of the model in another order
    short = ["--max-epochs", "1", "--batch-size", "32", "--accelerator", "cpu", "--trainable", "all"]
    code, _, err = call("train", tmp_path / "new.h5ad", "--reference", saved_model, "-o", out, *short, *options)
    assert code == 0, err
    model = sgd.model.load(out, adata=False)
    assert "plasma" in model.conditions.categories["cell_type"]
    assert model.reference_["trainable"] == "all"
    assert set(model.generate(4, {"cell_type": "plasma"}).obs["cell_type"]) == {"plasma"}


@pytest.mark.parametrize(
    ("number", "stage", "code"), [(signal.SIGINT, "autoencoder", 130), (signal.SIGTERM, "prior", 143)]
)
def test_a_signal_stops_training_and_the_same_command_resumes(
    call, cells_file, small, tmp_path, monkeypatch, number, stage, code
):
    out, command = tmp_path / "model", ["train", cells_file, "-o", tmp_path / "model", *small]
    command[command.index("--max-epochs") + 1] = "3"
    command += ["--trainer", "checkpoint_minutes=0"]
    with monkeypatch.context() as patch:
        train = functools.partialmethod(SCLDM.train, callbacks=[At(stage, 6, number)])  # in the third epoch
        patch.setattr(SCLDM, "train", train)
        found, printed, err = call(*command)
    assert (found, printed) == (code, "")
    assert "run the same command again to resume" in err
    assert not out.exists()
    assert (tmp_path / ".model.checkpoints" / f"{stage}.ckpt").exists()
    found, printed, err = call(*command)
    assert (found, printed) == (0, f"{out}\n")
    assert f"Resuming the {stage} after epoch" in err
    assert not (tmp_path / ".model.checkpoints").exists()
    assert len(sgd.model.load(out).history_[f"{stage}_loss_train"]) == 3


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("-c cell_typ", "'cell_type'"),
        ("--layer counts", "layer"),
        ("--set widht=3", "widht"),
        ("--recipe prior.lr=1", "'lr'"),
        ("-e decoder=3", "max_epochs"),
        ("-e many", "max_epochs"),
        ("-e 3 -e 4", "--max-epochs"),
        ("--trainer train_sise=.5", "train_sise"),
        ("--num-nodes 0", "num_nodes"),
        ("--devices []", "devices"),
        ("--trainer precision=bf17", "precision"),
        ("--model MULTISCLDM", "MuData"),
        ("--modality rna", "modalities"),
        ("--condition-embedding cell_type=nowhere.xlsx -c cell_type", "nowhere.xlsx"),
        ("--condition-embedding cell_type={damaged} -c cell_type", "cannot be read as a table"),
        ("--reference {model} -c cell_type", "condition_keys"),
        ("--reference nowhere", "nowhere"),
        ("--trainable all", "trainable"),
    ],
)
def test_wrong_options_of_train_are_named(refused, cells_file, saved_model, tmp_path, options, word):
    (tmp_path / "damaged.csv").write_bytes(b"\xff")
    options = options.format(model=saved_model, damaged=tmp_path / "damaged.csv")
    refused(word, "train", cells_file, "-o", tmp_path / "model", *options.split())
    assert not (tmp_path / "model").exists()


def test_only_the_first_process_of_a_distributed_run_prints(call, cells_file, tmp_path, monkeypatch):
    command = ["train", cells_file, "-o", tmp_path / "model", "-c", "cell_typ", "--devices", "2"]
    for rank, prints in (("0", True), ("1", False)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        _, _, err = call(*command, "--accelerator", "cpu")
        assert ("Reading" in err, "'cell_typ'" in err) == (prints, True)


def test_wrong_files_are_named(refused, make_cells, cells_file, tmp_path):
    out, cells = tmp_path / "model", anndata.read_h5ad(cells_file)
    (tmp_path / "cells.csv").write_text("a,b")
    (tmp_path / "damaged.h5ad").write_text("no HDF5")
    anndata.AnnData(obs=cells.obs, var=cells.var).write_h5ad(tmp_path / "without.h5ad")
    cells[:, 2:].write_h5ad(tmp_path / "fewer.h5ad")
    MuData({"rna": make_cells()}).write_h5mu(tmp_path / "cells.h5mu")
    for word, *names in (
        ("nowhere.h5ad", "nowhere.h5ad"),
        (".csv", "cells.csv"),
        ("damaged.h5ad", "damaged.h5ad"),
        ("X is empty", "without.h5ad"),
        ("shared", "cells.h5ad", "fewer.h5ad"),
        (".h5mu", "cells.h5mu", "cells.h5ad"),
    ):
        refused(word, "train", *(tmp_path / name for name in names), "-o", out)
    refused("AnnData", "train", tmp_path / "cells.h5mu", "-m", "WBDIT", "-o", out)
    refused("values", "train", tmp_path / "cells.h5mu", "--values", "log1p", "-o", out)
    refused("There is no folder", "train", cells_file, "-o", tmp_path / "none" / "model")
    out.mkdir()
    refused("--overwrite", "train", cells_file, "-o", out)


def test_a_model_is_written_beside_other_files_which_stay(call, cells_file, small, tmp_path, refused):
    out = tmp_path / "model"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert call("train", cells_file, "-o", out, "--overwrite", *small)[0] == 0
    assert {path.name for path in out.iterdir()} == {"model.pt", "notes.txt"}
    refused("is a file", "train", cells_file, "-o", cells_file, "--overwrite")
