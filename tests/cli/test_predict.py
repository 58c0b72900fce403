"""``predict``: the cells of ``predict_perturbation``, in a file."""

from types import SimpleNamespace

import anndata
import click
import numpy as np
import pandas as pd
import pytest

from scgen_diffusion.cli._predict import _check_request, _rows
from scgen_diffusion.model import SCLDM

QUICK = {"accelerator": "cpu", "enable_progress_bar": False}
ASKED = ["--where", "dose=1", "-c", "dose=10"]


@pytest.fixture(scope="module")
def cells(make_cells):
    """Build cells of which those of the lowest dose are unperturbed."""
    return make_cells(240)


@pytest.fixture(scope="module")
def model(make_trained, cells):
    model = make_trained(cells.copy(), max_epochs=2)
    model.train_transport(2, control_values={"dose": 1}, **QUICK)
    return model


@pytest.fixture(scope="module")
def folder(model, cells, tmp_path_factory):
    """Save the model, and its cells in one file and in two."""
    folder = tmp_path_factory.mktemp("files")
    model.save(folder / "model")
    cells.write_h5ad(folder / "cells.h5ad")
    cells[:100].write_h5ad(folder / "first.h5ad")
    cells[100:].write_h5ad(folder / "second.h5ad")
    return folder


@pytest.fixture(scope="module")
def expected(model, cells):
    rows = np.flatnonzero(cells.obs["dose"] == 1)
    return model.predict_perturbation(cells.copy(), {"dose": 10}, indices=rows, seed=3)


def test_the_file_holds_the_cells_of_predict_perturbation(call, folder, expected, tmp_path):
    out = tmp_path / "new.h5ad"
    command = ["predict", folder / "model", folder / "cells.h5ad", out, *ASKED, "--seed"]
    code, printed, err = call(*command, "3")
    assert (code, printed) == (0, f"{out}\n"), err
    found = anndata.read_h5ad(out)
    assert (found.X != expected.X).nnz == 0
    assert found.obs.equals(expected.obs)
    found, wanted = (cells.uns["scgen_diffusion"]["mean_change"].reset_index(drop=True) for cells in (found, expected))
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False, check_categorical=False)
    time = out.stat().st_mtime_ns
    assert call(*command, "3")[0] == 0  # it is finished
    assert out.stat().st_mtime_ns == time
    code, _, err = call(*command, "4")
    assert (code, f"{out} already exists" in err, "give --overwrite" in err) == (2, True, True)


@pytest.mark.parametrize("files", [["cells.h5ad", "--backed"], ["first.h5ad", "second.h5ad"]])
def test_cells_may_stay_in_their_files(call, folder, expected, tmp_path, files):
    paths = [folder / name if name.endswith("h5ad") else name for name in files]
    out = tmp_path / "new.zarr"
    code, _, err = call("predict", folder / "model", *paths, out, *ASKED, "--seed", "3")
    assert code == 0, err
    assert (anndata.read_zarr(out).X != expected.X).nnz == 0


def test_genes_may_come_in_another_order(call, folder, cells, expected, tmp_path):
    cells[:, ::-1].write_h5ad(tmp_path / "turned.h5ad")
    out = tmp_path / "new.h5ad"
    code, _, err = call("predict", folder / "model", tmp_path / "turned.h5ad", out, *ASKED, "--seed", "3")
    assert code == 0, err
    assert (anndata.read_h5ad(out).X != expected.X).nnz == 0


def test_of_more_genes_those_of_the_model_are_taken_and_counts_from_a_layer(call, folder, cells, expected, tmp_path):
    more = anndata.concat([cells, cells[:, :3].copy()], axis=1, merge="first", index_unique="-")
    more.var_names = [*cells.var_names, "a", "b", "c"]
    more = more[:, more.var_names[::-1]].copy()
    more.layers["raw"] = more.X.copy()
    more.X = np.log1p(more.X)
    more.write_h5ad(tmp_path / "more.h5ad")
    out = tmp_path / "new.h5ad"
    code, _, err = call("predict", folder / "model", tmp_path / "more.h5ad", out, *ASKED, "--seed", "3", "-l", "raw")
    assert code == 0, err
    assert (anndata.read_h5ad(out).X != expected.X).nnz == 0
    code, _, err = call("predict", folder / "model", tmp_path / "more.h5ad", out, *ASKED, "-l", "row")
    assert (code, "there is no layer 'row'. Known, closest first: 'raw'" in err) == (2, True)
    assert "None" not in err  # the name of X among the layers, since anndata 0.13
    code, _, err = call("predict", folder / "model", tmp_path / "more.h5ad", out, *ASKED, "-l", "raw", "--backed")
    assert (code, "--layer needs cells in memory" in err) == (2, True)


