"""``train``: from files to a model, with the arguments of the Python interface, interrupted and resumed."""

import errno
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
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
            self_or_cells.trainer = SimpleNamespace(callbacks=[], is_global_zero=True)
            return None

        return noting

    monkeypatch.setattr(SCLDM, "train", note("train"))
    monkeypatch.setattr(SCLDM, "setup_anndata", staticmethod(note("setup_anndata")))
    return record


def test_a_model_is_trained_and_saved(call, cells_file, small, tmp_path):
    out = tmp_path / "model"
    code, printed, err = call("train", cells_file, "-c", "cell_type", "--layer", "raw", "-o", out, *small)
    assert (code, printed) == (0, f"{out}\n"), err
    assert "SCLDM of 96 cells" in err
    assert "cell_type (5 classes)" in err
    assert "Prior (generates cells): 100%, epoch 1 of 1, validation loss" in err
    assert [path.name for path in out.iterdir()] == ["model.pt"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    model = sgd.model.load(out)
    assert model.conditions.keys == ["cell_type"]
    assert model.architecture.prior_width == 8


def test_cells_without_a_label_train_too_when_asked(call, make_cells, small, tmp_path):
    cells = make_cells()
    cells.obs["cell_type"] = cells.obs["cell_type"].where(np.arange(cells.n_obs) > 1)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    command = ["train", tmp_path / "cells.h5ad", "-o", tmp_path / "model", "--condition", "cell_type", *small]
    code, _, err = call(*command)
    assert (code, "has no label for 2 of" in err, "--unlabeled-category='Unknown'" in err) == (2, True, True), err
    code, _, err = call(*command, "--unlabeled-category", "Unknown")
    n_classes = len(cells.obs["cell_type"].cat.categories)
    assert (code, f"cell_type ({n_classes} classes; 2 cells without a label)" in err) == (0, True), err


def test_what_is_not_given_is_left_to_python(call, cells_file, told, tmp_path, monkeypatch):
    monkeypatch.setattr(SCLDM, "save", lambda self, folder, **_: folder.mkdir())
    assert call("train", cells_file, "-o", tmp_path / "model")[0] == 0
    assert told["setup_anndata"] == {}
    assert told["train"].keys() == {"checkpoint_dir", "enable_progress_bar"}
    assert told["train"]["checkpoint_dir"] == tmp_path / ".model.checkpoints"


def test_options_reach_their_arguments(call, cells_file, told, tmp_path, monkeypatch):
    monkeypatch.setattr(SCLDM, "save", lambda self, folder, **_: folder.mkdir())
    table = tmp_path / "vectors.csv"
    pd.DataFrame(np.eye(4), index=["B cell", "T cell", "NK", "rare"]).to_csv(table)
    options = ["-c", "cell_type", "--continuous-condition", "dose", "--condition-embedding", f"cell_type={table}"]
    options += [
        "--control",
        "cell_type=NK",
        "--control",
        "dose=1",
        "-e",
        "autoencoder=3",
        "-e",
        "prior=4",
        "--devices",
        "1",
        "--early-stopping",
    ]
    options += ["--prior", "learning_rate=1e-4", "--precision", "32-true", "--trainer", "log_every_n_steps=2"]
    code, _, err = call("train", cells_file, "-o", tmp_path / "model", *options)
    assert code == 0, err
    setup, training = told["setup_anndata"], told["train"]
    assert setup["condition_keys"] == ["cell_type"]
    assert setup["continuous_condition_keys"] == ["dose"]
    assert setup["control_values"] == {"cell_type": "NK", "dose": 1}
    assert setup["condition_embeddings"]["cell_type"].shape == (4, 4)
    assert training["max_epochs"] == {"autoencoder": 3, "prior": 4}
    assert training["plan_kwargs"] == {"prior": {"learning_rate": 1e-4}}
    assert training["checkpoint_dir"] == tmp_path / ".model.checkpoints"
    assert (training["devices"], training["early_stopping"]) == (1, True)
    assert (training["precision"], training["log_every_n_steps"]) == ("32-true", 2)


@pytest.mark.parametrize("backed", [[], ["--backed"]], ids=["in memory", "in files"])
@pytest.mark.parametrize("classes", [["01", "NA", "1"], [1, 0, 2], [0.5, 1.0, -2.0], [True, False]], ids=str)
@pytest.mark.filterwarnings("ignore:.*learned as a class:UserWarning")
def test_rows_of_an_embedding_file_name_classes_of_every_type(
    call, make_cells, told, tmp_path, monkeypatch, classes, backed
):
    cells, out, models = make_cells(), tmp_path / "model", []
    monkeypatch.setattr(SCLDM, "save", lambda self, folder, **_: (folder.mkdir(), models.append(self)))
    cells.obs["class"] = np.resize(classes, len(cells))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    table = tmp_path / "vectors.csv"
    pd.DataFrame(np.eye(len(classes)), index=classes).to_csv(table)
    options = ["-c", "class", "--condition-embedding", f"class={table}", *backed]
    code, _, err = call("train", tmp_path / "cells.h5ad", "-o", out, *options)
    assert code == 0, err
    (values,) = models[0].conditions.categories.values()
    assert [(value, type(value)) for value in values] == [(value, type(value)) for value in classes]


def test_several_files_are_read_as_one_set_of_cells_in_windows(call, cells_file, make_cells, small, tmp_path):
    second = tmp_path / "second.zarr"
    make_cells(seed=1).write_zarr(second)
    out = tmp_path / "model"
    code, _, err = call("train", cells_file, second, "-c", "cell_type", "-o", out, "--window-size", "64", *small)
    assert code == 0, err
    assert "SCLDM of 192 cells" in err
    assert sgd.model.load(out).generate(3, seed=0).n_obs == 3


def test_several_modalities_are_read_from_h5mu(call, make_cells, small, tmp_path):
    rna, protein = make_cells(), make_cells(n_genes=5, seed=1)
    protein.var_names = [f"protein_{g}" for g in range(5)]
    protein.obs = protein.obs[[]]
    protein.X = (protein.X > 0).astype(np.float32)
    mdata = MuData({"rna": rna, "prot": protein})
    mdata.obs["cell_type"] = rna.obs["cell_type"].astype(str).to_numpy()
    path, out, cells = tmp_path / "cells.h5mu", tmp_path / "model", tmp_path / "new.h5mu"
    mdata.write_h5mu(path)
    options = ["-c", "cell_type", "--modality", "rna", "--modality", "prot=bernoulli"]
    code, _, err = call("train", path, "--backed", *options, "-o", out)
    assert (code, "--backed" in err) == (2, True)
    code, _, err = call("train", path, *options, "-o", out, *small)
    assert code == 0, err
    assert "prot (5, bernoulli)" in call("info", out)[1]
    assert call("generate", out, cells, "-n", "4", "--n-steps", "1")[:2] == (0, f"{cells}\n")
    assert call("generate", out, cells, "-n", "4")[0] == 2
    assert call("generate", out, cells, "-n", "3", "--n-steps", "1", "--overwrite")[0] == 0
    code, _, err = call("generate", out, path, "-n", "4", "--overwrite")
    assert (code, "such a file is never replaced" in err) == (2, True)
    code, _, err = call("generate", out, tmp_path / "new.zarr", "-n", "4")
    assert (code, "a model of several modalities writes .h5mu" in err) == (2, True)
    for rank in ("0", "1"):
        request = ["-n", "300", "--n-steps", "1", "--shard-size", "256", "--rank", rank, "--n-ranks", "2"]
        assert call("generate", out, tmp_path / "shared.h5mu", *request)[0] == 0
    assert mudata.read_h5mu(tmp_path / "shared.h5mu").n_obs == 300
    code, _, err = call("predict", out, path, tmp_path / "nk.h5mu", "-c", "cell_type=NK", "--n-steps", "1")
    assert code == 0, err
    assert set(mudata.read_h5mu(tmp_path / "nk.h5mu").obs["cell_type"]) == {"NK"}
    some = ["--where", "cell_type=T cell", "-c", "cell_type=NK", "--n-steps", "1"]
    code, _, err = call("predict", out, path, tmp_path / "some.h5mu", *some)
    assert code == 0, err
    assert mudata.read_h5mu(tmp_path / "some.h5mu").n_obs == (mdata.obs["cell_type"] == "T cell").sum()


class Sender(Callback):
    """Send a signal to this very process after an epoch."""

    def __init__(self, number, stage, epoch):
        self.number, self.stage, self.epoch = number, stage, epoch

    def on_train_epoch_end(self, trainer, pl_module):
        if pl_module.name == self.stage and trainer.current_epoch == self.epoch:
            os.kill(os.getpid(), self.number)


def send_while_training(patch, sender):
    original = SCLDM.train
    patch.setattr(SCLDM, "train", lambda self, **kw: original(self, **kw | {"callbacks": [sender]}))


def test_a_model_learns_a_new_type_from_the_command_line(call, make_cells, saved_model, tmp_path):
    cells = make_cells(48, seed=5)
    cells.obs["cell_type"] = pd.Categorical(["plasma", "B cell"] * 24)
    cells[:, ::-1].write_h5ad(tmp_path / "new.h5ad")  # the genes of the model in another order
    short = ["--max-epochs", "1", "--batch-size", "32", "--accelerator", "cpu"]
    for name, options in (("memory", []), ("files", ["--backed"])):
        asked = ["train", tmp_path / "new.h5ad", "--reference", saved_model, "-o", tmp_path / name, *short, *options]
        code, _, err = call(*asked)
        assert code == 0, err
        model = sgd.model.load(tmp_path / name, adata=False)
        assert "plasma" in model.conditions.categories["cell_type"]
        assert model.reference_["trainable"] == "new_conditions"
        assert set(model.generate(4, {"cell_type": "plasma"}).obs["cell_type"]) == {"plasma"}
    code, _, err = call(*asked[:-1], "--trainable", "all", "--overwrite")
    assert code == 0, err
    assert sgd.model.load(tmp_path / "files", adata=False).reference_["trainable"] == "all"
    cells[:, :5].write_h5ad(tmp_path / "few.h5ad")
    code, _, err = call("train", tmp_path / "few.h5ad", *asked[2:-1], "--overwrite")
    assert (code, "Write a file with them first; `prepare_query_anndata` in Python can give the cells" in err) == (
        2,
        True,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reference", "{model}", "-c", "cell_type"], "--reference and --condition exclude each other"),
        (["--reference", "{model}", "--set", "width=8"], "--reference and --set exclude each other"),
        (["--reference", "{model}", "--model", "WBDIT"], "--model WBDIT, but the reference is of class SCLDM"),
        (["--reference", "pbmc10k_citeseq"], "The reference is of class MULTISCLDM, which reads .h5mu files"),
        (["--reference", "pbmc10k_citeseq", "--model", "SCLDM"], "but the reference is of class MULTISCLDM"),
        (["--reference", "nowhere"], "There is no saved model at"),
        (["--trainable", "all"], "--trainable needs --reference"),
    ],
)
def test_wrong_options_of_fine_tuning_are_named(call, cells_file, saved_model, tmp_path, options, message):
    options = [part.format(model=saved_model) for part in options]
    code, out, err = call("train", cells_file, "-o", tmp_path / "model", *options)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("number", "stage", "code"), [(signal.SIGINT, "autoencoder", 130), (signal.SIGTERM, "prior", 143)]
)
def test_a_signal_stops_training_and_the_same_command_resumes(
    call, cells_file, small, tmp_path, monkeypatch, number, stage, code
):
    out, command = tmp_path / "model", ["train", cells_file, "-o", tmp_path / "model", *small]
    command[command.index("--max-epochs") + 1] = "3"
    with monkeypatch.context() as patch:
        send_while_training(patch, Sender(number, stage, 0))
        found, printed, err = call(*command)
    assert (found, printed) == (code, "")
    assert "run the same command again to resume" in err
    assert not out.exists()
    assert (tmp_path / ".model.checkpoints" / f"{stage}.ckpt").exists()
    found, printed, err = call(*command)
    assert (found, printed) == (0, f"{out}\n")
    assert f"Resuming the {stage} after epoch 1" in err
    assert not (tmp_path / ".model.checkpoints").exists()
    assert len(sgd.model.load(out).history_[f"{stage}_loss_train"]) == 3


