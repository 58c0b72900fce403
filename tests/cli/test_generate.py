"""``generate`` and ``info``: the cells of Python's interface, in a file."""

import json
import re

import anndata
import numpy as np
import pandas as pd
import pytest
from builders import same_cells
from mudata import MuData

import scgen_diffusion as sgd
from scgen_diffusion.diffusion import Guidance
from scgen_diffusion.model import SCLDM


@pytest.fixture
def asked(monkeypatch):
    """Record the request of a model without generating."""
    record = {}

    def generate_to(
        self, path, n_cells=None, condition=None, *, guidance_scale=1.0, library_size=None, seed=None, **options
    ):
        record.update(n_cells=n_cells, condition=condition, guidance_scale=guidance_scale, library_size=library_size)
        record.update(seed=seed, **options)
        path.write_text("")
        return path

    monkeypatch.setattr(SCLDM, "generate_to", generate_to)
    return record


def test_the_file_holds_the_cells_of_generate(call, saved_model, trained, tmp_path):
    out = tmp_path / "new.h5ad"
    options = ["-n", "6", "-c", "cell_type=NK", "-c", "cell_type=B cell", "-c", "dose=10", "-g", "2", "--seed", "3"]
    code, printed, err = call("generate", saved_model, out, *options)
    assert (code, printed) == (0, f"{out}\n"), err
    expected = trained.generate(6, {"cell_type": ["NK", "B cell"], "dose": 10}, guidance_scale=2, seed=3)
    assert same_cells(anndata.read_h5ad(out), expected)
    assert call("generate", saved_model, out, *options)[:2] == (0, f"{out}\n")  # done already
    code, _, err = call("generate", saved_model, out, *options, "--seed", "4")
    assert (code, "give --overwrite" in err) == (2, True)
    assert call("generate", saved_model, out, *options, "--seed", "4", "--overwrite")[0] == 0


def test_the_processes_of_a_job_make_the_cells_of_one(call, saved_model, trained, tmp_path):
    out = tmp_path / "new.zarr"
    ranks = ["-n", "300", "--shard-size", "128", "--n-ranks", "2", "--rank"]
    code, printed, err = call("generate", saved_model, out, *ranks, 0)
    assert (code, printed, out.exists()) == (0, "", False)
    assert "This process is done; other processes are still at work." in err
    assert call("generate", saved_model, out, *ranks, 1)[:2] == (0, f"{out}\n")
    assert same_cells(anndata.read_zarr(out), trained.generate(300, seed=0))


def test_cells_that_are_about_to_be_replaced_are_not_the_result(call, saved_model, tmp_path):
    out = tmp_path / "new.zarr"
    assert call("generate", saved_model, out, "-n", "300", "--shard-size", "128")[0] == 0
    ranks = ["-n", "300", "--shard-size", "128", "--seed", "1", "--overwrite", "--n-ranks", "2", "--rank"]
    code, printed, err = call("generate", saved_model, out, *ranks, 0)
    assert (code, printed, "other processes are still at work" in err) == (0, "", True)
    assert call("generate", saved_model, out, *ranks, 1)[:2] == (0, f"{out}\n")


def test_a_finished_request_is_the_result_although_parts_of_another_lie_beside_it(call, saved_model, tmp_path):
    out = tmp_path / "new.h5ad"
    finished = ["generate", saved_model, out, "-n", "300", "--shard-size", "128"]
    assert call(*finished)[0] == 0
    assert call(*finished, "--seed", "1", "--overwrite", "--n-ranks", "2")[1] == ""  # and never goes on
    assert call(*finished) == (0, f"{out}\n", "")


def test_a_table_gives_every_cell_its_conditions_and_total(call, saved_model, asked, tmp_path):
    table = tmp_path / "table.tsv"
    rows = pd.DataFrame({"cell_type": ["NK", "rare"], "dose": [1, 100], "total": [50, 70]})
    rows.to_csv(table, sep="\t", index=False)
    options = ["--condition-table", table, "--library-size-column", "total"]
    code, _, err = call("generate", saved_model, tmp_path / "new.zarr", *options)
    assert code == 0, err
    assert asked["condition"].to_dict("list") == {"cell_type": ["NK", "rare"], "dose": [1, 100]}
    assert asked["library_size"] == [50, 70]


