"""``generate`` and ``info``: the cells of Python's interface, in a file."""

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from builders import same_cells
from mudata import MuData

from scgen_diffusion.model import SCLDM


@pytest.fixture
def asked(monkeypatch):
    """Record the request of a model without generating."""
    record = {}
    monkeypatch.setattr(SCLDM, "generate_to", lambda self, path, **options: record.update(options))
    return record


def test_the_file_holds_the_cells_of_generate(call, refused, saved_model, trained, tmp_path):
    out = tmp_path / "new.h5ad"
    options = ["-n", "6", "-c", "cell_type=NK", "-c", "cell_type=B cell", "-c", "dose=10", "-g", "2"]
    command = ["generate", saved_model, out, *options, "--seed"]
    code, printed, err = call(*command, "3")
    assert (code, printed) == (0, f"{out}\n"), err
    expected = trained.generate(6, {"cell_type": ["NK", "B cell"], "dose": 10}, guidance_scale=2, seed=3)
    assert same_cells(anndata.read_h5ad(out), expected)
    assert call(*command, "3")[:2] == (0, f"{out}\n")  # done already
    refused("overwrite", *command, "4")
    assert call(*command, "4", "--overwrite")[0] == 0


def test_several_modalities_are_read_from_and_written_to_h5mu(call, refused, make_cells, small, tmp_path):
    rna, protein = make_cells(), make_cells(n_genes=5, seed=1)
    protein.var_names = [f"protein_{g}" for g in range(5)]
    protein.obs = protein.obs[[]]
    protein.X = (protein.X > 0).astype(np.float32)
    rna.layers["raw"] = rna.X.copy()
    mdata = MuData({"rna": rna, "prot": protein})
    mdata.obs["cell_type"] = rna.obs["cell_type"].astype(str).to_numpy()
    path, out, cells = tmp_path / "cells.h5mu", tmp_path / "model", tmp_path / "new.h5mu"
    mdata.write_h5mu(path)
    options = ["-c", "cell_type", "--modality", "rna", "--modality", "prot=bernoulli", "--layer", "rna=raw"]
    code, _, err = call("train", path, *options, "-o", out, *small)
    assert code == 0, err
    assert "prot (5, bernoulli)" in call("info", out)[1]
    assert call("generate", out, cells, "-n", "4", "--n-steps", "1")[:2] == (0, f"{cells}\n")
    refused("--overwrite", "generate", out, cells, "-n", "4")
    assert call("generate", out, cells, "-n", "3", "--n-steps", "1", "--overwrite")[0] == 0
    assert mudata.read_h5mu(cells).n_obs == 3
    refused(".h5mu", "generate", out, tmp_path / "new.zarr", "-n", "4")
    some = ["--where", "cell_type=T cell", "-c", "cell_type=NK", "--n-steps", "1"]
    code, _, err = call("predict", out, path, tmp_path / "some.h5mu", *some)
    assert code == 0, err
    found = mudata.read_h5mu(tmp_path / "some.h5mu")
    assert found.n_obs == (mdata.obs["cell_type"] == "T cell").sum()
    assert set(found.obs["cell_type"]) == {"NK"}


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("index", [False, True], ids=["rows", "numbered rows"])
def test_a_table_gives_every_cell_its_conditions(call, saved_model, asked, tmp_path, suffix, index):
    table = tmp_path / f"table{suffix}"
    rows = pd.DataFrame({"cell_type": ["NK", "rare"], "dose": [1.0, 100.0]})  # floats, as after a gap
    rows.to_csv(table, sep={".csv": ",", ".tsv": "\t"}[suffix], index=index)
    code, _, err = call("generate", saved_model, tmp_path / "new.zarr", "--condition-table", table)
    assert code == 0, err
    assert asked["condition"].to_dict("list") == {"cell_type": ["NK", "rare"], "dose": [1, 100]}
    assert [type(dose) for dose in asked["condition"]["dose"]] == [int, int]  # the classes themselves


def test_options_of_generate_reach_their_arguments(call, saved_model, asked, tmp_path):
    line = """-n 5 -g cell_type=2 -g dose=1.5 --library-size 300 --n-steps 4 --sampler euler --counts --batch-size 7
        --shard-size 64 --quiet"""
    code, out, err = call("generate", saved_model, tmp_path / "new.zarr", *line.split())
    assert (code, out, err) == (0, f"{tmp_path / 'new.zarr'}\n", "")
    assert asked == {
        "n_cells": 5,
        "guidance_scale": {"cell_type": 2, "dose": 1.5},
        "library_size": 300,
        "n_steps": 4,
        "sampler": "euler",
        "counts": True,
        "batch_size": 7,
        "shard_size": 64,
        "seed": 0,
    }


