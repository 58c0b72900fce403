"""``predict_perturbation_to``: predictions of ``predict_perturbation`` in a file, of cells in memory or files."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from builders import read_cells

from scgen_diffusion.data import CellFiles
from scgen_diffusion.generation import CellGenerator
from scgen_diffusion.model import SCLDM, SCRDIT

QUICK = {"accelerator": "cpu", "enable_progress_bar": False}
N_CELLS = 300  # three blocks on a CPU, the last one not full
SHARD = 128
REQUEST = {"condition": {"dose": 10}, "seed": 5}


@pytest.fixture(scope="module")
def model(make_trained, make_cells):
    """Take cells of the lowest dose as unperturbed."""
    model = make_trained(make_cells(240), max_epochs=2)
    model.train_perturbation_flow(2, control_values={"dose": 1}, **QUICK)
    return model


@pytest.fixture(scope="module")
def control(make_cells):
    """Build cells in no order of types, so that every shard has several groups."""
    cells = make_cells(N_CELLS, seed=1, matrix=sp.csr_matrix)
    cells.obs["dose"] = 1
    return cells


@pytest.fixture(scope="module")
def h5ad(control, tmp_path_factory):
    path = tmp_path_factory.mktemp("control") / "control.h5ad"
    control.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def expected(model, control):
    return model.predict_perturbation(control.copy(), **REQUEST)


def assert_same(path, expected, *, columns=None):
    """Raise unless a file holds these cells, tables of ``uns`` included; of ``obs`` perhaps only some columns."""
    found = read_cells(path)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    assert found.obs_names.equals(expected.obs_names)
    columns = list(expected.obs) if columns is None else columns
    assert list(found.obs) == columns
    assert found.obs.astype(str).equals(expected.obs[columns].astype(str))
    record, other = (dict(cells.uns["scgen_diffusion"]) for cells in (found, expected))
    for name in ("support", "mean_change"):
        table = other.pop(name).reset_index(drop=True)
        # sums over cells add up in another order
        pd.testing.assert_frame_equal(
            record.pop(name).reset_index(drop=True), table, check_dtype=False, check_categorical=False, rtol=1e-6
        )
    assert set(record) == set(other)


def source(kind, model, control, h5ad):
    if kind == "memory":
        return control.copy()
    return anndata.read_h5ad(h5ad, backed="r") if kind == "backed" else CellFiles.like(model.registry, h5ad)


@pytest.mark.parametrize(
    ("kind", "suffix"), [("memory", ".zarr"), ("memory", ".h5ad"), ("backed", ".h5ad"), ("files", ".zarr")]
)
def test_the_file_holds_what_predict_perturbation_returns(model, control, h5ad, expected, tmp_path, kind, suffix):
    goal = tmp_path / f"cells{suffix}"

    assert model.predict_perturbation_to(goal, source(kind, model, control, h5ad), **REQUEST, shard_size=SHARD) == goal

    columns = ["cell_type", "dose", "dose_of_control", "synthetic"] if kind == "files" else None
    assert_same(goal, expected, columns=columns)
    assert [path.name for path in tmp_path.iterdir()] == [goal.name]
    if kind == "files":  # which can be predicted in memory too
        found = model.predict_perturbation(CellFiles.like(model.registry, h5ad), **REQUEST)
        assert (found.X != expected.X).nnz == 0


@pytest.mark.parametrize(
    ("name", "value"), [("day", pd.Timestamp("2026-11-23")), ("yes/no", 1), ("_index", 1), ("treated", None)]
)
def test_columns_that_no_file_can_hold_are_named_before_any_work(model, control, tmp_path, monkeypatch, name, value):
    monkeypatch.setattr(CellGenerator, "predictions", lambda *_, **__: pytest.fail("cells were made"))
    cells = control.copy()
    if value is None:  # a second column of this name
        cells.obs = pd.concat([cells.obs, cells.obs[[name]]], axis=1)
    else:
        cells.obs[name] = value

    forbidden = anndata.settings.override(disallow_forward_slash_in_h5ad=True)  # the default of anndata 0.13
    with forbidden, pytest.raises(Exception, match=name):
        model.predict_perturbation_to(tmp_path / "cells.h5ad", cells, **REQUEST)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".zarr", ".h5ad"])
def test_columns_with_missing_values_are_kept(model, control, tmp_path, suffix):
    cells, is_missing = control.copy(), np.arange(N_CELLS) % 7 == 0
    cells.obs["age"] = pd.array(np.where(is_missing, None, np.arange(N_CELLS)), dtype="Int64")
    cells.obs["smokes"] = pd.array(np.where(is_missing, None, np.arange(N_CELLS) % 2 == 0), dtype="boolean")
    cells.obs["note"] = np.where(np.arange(N_CELLS) < SHARD, "first part", np.where(is_missing, None, "later"))
    cells.obs["text"] = pd.array(np.where(is_missing, None, "of pandas"), dtype="string")

    path = model.predict_perturbation_to(tmp_path / f"cells{suffix}", cells, **REQUEST, shard_size=SHARD)

    found = read_cells(path).obs
    assert found["text"].isna().tolist() == is_missing.tolist()
    for name in ("age", "smokes"):
        assert found[name].reset_index(drop=True).equals(cells.obs[name].reset_index(drop=True))
    found_notes, notes = (obs["note"].astype(object).where(obs["note"].notna(), None) for obs in (found, cells.obs))
    assert found_notes.tolist() == notes.tolist()  # in pandas 3, the None that the cells were given is NaN


def test_an_interrupted_call_resumes_and_the_tables_are_those_of_all_cells(
    model, control, expected, tmp_path, monkeypatch
):
    goal, request = tmp_path / "cells.h5ad", {**REQUEST, "shard_size": SHARD}
    original, made = CellGenerator.predictions, []

    def interrupted(self, *arguments):
        made.append(1)
        if len(made) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(CellGenerator, "predictions", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.predict_perturbation_to(goal, control.copy(), **request)
    assert not goal.exists()
    model.predict_perturbation_to(goal, control.copy(), **request)

    assert len(made) == 4  # three shards, one of them twice
    assert_same(goal, expected)
    model.predict_perturbation_to(goal, control.copy(), **request)
    assert len(made) == 4


def test_two_processes_share_the_work(model, control, expected, tmp_path, run_together):
    goal = tmp_path / "cells.zarr"
    together = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "shard_size": SHARD}

    run_together(lambda _: model.predict_perturbation_to(goal, control.copy(), **REQUEST, **together))

    assert_same(goal, expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda cells: cells.X.__setitem__((0, 0), 99),
        lambda cells: cells.obs.__setitem__("cell_type", cells.obs["cell_type"].to_numpy()[::-1]),
    ],
    ids=["counts", "labels"],
)
def test_other_control_cells_are_another_request(model, control, tmp_path, change):
    goal, other = tmp_path / "cells.h5ad", control.copy()
    model.predict_perturbation_to(goal, control.copy(), **REQUEST)
    change(other)

    with pytest.raises(FileExistsError, match="adata_control"):
        model.predict_perturbation_to(goal, other, **REQUEST)
    with pytest.raises(FileExistsError, match="keep_residuals"):
        model.predict_perturbation_to(goal, control.copy(), **{**REQUEST, "keep_residuals": False})


@pytest.mark.parametrize(("cls", "options"), [(SCLDM, {"method": "inversion"}), (SCRDIT, {"counts": True})])
def test_what_has_no_tables_streams_too(trained_once, control, tmp_path, cls, options):
    request, model = {**REQUEST, "n_steps": 2, **options}, trained_once(cls)
    path = model.predict_perturbation_to(tmp_path / "cells.zarr", control.copy(), **request, shard_size=SHARD)

    expected, found = model.predict_perturbation(control.copy(), **request), read_cells(path)

    assert (found.X != expected.X).nnz == 0
    assert not {"support", "mean_change"} & set(found.uns["scgen_diffusion"])


def test_files_of_another_setup_are_refused(model, h5ad, tmp_path):
    with pytest.raises(ValueError, match="conditions"):
        model.predict_perturbation_to(tmp_path / "cells.h5ad", CellFiles(h5ad, condition_keys=["dose"]), **REQUEST)
    assert not list(tmp_path.iterdir())