def test_errors_in_a_table_name_the_table(call, saved_model, tmp_path):
    table = tmp_path / "table.csv"
    pd.DataFrame({"cell_type": ["NK", "TRUE"], "dose": [1.0, 100.0]}).to_csv(table, index=False)
    code, _, err = call("generate", saved_model, tmp_path / "new.zarr", "--condition-table", table)
    assert (code, "--condition-table has the unknown value 'TRUE'" in err) == (2, True), err


def test_a_table_with_the_row_numbers_of_pandas_is_read_without_them(call, saved_model, asked, tmp_path):
    table = tmp_path / "table.csv"
    pd.DataFrame({"cell_type": ["NK", "rare"], "dose": [1.0, 100.0]}).to_csv(table)  # pandas writes so after a gap
    code, _, err = call("generate", saved_model, tmp_path / "new.zarr", "--condition-table", table)
    assert code == 0, err
    assert asked["condition"].to_dict("list") == {"cell_type": ["NK", "rare"], "dose": [1, 100]}
    assert [type(dose) for dose in asked["condition"]["dose"]] == [int, int]  # the classes themselves


def test_options_of_generate_reach_their_arguments(call, saved_model, asked, tmp_path):
    options = [
        "-n",
        "5",
        "-g",
        "cell_type=2",
        "-g",
        "dose=1.5",
        "--library-size",
        "normal",
        "--n-steps",
        "4",
    ]
    options += ["--guidance-interval", "0.1", "0.9", "--sampler", "heun", "--rank", "1", "--n-ranks", "3"]
    options += ["--counts", "--batch-size", "7", "--guidance-rescale", "0.5"]
    code, _, err = call("generate", saved_model, tmp_path / "new.zarr", *options)
    assert code == 0, err
    scale = {"cell_type": 2, "dose": 1.5}
    assert asked["guidance_scale"] == Guidance(scale, interval=(0.1, 0.9), rescale=0.5)
    assert (asked["counts"], asked["batch_size"]) == (True, 7)
    assert (asked["library_size"], asked["sampler"], asked["n_steps"]) == ("normal", "heun", 4)
    assert (asked["seed"], asked["rank"], asked["n_ranks"]) == (0, 1, 3)


def test_values_are_read_as_what_the_key_holds(call, make_trained, make_cells, asked, tmp_path):
    adata = make_cells()
    adata.obs["donor"] = np.resize([1.0, 2.0], adata.n_obs)  # numbers, since a donor was missing
    keys = ["dose", "treated", "donor"]
    make_trained(adata, condition_keys=keys, setup={"continuous_condition_keys": []}).save(tmp_path / "model")
    options = ["-n", "5", "-c", "dose=10", "-c", "treated=True", "--library-size", "500", "-c"]
    for donor in ("donor=2", "donor=2.0"):
        assert call("generate", tmp_path / "model", tmp_path / "new.zarr", *options, donor)[0] == 0
        assert asked["condition"] == {"dose": 10, "treated": True, "donor": 2.0}
        assert asked["library_size"] == 500


def test_arrays_are_read_as_rows_of_numbers(call, make_trained, make_cells, asked, tmp_path):
    adata = make_cells()
    adata.obsm["spatial"] = np.random.default_rng(0).uniform(0, 9, (adata.n_obs, 2))
    make_trained(adata, setup={"continuous_condition_keys": ["spatial"]}).save(tmp_path / "model")
    out, table = tmp_path / "new.zarr", tmp_path / "table.csv"
    table.write_text("spatial_0,spatial_1\n1,2\n3.5,4\n")
    expected = {
        "-c spatial=1,2": [1, 2],
        "-c spatial=1,2 -c spatial=3,4": [[1, 2], [3, 4]],
    }
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
    cells.obs["total"] = np.arange(50, 57)
    (cells.write_zarr if suffix == ".zarr" else cells.write_h5ad)(path)
    code, _, err = call("generate", saved_model, out, "--condition-table", path, "--library-size-column", "total")
    assert code == 0, err
    expected = trained.generate(condition=cells, library_size=cells.obs["total"].to_numpy(), seed=0)
    assert same_cells(anndata.read_h5ad(out), expected)
    code, _, err = call("generate", saved_model, out, "--condition-table", path, "--library-size-column", "totl")
    assert (code, "'totl' is not a column of the table, which has [" in err, "'total'" in err) == (2, True, True)


