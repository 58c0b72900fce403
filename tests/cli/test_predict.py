"""``predict``: the cells of ``predict_perturbation``, in a file."""

import anndata
import click
import numpy as np
import pandas as pd
import pytest

from scgen_diffusion.cli._tables import select_rows
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
    model.train_perturbation_flow(2, control_values={"dose": 1}, **QUICK)
    return model


@pytest.fixture(scope="module")
def folder(model, cells, tmp_path_factory):
    """Save the model, and its cells in one file, in two, and those of the lowest dose alone."""
    folder = tmp_path_factory.mktemp("files")
    model.save(folder / "model")
    cells.write_h5ad(folder / "cells.h5ad")
    cells[:100].write_h5ad(folder / "first.h5ad")
    cells[100:].write_h5ad(folder / "second.h5ad")
    cells[cells.obs["dose"] == 1].write_h5ad(folder / "control.h5ad")
    return folder


@pytest.fixture(scope="module")
def expected(model, cells):
    return model.predict_perturbation(cells[cells.obs["dose"] == 1].copy(), {"dose": 10}, seed=3)


def test_the_file_holds_the_cells_of_predict_perturbation(call, refused, folder, expected, tmp_path):
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
    refused("overwrite", *command, "4")
    code, _, err = call(*command, "4", "--overwrite")
    assert code == 0, err
    assert anndata.read_h5ad(out).uns["scgen_diffusion"]["seed"] == 4


@pytest.mark.parametrize(
    ("files", "asked"),
    [
        (["cells.h5ad"], [*ASKED, "--backed"]),
        (["first.h5ad", "second.h5ad"], ASKED),
        (["control.h5ad"], ["-c", "dose=10", "--backed"]),
    ],
)
def test_cells_may_be_chosen_from_several_files_or_stay_there(call, folder, expected, tmp_path, files, asked):
    out = tmp_path / "new.h5ad"
    code, _, err = call("predict", folder / "model", *(folder / name for name in files), out, *asked, "--seed", "3")
    assert code == 0, err
    assert (anndata.read_h5ad(out).X != expected.X).nnz == 0


def test_of_more_genes_in_another_order_those_of_the_model_are_taken(call, folder, cells, expected, tmp_path):
    more = anndata.concat([cells, cells[:, :3].copy()], axis=1, merge="first", index_unique="-")
    more.var_names = [*cells.var_names, "a", "b", "c"]
    more[:, ::-1].write_h5ad(tmp_path / "more.h5ad")
    out = tmp_path / "new.h5ad"
    code, _, err = call("predict", folder / "model", tmp_path / "more.h5ad", out, *ASKED, "--seed", "3")
    assert code == 0, err
    assert (anndata.read_h5ad(out).X != expected.X).nnz == 0


def test_options_of_predict_reach_their_arguments(call, folder, cells, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(SCLDM, "predict_perturbation_to", lambda self, path, **options: asked.update(options))
    line = "-c dose=10 -w cell_type=NK -w cell_type=rare -w dose=1 --method inversion --library-size 500"
    code, _, err = call("predict", folder / "model", folder / "cells.h5ad", tmp_path / "new.zarr", *line.split())
    assert code == 0, err
    is_chosen = cells.obs["cell_type"].isin(["NK", "rare"]) & (cells.obs["dose"] == 1)
    assert asked.pop("adata_control").obs_names.equals(cells.obs_names[is_chosen])
    assert asked == {"condition": {"dose": 10}, "method": "inversion", "library_size": 500, "seed": 0}


def test_of_the_other_cells_no_label_is_needed(call, refused, folder, cells, expected, tmp_path):
    others = np.flatnonzero(cells.obs["dose"] == 100)[:2]
    bad, out = cells.copy(), tmp_path / "new.h5ad"
    bad.obs.loc[bad.obs_names[others[0]], "cell_type"] = np.nan
    bad.obs.loc[bad.obs_names[others[1]], "dose"] = 7  # which the model does not know
    bad.write_h5ad(tmp_path / "bad.h5ad")
    code, _, err = call("predict", folder / "model", tmp_path / "bad.h5ad", out, *ASKED, "--seed", "3")
    assert code == 0, err
    assert (anndata.read_h5ad(out).X != expected.X).nnz == 0
    command = ["predict", folder / "model", tmp_path / "bad.h5ad", tmp_path / "other.h5ad"]
    refused("cell_type", *command, "--where", "dose=100", "-c", "dose=10")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("-c dose=10 -w type=NK", "'type'"),
        ("-c dose=10 -w cell_type=NKT", "'NKT'"),
        ("-c dose=10 -w dose=2", "'2'"),
        ("-c dose=10 -w cell_type=rare -w treated=maybe", "'maybe'"),
        ("-c dose=2", "'2'"),
        ("-c dose=10 -c dose=100", "--condition"),
        ("-c dose=10 --sampler", "--sampler"),
        ("-c dose=10 --method transprot", "method"),
        ("--condition-table {folder}/turned.h5ad", "another order"),
    ],
)
def test_wrong_options_of_predict_are_named(refused, folder, cells, tmp_path, options, word):
    turned = cells[::-1].copy()
    turned.obs["dose"] = 10
    turned.write_h5ad(tmp_path / "turned.h5ad")
    options = options.format(folder=tmp_path).split()
    refused(word, "predict", folder / "model", folder / "cells.h5ad", tmp_path / "new.zarr", *options)
    assert not (tmp_path / "new.zarr").exists()


SINGLE, TEXT = pd.Series([0.1, 1, 10, 0.1], dtype="float32"), pd.Series(["1", "2", "01", None], dtype=object)


@pytest.mark.parametrize(
    ("column", "chosen", "expected"),
    [
        *((SINGLE.astype(dtype), ["0.1", "1"], [True, True, False, True]) for dtype in ("float32", "category")),
        *((TEXT.astype(dtype), "01", [False, False, True, False]) for dtype in (object, "category")),
        (pd.array([1, None, 2], dtype="Int64"), "2", [False, False, True]),
    ],
)
def test_cells_are_chosen_by_numbers_as_they_look_and_by_text_as_it_is_written(column, chosen, expected):
    obs = pd.DataFrame({"batch": column})
    assert select_rows(obs, {"batch": chosen}).tolist() == expected
    for values in ({"batch": "nan"}, {"batch": chosen, "plate": "b"}):
        with pytest.raises(click.UsageError, match="batch"):
            select_rows(obs.assign(plate=np.where(expected, "a", "b")), values)