@pytest.fixture
def asked(monkeypatch):
    """Record the request without predicting."""
    record = {}

    def predict(self, path, adata_control=None, condition=None, **options):
        record.update(cells=adata_control, condition=condition, **options)
        return path

    monkeypatch.setattr(SCLDM, "predict_perturbation_to", predict)
    return record


def test_options_of_predict_reach_their_arguments(call, folder, asked, cells, tmp_path):
    options = ["-c", "dose=10", "-w", "cell_type=NK", "-w", "cell_type=T cell", "-w", "dose=1"]
    options += ["--method", "inversion", "--residuals", "new", "--strength", "0.5", "--expected", "-g", "2"]
    options += ["--n-steps", "4", "--sampler", "heun", "--library-size", "500", "--quiet"]
    options += ["--counts", "--batch-size", "7", "--shard-size", "64"]
    code, _, err = call("predict", folder / "model", folder / "cells.h5ad", tmp_path / "new.zarr", *options)
    assert code == 0, err
    is_chosen = cells.obs["cell_type"].isin(["NK", "T cell"]) & (cells.obs["dose"] == 1)
    np.testing.assert_array_equal(asked.pop("indices"), np.flatnonzero(is_chosen))
    assert asked.pop("cells").obs_names.equals(cells.obs_names)
    assert asked.pop("guidance_scale").scale == 2
    assert asked == {
        "condition": {"dose": 10},
        "method": "inversion",
        "residuals": "new",
        "strength": 0.5,
        "sample": False,
        "n_steps": 4,
        "sampler": "heun",
        "library_size": 500,
        "seed": 0,
        "show_progress": False,
        "counts": True,
        "batch_size": 7,
        "shard_size": 64,
    }


@pytest.mark.parametrize("options", [[], ["--backed"]])
def test_of_the_other_cells_no_label_is_needed(call, folder, cells, expected, tmp_path, options):
    others = np.flatnonzero(cells.obs["dose"] == 100)[:2]
    bad = cells.copy()
    bad.obs.loc[bad.obs_names[others[0]], "cell_type"] = np.nan
    bad.obs.loc[bad.obs_names[others[1]], "dose"] = 7  # which the model does not know
    bad.write_h5ad(tmp_path / "bad.h5ad")
    out = tmp_path / "new.h5ad"
    code, _, err = call("predict", folder / "model", tmp_path / "bad.h5ad", out, *ASKED, "--seed", "3", *options)
    assert code == 0, err
    found = anndata.read_h5ad(out)
    assert (found.X != expected.X).nnz == 0
    assert found.obs["cell_type"].tolist() == expected.obs["cell_type"].tolist()
    assert len(found.obs.columns) == (len(expected.obs.columns) if not options else 4)  # of files, conditions only
    asked = ["--where", "dose=100", "-c", "dose=10", *options]  # these two among others
    code, _, err = call("predict", folder / "model", tmp_path / "bad.h5ad", tmp_path / "other.h5ad", *asked)
    n_cells = (cells.obs["dose"] == 100).sum() - 1  # one has another dose now
    assert (code, f"has no label for 1 of {n_cells} cells" in err, "indices" in err) == (2, True, False)


