"""``predict``: the cells of ``predict_perturbation``, in a file."""

import anndata
import numpy as np
import pandas as pd
import pytest

from scgen_diffusion.cli._predict import _rows
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
    out, table = tmp_path / "new.h5ad", tmp_path / "changes.csv"
    options = [*ASKED, "--seed", "3", "--changes", table]
    code, printed, err = call("predict", folder / "model", folder / "cells.h5ad", out, *options)
    assert (code, printed) == (0, f"{out}\n{table}\n"), err
    found = anndata.read_h5ad(out)
    assert (found.X != expected.X).nnz == 0
    assert found.obs.equals(expected.obs)
    changes = expected.uns["scgen_diffusion"]["mean_change"].reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.read_csv(table), changes, check_dtype=False, check_categorical=False, rtol=1e-6)
    code, _, err = call("predict", folder / "model", folder / "cells.h5ad", out, *options, "--seed", "4")
    assert (code, f"{out} already exists" in err) == (2, True)
    code, _, err = call("predict", folder / "model", folder / "cells.h5ad", out, *ASKED, "--seed", "4")
    assert (code, "give --overwrite" in err) == (2, True)


def test_a_finished_command_succeeds_again_and_never_replaces_another_table(call, folder, tmp_path):
    out, table = tmp_path / "new.h5ad", tmp_path / "changes.csv"
    command = ["predict", folder / "model", folder / "cells.h5ad", out, *ASKED, "--changes", table]
    table.write_text("of a user")
    code, _, err = call(*command)
    assert (code, f"{table} already exists" in err, out.exists()) == (2, True, False)  # before any work
    table.unlink()
    assert call(*command)[0] == 0
    times = [path.stat().st_mtime_ns for path in (out, table)]
    code, printed, err = call(*command)
    assert (code, printed) == (0, f"{out}\n{table}\n"), err
    assert [path.stat().st_mtime_ns for path in (out, table)] == times
    content = table.read_bytes()
    table.write_text("of a user")
    code, _, err = call(*command)
    assert (code, f"{table} already exists and holds something else" in err) == (2, True)
    assert table.read_text() == "of a user"
    assert call(*command, "--overwrite")[0] == 0
    assert table.read_bytes() == content


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
    code, _, err = call("predict", *command[:-4], "-w", "plait=a", "-c", "dose=10", "--backed")
    assert (code, "The --where key 'plait' is not a column of obs in gappy.h5ad. Known, closest" in err) == (2, True)


def test_how_far_predictions_can_be_trusted_is_said(call, folder, model, tmp_path):
    code, _, err = call("predict", folder / "model", folder / "cells.h5ad", tmp_path / "new.zarr", *ASKED)
    assert code == 0
    verdict = anndata.read_zarr(tmp_path / "new.zarr").uns["scgen_diffusion"]["verdict"]
    found = "Supported: " if (verdict["verdict"] == "supported").all() else "warning: The effect on "
    assert found in err
    reason, _, short = verdict["reason"].iloc[0].partition("; but ")
    assert (reason in err, short) == (True, "the training of the autoencoder was far too short")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-c", "dose=10", "-w", "type=NK"], "obs has no column 'type'. Known, closest first: 'cell_type'"),
        (["-c", "dose=10", "-w", "cell_type=NKT"], "no cell has 'NKT' in 'cell_type'. Known, closest first: 'NK'"),
        (["-c", "dose=10", "-w", "dose=2"], "no cell has 2 in 'dose'. Known, closest first: 10, 1, 100"),
        ([], "Nothing is predicted without a new condition: give --condition KEY=VALUE or --condition-table"),
        (
            ["-c", "dose=10", "--changes", "table.csv", "--expected"],
            "no mean changes (--changes): --expected draws no cells.",
        ),
        (["-c", "dose=10", "--changes", "table.csv", "--strength", "0.5"], "(--changes): --strength is not 1."),
        (
            ["-c", "dose=10", "--changes", "table.csv", "--method", "inversion"],
            "(--changes): --method inversion does not use",
        ),
        (["-c", "dose=2"], "unknown value '2' for 'dose'"),
        (["-c", "dose=10", "--strength", "2"], "`strength` must be a number above 0 and at most 1"),
        (["-c", "dose=10", "-c", "dose=100"], "has 'dose' more than once"),
        (["-c", "dose=10", "--changes", "table.txt"], "the name must end in .csv"),
    ],
)
def test_wrong_options_of_predict_are_named(call, folder, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call("predict", folder / "model", folder / "cells.h5ad", tmp_path / "new.zarr", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_column_with_an_equals_sign_can_be_named_in_a_configuration_only(call, folder, cells, asked, tmp_path):
    odd = cells.copy()
    odd.obs["a=b"] = "x"
    odd.write_h5ad(tmp_path / "odd.h5ad")
    command = ["predict", folder / "model", tmp_path / "odd.h5ad", tmp_path / "new.zarr", "-c", "dose=10"]
    for backed in ([], ["--backed"]):
        code, _, err = call(*command, "-w", "a=b=x", *backed)
        assert (code, "key ends at the first '='; give a key that has one in a file (--config)." in err) == (2, True)
    config = tmp_path / "run.toml"
    config.write_text('[predict.where]\n"a=b" = "x"\n')
    code, _, err = call(*command, "--config", config)
    assert code == 0, err
    assert len(asked["indices"]) == len(cells)


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


def test_what_needs_the_transport_is_refused_without_it_before_any_work(call, saved_model, folder, tmp_path):
    for options, message in (
        (["--changes", tmp_path / "changes.csv"], "There are no mean changes"),
        (["--method", "transport"], "--method transport: the model has none"),
    ):
        command = ["predict", saved_model, folder / "cells.h5ad", tmp_path / "new.zarr", "-c", "dose=10", *options]
        code, out, err = call(*command)
        assert (code, out, "Reading" in err) == (2, "", False)
        assert message in err


def test_a_request_that_the_transport_does_not_fit_has_no_changes_to_write(call, folder, tmp_path):
    options = ["-c", "cell_type=NK", "--changes", tmp_path / "changes.csv", "--n-steps", "2"]
    code, out, err = call("predict", folder / "model", folder / "cells.h5ad", tmp_path / "new.zarr", *options)
    assert (code, out) == (2, f"{tmp_path / 'new.zarr'}\n")
    assert "There are no mean changes" in err


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


def test_flags_that_a_file_sets_to_false_are_as_if_not_given(call, folder, tmp_path):
    (tmp_path / "run.toml").write_text("[predict]\nexpected = false")
    command = ["predict", folder / "model", folder / "cells.h5ad", tmp_path / "new.zarr"]
    code, _, err = call(*command, "--config", tmp_path / "run.toml")
    assert (code, "Nothing is predicted without a new condition" in err) == (2, True)