def test_arrays_of_cells_in_a_file_are_their_conditions(call, make_trained, make_cells, asked, tmp_path):
    adata = make_cells()
    adata.obsm["spatial"] = np.random.default_rng(0).uniform(0, 9, (adata.n_obs, 2))
    make_trained(adata, setup={"continuous_condition_keys": ["spatial"]}).save(tmp_path / "model")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    code, _, err = call(
        "generate", tmp_path / "model", tmp_path / "new.zarr", "--condition-table", tmp_path / "cells.h5ad"
    )
    assert code == 0, err
    spatial = asked["condition"][["spatial_0", "spatial_1"]]
    np.testing.assert_allclose(spatial, adata.obsm["spatial"], rtol=1e-6)


def test_modalities_in_a_file_give_the_conditions_of_their_cells(call, make_cells, saved_model, asked, tmp_path):
    rna = make_cells()
    mdata = MuData({"rna": rna})
    mdata.obs["cell_type"] = rna.obs["cell_type"].to_numpy()
    mdata.write_h5mu(tmp_path / "cells.h5mu")
    code, _, err = call("generate", saved_model, tmp_path / "new.zarr", "--condition-table", tmp_path / "cells.h5mu")
    assert code == 0, err
    assert asked["condition"]["cell_type"].tolist() == rna.obs["cell_type"].tolist()


def test_tables_of_obsm_are_read_from_zarr_too(call, make_trained, make_cells, asked, tmp_path):
    adata = make_cells()
    places = np.random.default_rng(0).uniform(0, 9, (adata.n_obs, 2))
    adata.obsm["place"] = pd.DataFrame(places, index=adata.obs_names, columns=["x", "y"])
    make_trained(adata, setup={"continuous_condition_keys": ["place"]}).save(tmp_path / "model")
    adata.write_zarr(tmp_path / "cells.zarr")
    options = ["--condition-table", tmp_path / "cells.zarr"]
    code, _, err = call("generate", tmp_path / "model", tmp_path / "new.zarr", *options)
    assert code == 0, err
    np.testing.assert_allclose(asked["condition"][["place_x", "place_y"]], places, rtol=1e-6)