def test_cells_are_chosen_in_files_by_columns_with_gaps(call, folder, cells, asked, tmp_path):
    gappy = cells.copy()
    gappy.obs["plate"] = pd.Categorical(np.where(np.arange(240) < 3, None, "a"))
    gappy.write_h5ad(tmp_path / "gappy.h5ad")
    for options in ([], ["--backed"]):
        command = [folder / "model", tmp_path / "gappy.h5ad", tmp_path / "new.zarr", "-w", "plate=a", "-c", "dose=10"]
        code, _, err = call("predict", *command, *options)
        assert code == 0, err
        np.testing.assert_array_equal(asked["indices"], np.arange(3, 240))
        code, _, err = call("predict", *command[:-4], "-w", "plate=nan", "-c", "dose=10", *options)
        assert (code, "no cell has 'nan' in 'plate'" in err) == (2, True)
    code, _, err = call("predict", *command[:-4], "-w", "plait=a", "-c", "dose=10", "--backed")
    assert (code, "The --where key 'plait' is not a column of obs in gappy.h5ad. Known, closest" in err) == (2, True)


def test_how_far_predictions_can_be_trusted_is_said(call, folder, model, tmp_path):
    code, _, err = call("predict", folder / "model", folder / "cells.h5ad", tmp_path / "new.zarr", *ASKED)
    assert code == 0
    verdict = anndata.read_zarr(tmp_path / "new.zarr").uns["scgen_diffusion"]["verdict"]
    found = "Supported: " if (verdict["verdict"] == "supported").all() else "warning: The effect on "
    assert found in err
    parts = verdict["reason"].str.partition("; but ")
    assert set(parts[2]) == {"the training of the autoencoder was far too short"}
    assert all(reason in err for reason in parts[0])