def test_checkpoints_of_cells_that_have_changed_since_are_refused(
    call, cells_file, make_cells, small, tmp_path, monkeypatch
):
    command = ["train", cells_file, "-o", tmp_path / "model", *small]
    command[command.index("--max-epochs") + 1] = "3"
    with monkeypatch.context() as patch:
        send_while_training(patch, Sender(signal.SIGTERM, "autoencoder", 0))
        assert call(*command)[0] == 143
    make_cells(seed=1).write_h5ad(cells_file)  # other values under the same names
    code, _, err = call(*command)
    assert code == 2
    assert "other cells" in err
    assert "`--restart`" in err
    code, _, err = call(*command, "--restart")
    assert (code, "Resuming the" in err) == (0, False), err


def test_restart_forgets_the_checkpoints_once_there_is_a_model(call, cells_file, small, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "autoencoder.ckpt").write_text("damaged")
    command = ["train", cells_file, "-o", tmp_path / "model", "--checkpoint-dir", folder, "--restart"]
    assert call(*command, "--condition", "cell_typ")[0] == 2
    assert (folder / "autoencoder.ckpt").exists()
    assert call(*command, *small, "--train-size", "2")[0] == 2
    assert not (folder / "autoencoder.ckpt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["-c", "cell_typ"],
            "The condition key 'cell_typ' is not a column of adata.obs. Known, closest first: 'cell_type'",
        ),
        (["--layer", "counts"], "--layer 'counts' is not in adata.layers. Known, closest first: 'raw'"),
        (["--set", "widht=3"], "SCLDM has no option 'widht'"),
        (["--set", "width"], "'width' is not of the form KEY=VALUE"),
        (["--prior", "lr=1"], "has no option 'lr'."),
        (["-e", "decoder=3"], "--max-epochs names the unknown stage 'decoder'"),
        (["-e", "many"], "'many' is not a number"),
        (["-e", "2.5"], "'2.5' is not a whole number"),
        (["-e", "3", "-e", "4"], "--max-epochs takes one value, or several KEY=VALUE"),
        (["--trainer", "callbacks=3"], "--trainer callbacks needs objects of Python"),
        (["--recipe", "x=1"], "--recipe is not for SCLDM, which has --autoencoder and --prior."),
        (["-m", "WBDIT", "--prior", "x=1"], "--prior is not for WBDIT, which has --recipe."),
        (["--continuous-condition", "cell_type"], "List it in --condition, or convert it"),
        (["--num-nodes", "0"], "--num-nodes must be a positive integer, but got 0."),
        (["--devices", "[]"], "--devices is '[]', but must be 'auto' or their number, or a list of indices."),
        (["--devices", "cuda"], "indices. --accelerator names the kind of device, such as 'cpu' or 'cuda'."),
        (["--precision", "bf17"], "'bf17' is not one of '32-true', 'bf16-mixed'"),
        (["--seed", "-1"], "-1 is not in the range 0<=x<=4294967295"),
        (["--modality", "rna"], "need an .h5mu file"),
        (["-m", "MULTISCLDM"], "MULTISCLDM reads .h5mu files; use SCLDM for one modality."),
        (["--window-size", "9"], "--window-size needs cells that stay in files"),
        (["--backed", "--save-cells"], "--save-cells needs cells in memory"),
        (["--backed", "--layer", "rna=raw"], "need an .h5mu file"),
        (["-e", "3", "--trainer", "max_epochs=4"], "Use --max-epochs instead of --trainer max_epochs"),
        (["--condition-embedding", "cell_type=nowhere.xlsx", "-c", "cell_type"], "nowhere.xlsx"),
    ],
)
def test_wrong_options_of_train_are_named(call, cells_file, tmp_path, options, message):
    code, out, err = call("train", cells_file, "-o", tmp_path / "model", *options)
    assert (code, out) == (2, ""), err
    assert message in err
    assert not (tmp_path / "model").exists()