def test_cells_without_any_condition_are_refused(call, make_cells, saved_model, tmp_path):
    cells = make_cells()
    cells.obs = cells.obs[[]]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    code, _, err = call("generate", saved_model, tmp_path / "new.zarr", "--condition-table", tmp_path / "cells.h5ad")
    assert (code, "have none of the model's condition keys (obs['cell_type']" in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-n", "5", "-c", "cell_type=NKT"], "unknown value 'NKT' for 'cell_type'. Known, closest first: 'NK'"),
        (["-n", "5", "-c", "type=NK"], "unknown key 'type'. Known, closest first: 'cell_type'"),
        (["-n", "0"], "--n-cells must be a whole number of at least 1"),
        ([], "--n-cells is needed, unless there is a --condition-table with a row per cell."),
        (["-c", "cell_type=NK", "-c", "cell_type=B cell"], "--n-cells is needed"),
        (["-n", "5", "--sampler", "eular"], "--sampler 'eular' is not known. Known, closest first: 'euler'"),
        (["-n", "5", "--accelerator", "foo"], "error: You selected an invalid accelerator name: --accelerator='foo'"),
        (["-n", "5", "-c", "NK"], "'NK' is not of the form KEY=VALUE"),
        (["-n", "5", "-g", "strong"], "'strong' is not a number"),
        (["-n", "5", "--guidance-interval", "0.5", "0"], "error: --guidance-interval must be two times"),
        (["-n", "5", "--library-size-column", "total"], "--library-size-column needs --condition-table"),
        (["--condition-table", "{commas}"], "commas.csv cannot be read as a table: rows have more fields"),
    ],
)
def test_wrong_options_of_generate_are_named(call, saved_model, tmp_path, tmp_path_factory, options, message):
    commas = tmp_path_factory.mktemp("table") / "commas.csv"
    commas.write_text("dose\n0,1\n1,0\n")
    options = [part.format(commas=commas) for part in options]
    code, out, err = call("generate", saved_model, tmp_path / "new.zarr", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_wrong_tables_and_places_are_named(call, saved_model, tmp_path):
    table, out = tmp_path / "table.csv", tmp_path / "new.zarr"
    table.write_text("cell_type\nNK\n")
    code, _, err = call("generate", saved_model, out, "--condition-table", table, "-c", "dose=1")
    assert (code, "--condition and --condition-table exclude each other" in err) == (2, True)
    sizes = ["--library-size", "50", "--library-size-column", "n"]
    code, _, err = call("generate", saved_model, out, "--condition-table", table, *sizes)
    assert (code, "--library-size and --library-size-column exclude each other" in err) == (2, True)
    code, _, err = call("generate", saved_model, out, "--condition-table", table, "--library-size-column", "n")
    assert (code, "'n' is not a column of the table, which has ['cell_type']" in err) == (2, True)
    code, _, err = call("generate", saved_model, out, "--condition-table", table, "--library-size-column", "cell_type")
    assert (code, "--library-size-column 'cell_type' needs a number in every row: 'NK' is not" in err) == (2, True)
    table.write_text("cell_type,typ,plate\nNK,NK,1\n")
    code, _, err = call("generate", saved_model, out, "--condition-table", table)
    assert (code, "--condition-table has the column 'typ', which is no key of the model. Known," in err) == (2, True)
    assert "Rename the column, or remove it." in err
    code, _, err = call("generate", saved_model, tmp_path / "new.csv", "-n", "2")
    assert (code, "the name must end in .zarr or .h5ad or .h5mu" in err) == (2, True)
    code, _, err = call("generate", saved_model, tmp_path / "new.h5mu", "-n", "2")
    assert (code, "a model of one modality writes .zarr or .h5ad" in err) == (2, True)
    (tmp_path / "model.zarr").symlink_to(saved_model)
    code, _, err = call("generate", saved_model, tmp_path / "model.zarr", "-n", "2", "--overwrite")
    assert (code, f"is or contains {saved_model}" in err) == (2, True)
    code, _, err = call("generate", tmp_path, out, "-n", "2")
    assert (code, "There is no saved model at" in err) == (2, True)
    code, _, err = call("generate", saved_model / "model.pt", out, "-n", "2")
    assert (code, f"model.pt is a file; give the folder {saved_model}." in err) == (2, True)


def test_a_pretrained_model_is_called_by_its_name(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("generate", "pbmc3k", "cells.h5ad", "-n", "5", "-c", "cell_type=B")
    assert code == 0, err
    assert anndata.read_h5ad("cells.h5ad").obs["cell_type"].tolist() == ["B"] * 5
    assert call("info", "kang_ifnb")[1].startswith("SCLDM trained on ")
    code, _, err = call("generate", "pbmc3", "cells.zarr", "-n", "5")
    assert (code, "no pretrained model has this name. Known, closest first: 'pbmc3k', " in err) == (2, True)


def test_info_lists_what_a_model_can_generate(call, saved_model):
    code, out, err = call("info", saved_model)
    assert (code, err) == (0, "")
    assert out.startswith("SCLDM trained on 96 cells (cells not in memory)")
    assert "values of cell_type: B cell, T cell, NK, rare\n" in out
    assert "values of cell_type without training cells: never seen\n" in out
    assert "model.generate" not in out
    assert out.endswith(
        "next: run the same `scgen-diffusion train` command with --overwrite, without --max-epochs\n"
    )  # 2 epochs
    described = json.loads(call("info", saved_model, "--json")[1])
    assert described["conditions"]["dose"] == {"kind": "categorical", "values": [1, 10, 100]}
    assert described["architecture"]["prior_width"] == 8
    assert described["recipes"]["prior"]["drop_probability"] == 0.1
    assert "seed" in described["recipes"]["prior"]
    assert f"train loss {described['final_losses']['prior_loss_train']:.4g}" in out


def test_info_does_not_say_that_the_control_of_a_set_has_no_cells(call, make_cells, tiny, quick, tmp_path):
    cells = make_cells()
    cells.obs["genes"] = np.resize(["x", "x+y", "ctrl"], len(cells))
    cells.uns["vectors"] = pd.DataFrame(np.eye(4, 3), index=["x", "y", "ctrl", "z"])
    options = {"control_values": {"genes": "ctrl"}, "condition_embeddings": {"genes": "vectors"}}
    SCLDM.setup_anndata(cells, set_condition_keys=["genes"], **options)
    model = SCLDM(cells, **tiny)
    model.train(1, **quick)
    model.save(tmp_path / "model")
    _, out, _ = call("info", tmp_path / "model")
    assert "values of genes: x, y\n" in out
    assert "values of genes without training cells: z\n" in out


def test_info_shows_architecture_training_and_how_to_predict_a_perturbation(call):
    out = call("info", "kang_ifnb")[1]
    assert "condition (2 classes; control: 'control')" in out
    assert "weights; n_latent_tokens=4, n_latent=8, width=16, " in out
    assert "training: autoencoder 117 epochs (train loss 1354, validation loss 1383, seed 0); prior 389 epochs" in out
    assert "(train loss 1.324, validation loss 1.257, seed 0); transport" in out  # of the velocity, as `train` says
    assert out.endswith(
        "or: scgen-diffusion predict kang_ifnb control.h5ad predicted.h5ad --where condition=control "
        "--condition condition=stimulated\n"
    )
    assert json.loads(call("info", "kang_ifnb", "--json")[1])["conditions"]["condition"]["control"] == "control"
    assert "generate pbmc10k_citeseq cells.h5mu --n-cells 1000" in call("info", "pbmc10k_citeseq")[1]


def test_info_shows_how_the_transport_was_trained(call, make_trained, tmp_path):
    model = make_trained()
    model.adata.obs["donor"] = "d1"
    quick = {"accelerator": "cpu", "enable_progress_bar": False}
    model.train_transport(1, control_values={"dose": 1}, match_keys=["donor"], **quick)
    model.cut_short_ = {}
    model.save(tmp_path / "model")

    out = call("info", tmp_path / "model")[1]

    assert f"next: scgen-diffusion generate {tmp_path / 'model'} cells.h5ad --n-cells 1000\n" in out
    assert re.search(r"transport 1 epochs \(train loss [^;]*pairs within donor\)", out)
    assert out.endswith("--where dose=1 --condition dose=10\n")


def test_the_current_folder_is_named_if_it_holds_no_model(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("info", ".")
    assert (code, f"There is no saved model at {tmp_path}: model.pt is missing." in err) == (2, True)


def test_a_model_of_any_class_is_loaded(saved_model, trained_gene_space, tmp_path):
    trained_gene_space.save(tmp_path / "model")
    assert type(sgd.model.load(tmp_path / "model")) is type(trained_gene_space)
    assert type(sgd.model.load(saved_model, adata=False)) is SCLDM


def test_a_model_of_an_unknown_class_is_refused(make_model, tmp_path, monkeypatch):
    make_model().save(tmp_path / "model")
    monkeypatch.delitem(sgd.model._loading.MODELS, "SCLDM")
    with pytest.raises(
        ValueError, match="holds a model of the unknown class 'SCLDM'. Known, closest first: 'MULTISCLDM'"
    ):
        sgd.model.load(tmp_path / "model")


def test_the_model_is_loaded_onto_the_requested_device(call, saved_model, trained, asked, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(sgd.model, "load", lambda *_, **how: given.update(how) or trained)
    options = ["-n", "2", "--accelerator", "gpu", "--device", "1"]
    assert call("generate", saved_model, tmp_path / "new.zarr", *options)[0] == 0
    assert given == {"adata": False, "accelerator": "gpu", "device": 1}


def test_a_condition_can_be_the_column_of_totals_as_well(call, saved_model, asked, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("cell_type,dose\nNK,10\nNK,100\n")
    options = ["--condition-table", table, "--library-size-column", "dose"]
    assert call("generate", saved_model, tmp_path / "new.zarr", *options)[0] == 0
    assert (list(asked["condition"]), asked["library_size"]) == (["cell_type", "dose"], [10, 100])
