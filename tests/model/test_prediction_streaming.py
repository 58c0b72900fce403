"""``predict_perturbation_to``: predictions of ``predict_perturbation`` in a file, of cells in memory or files."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scgen_diffusion.data import CellFiles
from scgen_diffusion.generation import CellGenerator

QUICK = {"accelerator": "cpu", "enable_progress_bar": False}
N_CELLS = 300  # three blocks on a CPU, the last one not full
SHARD = 128
files_names = CellFiles.names
REQUEST = {"condition": {"dose": 10}, "seed": 5}
READ = {".zarr": anndata.read_zarr, ".h5ad": anndata.read_h5ad}


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
    found = READ[path.suffix](path)
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


@pytest.mark.parametrize("suffix", READ)
def test_columns_with_missing_values_are_kept(model, control, tmp_path, suffix):
    cells, is_missing = control.copy(), np.arange(N_CELLS) % 7 == 0
    cells.obs["age"] = pd.array(np.where(is_missing, None, np.arange(N_CELLS)), dtype="Int64")
    cells.obs["smokes"] = pd.array(np.where(is_missing, None, np.arange(N_CELLS) % 2 == 0), dtype="boolean")
    cells.obs["note"] = np.where(np.arange(N_CELLS) < SHARD, "first part", np.where(is_missing, None, "later"))

    cells.obs["text"] = pd.array(np.where(is_missing, None, "of pandas"), dtype="string")

    path = model.predict_perturbation_to(tmp_path / f"cells{suffix}", cells, **REQUEST, shard_size=SHARD)

    found = READ[suffix](path).obs
    assert found["text"].isna().tolist() == is_missing.tolist()
    for name in ("age", "smokes"):
        assert found[name].reset_index(drop=True).equals(cells.obs[name].reset_index(drop=True))
    found_notes, notes = (obs["note"].astype(object).where(obs["note"].notna(), None) for obs in (found, cells.obs))
    assert found_notes.tolist() == notes.tolist()  # in pandas 3, the None that the cells were given is NaN


@pytest.mark.parametrize(
    ("name", "value", "suffix"),
    [
        ("day", pd.Timestamp("2026-11-23"), ".h5ad"),
        ("yes/no", 1, ".h5ad"),
        ("yes/no", 1, ".zarr"),
        (0, 1, ".h5ad"),
        ("_index", 1, ".h5ad"),
    ],
)
def test_columns_that_no_file_can_hold_are_named_before_any_work(
    model, control, tmp_path, monkeypatch, name, value, suffix
):
    monkeypatch.setattr(CellGenerator, "predictions", lambda *_, **__: pytest.fail("cells were made"))
    cells = control.copy()
    cells.obs[name] = value

    forbidden = anndata.settings.override(disallow_forward_slash_in_h5ad=True)  # the default of anndata 0.13
    with forbidden, pytest.raises(TypeError, match=str(name)):
        model.predict_perturbation_to(tmp_path / f"cells{suffix}", cells, **REQUEST)
    assert not list(tmp_path.iterdir())


def test_columns_with_names_that_are_no_text_are_kept_in_memory(model, control):
    cells, kinds = control.copy(), ["a", None] * (N_CELLS // 2)
    cells.obs[0], cells.obs[1] = pd.Categorical(kinds), pd.array(kinds, dtype="string")

    found = model.predict_perturbation(cells, **REQUEST).obs

    for name in (0, 1):
        assert found[name].isna().tolist() == [False, True] * (N_CELLS // 2)


def test_columns_of_one_name_are_refused_before_any_work(model, control, tmp_path, monkeypatch):
    monkeypatch.setattr(CellGenerator, "predictions", lambda *_, **__: pytest.fail("cells were made"))
    cells = control.copy()
    cells.obs = pd.concat([cells.obs, pd.DataFrame(1, cells.obs_names, ["day", "day"])], axis=1)

    with pytest.raises(ValueError, match=r"adata_control\.obs has several columns of the name 'day'"):
        model.predict_perturbation(cells, **REQUEST)
    with pytest.raises(ValueError, match=r"adata_control\.obs has several columns of the name 'day'"):
        model.predict_perturbation_to(tmp_path / "cells.h5ad", cells, **REQUEST)


def test_the_names_of_cells_may_be_named_like_a_column_and_have_the_type_string(model, control, expected, tmp_path):
    cells = control.copy()
    cells.obs.index = cells.obs_names.astype("string").rename("dose")
    assert_same(model.predict_perturbation_to(tmp_path / "cells.h5ad", cells, **REQUEST), expected)


def test_cells_in_files_can_be_predicted_in_memory_too(model, control, h5ad, expected):
    found = model.predict_perturbation(CellFiles.like(model.registry, h5ad), **REQUEST)

    assert (found.X != expected.X).nnz == 0
    assert found.obs_names.equals(expected.obs_names)


def test_some_cells_of_files_are_those_of_a_part_in_memory(model, control, h5ad, tmp_path):
    rows = np.sort(np.random.default_rng(0).permutation(N_CELLS)[:200])
    files = CellFiles.like(model.registry, h5ad, indices=rows)

    path = model.predict_perturbation_to(tmp_path / "cells.h5ad", files, **REQUEST, shard_size=SHARD)

    found = anndata.read_h5ad(path)
    whole = model.predict_perturbation(control[rows].copy(), **REQUEST)
    np.testing.assert_array_equal(found.X.toarray(), whole.X.toarray())
    assert found.obs_names.str.split("-").str[-1].tolist() == control.obs_names[rows].tolist()


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


def test_other_control_cells_are_another_request(model, control, tmp_path):
    goal = tmp_path / "cells.h5ad"
    model.predict_perturbation_to(goal, control.copy(), **REQUEST)
    other = control.copy()
    other.X[0, 0] += 1

    with pytest.raises(FileExistsError, match="What differs: the control cells"):
        model.predict_perturbation_to(goal, other, **REQUEST)
    with pytest.raises(FileExistsError, match="What differs: `keep_residuals`"):
        model.predict_perturbation_to(goal, control.copy(), **{**REQUEST, "keep_residuals": False})


@pytest.mark.parametrize("column", ["cell_type", "treated"])
def test_control_cells_with_other_labels_are_another_request(model, control, tmp_path, column):
    goal = tmp_path / "cells.h5ad"
    model.predict_perturbation_to(goal, control.copy(), **REQUEST)
    other = control.copy()
    other.obs[column] = other.obs[column].to_numpy()[::-1]

    with pytest.raises(FileExistsError, match="What differs: the control cells"):
        model.predict_perturbation_to(goal, other, **REQUEST)


def test_other_rows_or_labels_of_cells_in_files_are_another_request(model, control, h5ad, tmp_path):
    rows, goal = np.flatnonzero(control.obs["cell_type"] == "NK"), tmp_path / "cells.h5ad"
    files, others = (CellFiles.like(model.registry, h5ad, indices=some) for some in (rows[:5], rows[5:10]))
    model.predict_perturbation_to(goal, files, **REQUEST)

    with pytest.raises(FileExistsError, match="What differs: the control cells"):
        model.predict_perturbation_to(goal, others, **REQUEST)
    known = CellFiles.like(model.registry, h5ad).codes
    files.codes[rows[0], 0] = known[np.flatnonzero(control.obs["cell_type"] == "B cell")[0], 0]
    with pytest.raises(FileExistsError, match="What differs: the control cells"):
        model.predict_perturbation_to(goal, files, **REQUEST)


def test_cells_without_any_columns_are_written_too(make_trained, make_cells, tmp_path):
    cells = make_cells()
    cells.obs = cells.obs[[]]
    model = make_trained(cells, condition_keys=[])
    path = model.predict_perturbation_to(tmp_path / "cells.h5ad", keep_residuals=False, seed=0)
    assert anndata.read_h5ad(path).n_obs == cells.n_obs


def test_names_of_cells_in_files_are_read_only_for_the_cells_that_are_written(model, h5ad, tmp_path, monkeypatch):
    files, asked = CellFiles.like(model.registry, h5ad), []
    monkeypatch.setattr(CellFiles, "names", lambda self, rows: asked.append(len(rows)) or files_names(self, rows))
    model.predict_perturbation_to(tmp_path / "cells.h5ad", files, **REQUEST, shard_size=SHARD)
    assert max(asked) == SHARD


def test_the_inversion_streams_without_tables(model, control, tmp_path):
    request = {**REQUEST, "method": "inversion", "n_steps": 2}
    path = model.predict_perturbation_to(tmp_path / "cells.h5ad", control.copy(), **request, shard_size=SHARD)

    expected = model.predict_perturbation(control.copy(), **request)

    found = anndata.read_h5ad(path)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    assert not {"support", "mean_change"} & set(found.uns["scgen_diffusion"])


def test_gene_space_models_stream_too(trained_gene_space, control, tmp_path):
    request = {**REQUEST, "n_steps": 2, "counts": True}
    path = trained_gene_space.predict_perturbation_to(
        tmp_path / "cells.zarr", control.copy(), **request, shard_size=SHARD
    )

    expected = trained_gene_space.predict_perturbation(control.copy(), **request)
    assert (anndata.read_zarr(path).X != expected.X).nnz == 0


def test_a_doubtful_effect_is_warned_of_before_any_work(model, control, tmp_path, monkeypatch):
    cells = control.copy()
    cells.X = cells.X[:, np.random.default_rng(0).permutation(12)]
    monkeypatch.setattr(CellGenerator, "predictions", None)

    with pytest.warns(UserWarning, match="is (unknown|extrapolated)"), pytest.raises(TypeError):
        model.predict_perturbation_to(tmp_path / "cells.h5ad", cells, **REQUEST)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "cells.csv"}, ValueError, "`path` must end in .zarr or .h5ad"),
        ({"devices": "two"}, ValueError, "`devices`"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"shard_size": 0}, ValueError, "`shard_size`"),
    ],
)
def test_bad_arguments_are_refused(model, control, tmp_path, arguments, error, message):
    path = tmp_path / arguments.pop("path", "cells.h5ad")
    with pytest.raises(error, match=message):
        model.predict_perturbation_to(path, control.copy(), **{**REQUEST, **arguments})
    assert not list(tmp_path.iterdir())


def test_files_of_another_setup_are_refused(model, control, h5ad, tmp_path):
    with pytest.raises(ValueError, match="conditions"):
        model.predict_perturbation_to(tmp_path / "cells.h5ad", CellFiles(h5ad, condition_keys=["dose"]), **REQUEST)