CLUSTERS = {
    "a container": {"RANK": "1", "LOCAL_RANK": "1", "NODE_RANK": "1", "WORLD_SIZE": "2"},
    "torchrun": dict.fromkeys(("RANK", "GROUP_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"), "1"),
    "a job array": {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train"},
}


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_with_one_device_no_variable_of_a_cluster_matters(call, cells_file, small, tmp_path, monkeypatch, cluster):
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as Lightning reads it when it is imported
    for name, value in CLUSTERS[cluster].items():
        monkeypatch.setenv(name, value)
    code, printed, err = call("train", cells_file, "-o", tmp_path / "model", *small)
    assert (code, printed) == (0, f"{tmp_path / 'model'}\n"), err
    assert "Reading" in err
    assert "Training took" in err
    assert call("generate", tmp_path / "model", tmp_path / "new.h5ad", "--n-cells", "3")[0] == 0


def test_only_the_first_process_of_a_distributed_run_prints(call, cells_file, tmp_path, monkeypatch):
    command = [
        "train",
        cells_file,
        "-o",
        tmp_path / "model",
        "-c",
        "cell_typ",
        "--devices",
        "2",
        "--accelerator",
        "cpu",
    ]
    for rank, prints in (("0", True), ("1", False)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        _, _, err = call(*command, "--accelerator", "cpu")
        assert ("Reading" in err, "The condition key 'cell_typ'" in err) == (prints, True)


def test_wrong_files_are_named(call, cells_file, tmp_path):
    out = tmp_path / "model"
    assert "'nowhere.h5ad' does not exist" in call("train", "nowhere.h5ad", "-o", out)[2]
    other = tmp_path / "cells.csv"
    other.write_text("a,b")
    assert "but found '.csv'" in call("train", other, "-o", out)[2]
    damaged = tmp_path / "damaged.h5ad"
    damaged.write_text("no HDF5")
    code, _, err = call("train", damaged, "-o", out)
    assert (code, f"{damaged} cannot be read; it is damaged" in err) == (2, True)
    without, table = tmp_path / "without.h5ad", tmp_path / "table.csv"
    cells = anndata.read_h5ad(cells_file)
    anndata.AnnData(obs=cells.obs, var=cells.var).write_h5ad(without)
    assert "adata.X is empty; give the layer with the counts by --layer." in call("train", without, "-o", out)[2]
    fewer = tmp_path / "fewer.h5ad"
    cells[:, 2:].write_h5ad(fewer)
    assert "Use the genes of all files with --shared-genes." in call("train", cells_file, fewer, "-o", out)[2]
    table.write_bytes(b"\xff")
    code, _, err = call(
        "train", cells_file, "-o", out, "-c", "cell_type", "--condition-embedding", f"cell_type={table}"
    )
    assert (code, f"{table} cannot be read as a table" in err) == (2, True)
    paired = tmp_path / "cells.h5mu"
    paired.write_text("")
    assert "one .h5mu file" in call("train", cells_file, paired, "-o", out)[2]
    out.mkdir()
    code, _, err = call("train", cells_file, "-o", out)
    assert (code, "already exists; choose another name, or give --overwrite" in err) == (2, True)
    code, _, err = call("train", cells_file, "-o", tmp_path / "none" / "model")
    assert (code, "There is no folder" in err) == (2, True)


def test_gene_space_models_read_no_modalities_and_have_recipes_of_their_own(call, make_cells, tmp_path):
    path = tmp_path / "cells.h5mu"
    MuData({"rna": make_cells()}).write_h5mu(path)
    code, _, err = call("train", path, "-m", "WBDIT", "-o", tmp_path / "model")
    assert (code, "WBDIT reads one modality" in err) == (2, True)
    code, _, err = call("train", path, "--values", "log1p", "-o", tmp_path / "model")
    assert (code, "--values is for .h5ad and .zarr" in err) == (2, True)


def contents(folder):
    """Return all files below a folder, and what they hold."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_folder_but_a_model_is_replaced(call, make_cells, saved_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SCLDM, "setup_anndata", None)  # refused before any work
    for folder in ("pj/data", "notes", "cells", "names", "scvi"):
        (tmp_path / folder).mkdir(parents=True)
    files = Path("pj/data/cells.h5ad"), Path("pj/data/cells.zarr")
    make_cells().write_h5ad(files[0])
    make_cells().write_zarr(files[1])
    (tmp_path / "link").symlink_to("pj")
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    (tmp_path / "cells" / "adata.h5ad").write_text("mine")
    (tmp_path / "names" / "model.pt").write_text("of another program")
    torch.save({"model_state_dict": {}}, tmp_path / "scvi" / "model.pt")
    shutil.copytree(saved_model, "beside")
    (tmp_path / "beside" / "figure.png").write_text("mine")
    before = contents(tmp_path)
    for out, message in {
        "pj": "is or contains pj/data/cells.h5ad",
        "pj/data": "is or contains pj/data/cells.h5ad",
        "link": "is or contains pj/data/cells.h5ad",
        "pj/data/cells.h5ad": "is a file",
        "notes": "contains other files than a model",
        "cells": "contains other files than a model",
        "names": "contains other files than a model",
        "scvi": "contains other files than a model",
        "beside": "contains other files than a model",
        ".": "is or contains the current folder",
        "..": "is or contains the current folder",
    }.items():
        code, _, err = call("train", *files, "-o", out, "--overwrite")
        assert (code, message in err) == (2, True), err
        assert contents(tmp_path) == before, out


def test_checkpoints_without_room_are_named_and_leave_no_empty_folder(call, cells_file, small, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", fail)
    code, _, err = call("train", cells_file, "-o", tmp_path / "model", *small)
    assert (code, ".model.checkpoints failed: No space left on device" in err) == (1, True), err
    assert [path.name for path in tmp_path.iterdir() if "model" in path.name] == []


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_what_was_written_to_the_folder_during_the_training_is_kept_and_so_is_the_model(
    call, cells_file, small, saved_model, tmp_path, monkeypatch, options
):
    out = tmp_path / "model"

    def train(self, original=SCLDM.train, **arguments):
        original(self, **arguments)
        shutil.rmtree(arguments["checkpoint_dir"])  # another training removes those that it shares
        shutil.copytree(saved_model, out)
        if options:
            (out / "notes.txt").write_text("mine")

    monkeypatch.setattr(SCLDM, "train", train)
    code, printed, err = call("train", cells_file, "-o", out, *options, *small)
    assert (code, printed) == (1, "")
    assert f"This model is in {out}-2" in err
    assert contents(out).keys() == {out / "model.pt", *([out / "notes.txt"] if options else [])}
    assert contents(out)[out / "model.pt"] == (saved_model / "model.pt").read_bytes()
    assert sgd.model.load(f"{out}-2").is_trained
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_restart_removes_no_checkpoints_of_others(call, cells_file, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "last.ckpt").write_text("of another program")
    call("train", cells_file, "-o", tmp_path / "model", "--checkpoint-dir", folder, "--train-size", "2", "--restart")
    assert (folder / "last.ckpt").exists()


def test_checkpoints_do_not_lie_where_the_model_will(call, cells_file, tmp_path):
    out = tmp_path / "model"
    code, _, err = call("train", cells_file, "-o", out, "--checkpoint-dir", out / "checkpoints")
    assert (code, "is or contains" in err) == (2, True)


def test_an_existing_model_is_replaced_whole_and_only_at_the_end(call, cells_file, small, saved_model, tmp_path):
    out = tmp_path / "model"
    shutil.copytree(saved_model, out)
    before = contents(out)
    assert call("train", cells_file, "-o", out, "--overwrite", "--set", "width=0")[0] == 2
    assert contents(out) == before
    code, _, err = call("train", cells_file, "-o", out, "--overwrite", "--save-cells", *small)
    assert code == 0, err
    assert sorted(path.name for path in out.iterdir()) == ["adata.h5ad", "model.pt"]
    assert anndata.read_h5ad(out / "adata.h5ad").n_obs == 96
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_other_options_of_train_reach_their_arguments(call, make_cells, told, tmp_path, monkeypatch):
    monkeypatch.setattr(SCLDM, "save", lambda self, folder, **_: folder.mkdir())
    cells = make_cells()
    cells.obs["drugs"] = np.resize(["A", "A;B", "none"], len(cells))
    cells.obs["genes"] = np.resize(["A", "A+B"], len(cells))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    options = ["--set-condition", "drugs=;", "--seed", "5", "--batch-size", "8", "--compile", "--accelerator", "cpu"]
    options += ["--train-size", "0.5", "--validation-size", "0.25", "--num-nodes", "2", "--strategy", "ddp"]
    options += ["--autoencoder", "learning_rate=1e-4", "--set-condition", "genes"]
    code, _, err = call("train", tmp_path / "cells.h5ad", "-o", tmp_path / "model", *options)
    assert code == 0, err
    assert scvi.settings.seed == 5
    assert told["setup_anndata"]["set_condition_keys"] == {"drugs": ";", "genes": "+"}
    given = {name: told["train"][name] for name in told["train"].keys() - {"checkpoint_dir", "enable_progress_bar"}}
    assert given == {
        "batch_size": 8,
        "compile": True,
        "accelerator": "cpu",
        "train_size": 0.5,
        "validation_size": 0.25,
        "num_nodes": 2,
        "strategy": "ddp",
        "plan_kwargs": {"autoencoder": {"learning_rate": 1e-4}},
    }