def test_values_are_read_as_what_the_key_holds(call, make_trained, make_cells, asked, tmp_path):
    adata = make_cells()
    adata.obs["donor"] = np.resize([1.0, 2.0], adata.n_obs)  # numbers, since a donor was missing
    keys = ["dose", "treated", "donor"]
    make_trained(adata, condition_keys=keys, setup={"continuous_condition_keys": []}).save(tmp_path / "model")
    options = ["-n", "5", "-c", "dose=10", "-c", "treated=True", "-c"]
    for donor in ("donor=2", "donor=2.0"):
        assert call("generate", tmp_path / "model", tmp_path / "new.zarr", *options, donor)[0] == 0
        assert asked["condition"] == {"dose": 10, "treated": True, "donor": 2.0}


def test_arrays_are_read_as_rows_of_numbers(call, make_trained, make_cells, asked, tmp_path):
    adata = make_cells()
    adata.obsm["spatial"] = np.random.default_rng(0).uniform(0, 9, (adata.n_obs, 2))
    make_trained(adata, setup={"continuous_condition_keys": ["spatial"]}).save(tmp_path / "model")
    out, table = tmp_path / "new.zarr", tmp_path / "table.csv"
    table.write_text("spatial_0,spatial_1\n1,2\n3.5,4\n")
    expected = {"-c spatial=1,2": [1, 2], "-c spatial=1,2 -c spatial=3,4": [[1, 2], [3, 4]]}
    for options, value in expected.items():
        code, _, err = call("generate", tmp_path / "model", out, "-n", "5", *options.split())
        assert code == 0, err
        assert asked["condition"] == {"spatial": value}
    assert call("generate", tmp_path / "model", out, "--condition-table", table)[0] == 0
    assert asked["condition"].to_numpy().tolist() == [[1, 2], [3.5, 4]]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_cells_in_a_file_give_as_many_cells_of_their_conditions(
    call, make_cells, saved_model, trained, tmp_path, suffix
):
    cells, path, out = make_cells()[:7].copy(), tmp_path / f"cells{suffix}", tmp_path / "new.h5ad"
    (cells.write_zarr if suffix == ".zarr" else cells.write_h5ad)(path)
    code, _, err = call("generate", saved_model, out, "--condition-table", path)
    assert code == 0, err
    assert same_cells(anndata.read_h5ad(out), trained.generate(condition=cells, seed=0))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("-n 5 -c cell_type=NKT", "'NKT'"),
        ("-n 5 -c type=NK", "'type'"),
        ("-n 0", "n_cells"),
        ("", "n_cells"),
        ("-n 5 --sampler eular", "sampler"),
        ("-n 5 --accelerator foo", "foo"),
        ("-n 5 -c NK", "KEY=VALUE"),
        ("-n 5 -c =NK", "KEY=VALUE"),
        ("-n 5 -c cell_type=a=b", "'a=b'"),
        ("-n 5 -g dose=2 -g 3", "different keys"),
        ("-n 5 -g strong", "guidance_scale"),
        ("--condition-table {folder}/commas.csv", "'0'"),
        ("--condition-table {folder}/types.csv", "'TRUE'"),
        ("--condition-table {folder}/keys.csv", "'typ'"),
        ("--condition-table {folder}/types.csv -c dose=1", "--condition-table"),
        ("--condition-table {folder}/cells.h5ad", "cell_type"),
    ],
)
def test_wrong_options_of_generate_are_named(refused, make_cells, saved_model, tmp_path, options, word):
    (tmp_path / "commas.csv").write_text("dose\n0,1\n1,0\n")
    (tmp_path / "types.csv").write_text("cell_type\nNK\nTRUE\n")
    (tmp_path / "keys.csv").write_text("cell_type,typ\nNK,NK\n")
    cells = make_cells()
    anndata.AnnData(cells.X, var=cells.var).write_h5ad(tmp_path / "cells.h5ad")
    before = sorted(tmp_path.iterdir())
    refused(word, "generate", saved_model, tmp_path / "new.zarr", *options.format(folder=tmp_path).split())
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_models_and_places_are_named(refused, saved_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(".zarr", "generate", saved_model, "new.csv", "-n", "2")
    refused("There is no folder", "generate", saved_model, "none/new.zarr", "-n", "2")
    refused(".h5mu", "generate", saved_model, "new.h5mu", "-n", "2")
    refused("There is no saved model", "generate", tmp_path, "new.zarr", "-n", "2")
    refused("There is no saved model", "generate", saved_model / "model.pt", "new.zarr", "-n", "2")
    refused("'pbmc3k'", "generate", "pbmc3", "new.zarr", "-n", "2")
    refused("model.pt is missing", "info", ".")
    (tmp_path / "model.zarr").symlink_to(saved_model)
    refused("model.zarr", "generate", saved_model, "model.zarr", "-n", "2", "--overwrite")
    assert (saved_model / "model.pt").exists()


def test_a_pretrained_model_is_called_by_its_name(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("generate", "pbmc3k", "cells.h5ad", "-n", "5", "-c", "cell_type=B")
    assert code == 0, err
    assert anndata.read_h5ad("cells.h5ad").obs["cell_type"].tolist() == ["B"] * 5


def test_info_tells_what_a_model_is(call, saved_model):
    code, out, err = call("info", saved_model)
    assert (code, err) == (0, "")
    assert out.startswith("SCLDM of 96 cells")
    assert "values of cell_type: B cell, T cell, NK, rare" in out