def test_each_reason_to_trust_a_prediction_is_said_with_its_combinations(call, folder, monkeypatch, tmp_path):
    found = {"combination": ["a", "b", "c"], "n_cells": 1, "verdict": "supported", "reason": ["seen", "like", "seen"]}
    monkeypatch.setattr("scgen_diffusion.model._counterfactual.verdict_table", lambda *_: pd.DataFrame(found))
    code, _, err = call("predict", folder / "model", folder / "cells.h5ad", tmp_path / "new.zarr", *ASKED)
    assert (code, err.splitlines()[-2:]) == (0, ["Supported: seen: (a), (c)", "Supported: like: (b)"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-c", "dose=10", "-w", "type=NK"], "obs has no column 'type'. Known, closest first: 'cell_type'"),
        (["-c", "dose=10", "-w", "cell_type=NKT"], "no cell has 'NKT' in 'cell_type'. Known, closest first: 'NK'"),
        (["-c", "dose=10", "-w", "dose=2"], "no cell has '2' in 'dose'. Known, closest first: '10', '1', '100'"),
        ([], "Nothing is predicted without a new condition: give --condition KEY=VALUE or --condition-table"),
        (["-c", "dose=2"], "unknown value '2' for 'dose'"),
        (["-c", "dose=10", "--strength", "2"], "--strength must be a number from 0.0001 to 1"),
        (["-c", "dose=10", "-c", "dose=100"], "has 'dose' more than once"),
        (["-c", "dose=10", "--strength"], "scgen-diffusion predict: error: Option '--strength' requires an argument"),
    ],
)
def test_wrong_options_of_predict_are_named(call, folder, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call("predict", folder / "model", folder / "cells.h5ad", tmp_path / "new.zarr", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_column_with_an_equals_sign_is_to_be_renamed(call, folder, cells, tmp_path):
    odd = cells.copy()
    odd.obs["a=b"] = "x"
    odd.write_h5ad(tmp_path / "odd.h5ad")
    command = ["predict", folder / "model", tmp_path / "odd.h5ad", tmp_path / "new.zarr", "-c", "dose=10"]
    for backed in ([], ["--backed"]):
        code, _, err = call(*command, "-w", "a=b=x", *backed)
        assert (code, "key ends at the first '='; rename a column that has one." in err) == (2, True)


def test_cells_are_chosen_by_classes_that_are_numbers(call, folder, tmp_path):
    cells = anndata.read_h5ad(folder / "cells.h5ad")
    cells.obs["dose"] = pd.Categorical(cells.obs["dose"].astype(float))
    cells.write_h5ad(tmp_path / "classes.h5ad")
    out = tmp_path / "new.h5ad"
    code, _, err = call("predict", folder / "model", tmp_path / "classes.h5ad", out, *ASKED, "--n-steps", "1")
    assert code == 0, err
    assert len(anndata.read_h5ad(out)) == (cells.obs["dose"] == 1).sum()


def test_values_that_no_cell_has_together_are_named(call, folder, tmp_path):
    options = ["-c", "dose=10", "-w", "cell_type=rare", "-w", "dose=100"]
    cells = anndata.read_h5ad(folder / "cells.h5ad")
    cells[~((cells.obs["cell_type"] == "rare") & (cells.obs["dose"] == 100))].write_h5ad(tmp_path / "some.h5ad")
    code, _, err = call("predict", folder / "model", tmp_path / "some.h5ad", tmp_path / "new.zarr", *options)
    assert (code, "no cell has all of" in err) == (2, True)


def test_the_transport_is_refused_without_one_before_any_work(call, saved_model, folder, tmp_path):
    command = ["predict", saved_model, folder / "cells.h5ad", tmp_path / "new.zarr", "-c", "dose=10"]
    code, out, err = call(*command, "--method", "transport")
    assert (code, out, "Reading" in err) == (2, "", False)
    assert "--method transport: the model has none" in err


def test_a_file_of_conditions_in_another_order_of_cells_is_refused(call, folder, cells, tmp_path):
    some = cells[cells.obs["dose"] == 1]
    some.write_h5ad(tmp_path / "control.h5ad")
    asked = some[::-1].copy()
    asked.obs["dose"] = 10
    asked.write_h5ad(tmp_path / "asked.h5ad")
    options = [folder / "model", tmp_path / "control.h5ad", tmp_path / "new.h5ad", "--condition-table"]

    code, _, err = call("predict", *options, tmp_path / "asked.h5ad")

    assert (code, "are the cells in another order" in err) == (2, True)


@pytest.mark.parametrize("dtype", ["float32", "category"])
def test_cells_are_chosen_by_numbers_of_single_precision(dtype):
    obs = pd.DataFrame({"dose": pd.Series([0.1, 1, 10, 0.1], dtype="float32").astype(dtype)})
    np.testing.assert_array_equal(_rows(obs, {"dose": ["0.1", "1"]}), [0, 1, 3])


@pytest.mark.parametrize("dtype", [object, "category"])
def test_text_is_taken_as_it_is_written(dtype):
    obs = pd.DataFrame({"batch": pd.Series(["1", "2", "01"]).astype(dtype)})
    np.testing.assert_array_equal(_rows(obs, {"batch": "01"}), [2])
    with pytest.raises(click.UsageError, match=r"no cell has '1\.0' in 'batch'"):
        _rows(obs, {"batch": "1.0"})


def test_cells_are_chosen_by_whole_numbers_with_gaps():
    obs = pd.DataFrame({"dose": pd.array([1, None, 2], dtype="Int64")})
    np.testing.assert_array_equal(_rows(obs, {"dose": ["2"]}), [2])


def test_cells_are_chosen_by_numbers_that_are_whole_in_one_file_only(call, make_trained, cells, asked, tmp_path):
    setup = {"continuous_condition_keys": ["dose"]}
    make_trained(cells.copy(), condition_keys=["cell_type"], setup=setup).save(tmp_path / "model")
    cells[:100].write_h5ad(tmp_path / "whole.h5ad")
    decimal = cells[100:].copy()
    decimal.obs["dose"] = decimal.obs["dose"].astype(float)
    decimal.write_h5ad(tmp_path / "decimal.h5ad")
    files = [tmp_path / name for name in ("whole.h5ad", "decimal.h5ad", "new.zarr")]

    code, _, err = call("predict", tmp_path / "model", *files, *ASKED)

    assert code == 0, err
    np.testing.assert_array_equal(asked["indices"], np.flatnonzero(cells.obs["dose"] == 1))


def test_expected_counts_are_those_of_models_with_latents():
    model = SimpleNamespace(modalities={}, trained_stages_=())

    with pytest.raises(click.UsageError, match="--expected is for SCLDM and MULTISCLDM; the"):
        _check_request(model, {"condition": {"dose": 1}, "expected": True})
