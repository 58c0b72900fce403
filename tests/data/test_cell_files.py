"""Cells in files: the same as in memory, in any number of files, and what each error says."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from scgen_diffusion.data import CellFiles, RegisteredCells
from scgen_diffusion.model import SCLDM
from scgen_diffusion.module import CONDITIONS
from scgen_diffusion.train import EpochBatches

pytestmark = pytest.mark.usefixtures("seed_0")

KEYS = {"condition_keys": ["cell_type"], "continuous_condition_keys": ["dose"]}


@pytest.fixture
def adata(make_cells):
    adata = make_cells(matrix=sp.csr_matrix)
    adata.obs["genes"] = np.where(adata.obs["treated"], "A+B", "ctrl")
    return adata


@pytest.fixture
def write(tmp_path):
    """Write cells to a file of their own and return its path."""

    def written(adata, name="cells.h5ad", **options):
        path = tmp_path / name
        (adata.write_h5ad if path.suffix == ".h5ad" else adata.write_zarr)(path, **options)
        return path

    return written


def registered(adata, **options):
    SCLDM.setup_anndata(adata, **{**KEYS, **options})
    return RegisteredCells(SCLDM._get_most_recent_anndata_manager(adata, required=True))


def plain(value):
    """Turn a registry into what can be compared."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in ("_scvi_uuid", "model_name")}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    return value


def gathered(batches):
    batches = list(batches)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.zarr"])
@pytest.mark.parametrize(("matrix", "layer"), [(np.asarray, None), (sp.csr_matrix, None), (sp.csr_matrix, "raw")])
def test_cells_in_files_are_those_in_memory(adata, write, name, matrix, layer):
    adata.X = matrix(adata.X.toarray())
    adata.layers["raw"] = adata.X
    options = {"layer": layer, "set_condition_keys": ["genes"], "control_values": {"genes": "ctrl"}}
    rows = np.array([5, 1, 90, 17, 17, 0, 44])

    found, expected = CellFiles(write(adata, name), **KEYS, **options), registered(adata, **options)

    assert plain(found.registry) == plain(dict(expected.manager.registry))
    assert np.array_equal(found.codes, expected.codes)
    assert found.digest == expected.digest
    batches, same = gathered(found.loader(rows, 3)), gathered(expected.loader(rows, 3))
    assert batches.keys() == same.keys()
    assert all(torch.equal(batches[part], same[part]) for part in batches)


def test_expression_and_conditions_stay_together(adata, write):
    cells = CellFiles(write(adata), **KEYS, window_size=20)
    code_of = {tuple(row): code for row, code in zip(adata.X.toarray(), cells.codes, strict=True)}

    for batch in cells.loader(np.arange(3, 90), 8, batches=EpochBatches(87, 8, seed=0)):
        expected = np.array([code_of[tuple(row)] for row in batch["X"].numpy()])
        assert np.allclose(batch[CONDITIONS].numpy(), expected)


@pytest.mark.parametrize("cuts", [(40,), (1, 2, 95)])
def test_several_files_are_one_set_of_cells(adata, write, cuts):
    edges = [0, *cuts, adata.n_obs]
    parts = [adata[start:stop].copy() for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    for part in parts:
        part.obs["cell_type"] = part.obs["cell_type"].cat.remove_unused_categories()  # some are in one file only
    paths = [write(part, f"part{i}.{'zarr' if i % 2 else 'h5ad'}") for i, part in enumerate(parts)]
    whole = adata.copy()
    whole.obs["cell_type"] = pd.Categorical(whole.obs["cell_type"].astype(str))

    found, expected = CellFiles(paths, **KEYS), CellFiles(write(whole), **KEYS)

    assert plain(found.registry) == plain(expected.registry)
    assert np.array_equal(found.codes, expected.codes)
    assert found.digest == expected.digest
    rows = np.array([95, 0, 39, 40, 41, 2])
    assert torch.equal(gathered(found.loader(rows, 4))["X"], gathered(expected.loader(rows, 4))["X"])


def test_genes_are_matched_by_name_chosen_or_those_that_all_files_share(adata, write):
    paths = [write(adata[:, :8].copy(), "a.h5ad"), write(adata[:, [11, *range(4, 11), 0]].copy(), "b.h5ad")]
    chosen = CellFiles(paths, **KEYS, genes=pd.Index(["gene_5", "gene_0"]))
    shared = CellFiles([*paths, write(adata, "c.h5ad")], **KEYS, genes="shared")

    assert list(chosen.var.index) == ["gene_5", "gene_0"]
    assert list(shared.var.index) == ["gene_0", "gene_4", "gene_5", "gene_6", "gene_7"]
    assert "symbol" in shared.var
    for cells, n_files in [(chosen, 2), (shared, 3)]:
        expected = adata[:, cells.var.index].X.toarray()
        assert np.array_equal(gathered(cells.loader(None, 50))["X"], np.tile(expected, (n_files, 1)))


def test_text_of_files_is_read_and_tables_are_its_embeddings(adata, write):
    table = pd.DataFrame(np.eye(5), index=list(adata.obs["cell_type"].cat.categories), columns=list("abcde"))
    paths = [write(adata, name, convert_strings_to_categoricals=False) for name in ("a.h5ad", "b.h5ad")]
    options = {"set_condition_keys": ["genes"], "control_values": {"genes": "ctrl"}}

    cells = CellFiles(paths, condition_keys=["cell_type"], condition_embeddings={"cell_type": table}, **options)

    assert np.array_equal(cells.registry["setup_args"]["condition_embeddings"]["cell_type"], table)
    assert cells.by_key[1].members == ["A", "B"]


def test_cells_are_read_into_memory_on_request(adata, write):
    adata.layers["raw"] = adata.X
    cells = CellFiles([write(adata), write(adata, "b.h5ad")], layer="raw", **KEYS)

    read = cells.read([100, 3, 50])

    expected = adata[[4, 3, 50]]
    assert list(read.obs_names) == list(expected.obs_names)
    assert np.array_equal(read.layers["raw"].toarray(), expected.X.toarray())
    assert list(read.obs["cell_type"]) == list(expected.obs["cell_type"])
    assert list(read.obs["dose"]) == list(expected.obs["dose"])
    assert cells.read(np.arange(192) < 7).n_obs == 7
    read.X.data[:] = 0.5  # as normalising in place does
    assert np.array_equal(read.layers["raw"].toarray(), expected.X.toarray())


def test_new_files_can_be_opened_as_a_model_knows_its_own(adata, write):
    first = CellFiles(write(adata), **KEYS, genes=["gene_3", "gene_0"])
    some = adata[adata.obs["cell_type"] == "NK"].copy()

    cells = CellFiles.like(first.registry, write(some, "b.h5ad"))

    assert cells.by_key == first.by_key
    assert list(cells.var.index) == ["gene_3", "gene_0"]
    assert np.array_equal(cells.codes, first.codes[(adata.obs["cell_type"] == "NK").to_numpy()])


def test_generated_cells_have_their_counts_in_x_whatever_the_layer(adata, write):
    generated = adata.copy()
    generated.uns["scgen_diffusion"] = {"model": "SCLDM"}
    adata.layers["raw"], adata.X = adata.X, None
    paths = [write(adata), write(generated, "generated.zarr")]

    cells = CellFiles.like(CellFiles(paths[0], layer="raw", **KEYS).registry, paths)

    assert torch.equal(*gathered(cells.loader(None, 200))["X"].chunk(2))


def test_logarithms_that_were_read_are_marked_as_such(adata, write):
    counts = CellFiles(write(adata), **KEYS).read([0])
    adata.X = np.log1p(adata.X)
    logarithms = CellFiles(write(adata, "b.h5ad"), **KEYS, values="log1p").read([0])
    assert dict(logarithms.uns) == {"log1p": {}}
    assert dict(counts.uns) == {}


# --- columns that files write in different ways ----------------------------------------------------------------------

WHOLE, DECIMAL, LETTERS = [1, 2, 2], [1.0, 2.5, 2.5], ["a", "b", "b"]
COLUMNS = {
    "whole": pd.Series(WHOLE),
    "short": pd.Series(WHOLE, dtype=np.int32),
    "whole classes": pd.Series(WHOLE, dtype="category"),
    "nullable whole": pd.Series(WHOLE, dtype="Int64"),
    "decimal": pd.Series(DECIMAL),
    "double": pd.Series([0.1, 0.3, 0.3]),
    "single": pd.Series([0.1, 0.3, 0.3], dtype=np.float32),
    "text": pd.Series(LETTERS, dtype=object),
    "text classes": pd.Series(LETTERS, dtype="category"),
    "nullable text": pd.Series(LETTERS, dtype="string"),
    "grades": pd.Series(pd.Categorical(["low", "high", "low"], ["low", "high"], ordered=True)),
    "steps": pd.Series(pd.Categorical(["low", "high", "low"], ["low", "high"])),
    "other grades": pd.Series(pd.Categorical(["low", "high", "low"], ["high", "low"], ordered=True)),
    "other text": pd.Series(["c", "b", "c"], dtype=object),
    "nothing": pd.Series([np.nan] * 3),
    "no class": pd.Series(pd.Categorical([None] * 3, ["z"])),
}


@pytest.fixture
def columns_in_files(adata, write):
    """Write a condition in one file as one kind of column, and in the next one as another."""

    def files(*kinds):
        paths, cells = [], adata[:3].copy()
        for number, kind in enumerate(kinds):
            cells.obs["key"] = COLUMNS[kind].array
            with anndata.settings.override(allow_write_nullable_strings=True):
                paths.append(write(cells, f"{number}.h5ad"))
        return paths

    return files


@pytest.mark.parametrize(
    ("kinds", "classes", "ordered"),
    [
        (["whole", "short"], [1, 2], False),
        (["short", "whole classes"], [1, 2], False),
        (["nullable whole", "whole classes"], [1, 2], False),
        (["double", "single"], [0.1, 0.3], False),
        (["text", "other text"], ["a", "b", "c"], False),
        (["text classes", "nullable text"], ["a", "b"], False),
        (["nullable text", "other text"], ["a", "b", "c"], False),
        (["grades"], ["low", "high"], True),
        (["grades", "grades"], ["low", "high"], True),
        (["grades", "other grades"], ["high", "low"], False),
        (["grades", "text classes"], ["a", "b", "high", "low"], False),
    ],
)
def test_classes_are_the_same_however_files_store_them(columns_in_files, kinds, classes, ordered):
    (key,) = CellFiles(columns_in_files(*kinds), condition_keys=["key"]).by_key

    assert (list(key.values), key.ordered) == (classes, ordered)
    assert {type(value) for value in key.values} == {type(classes[0])}


@pytest.mark.filterwarnings("ignore:`unlabeled_category`")
@pytest.mark.parametrize("unlabeled", ["nothing", "no class"])
@pytest.mark.parametrize(("kind", "classes"), [("text", ["a", "b"]), ("whole", [1, 2]), ("steps", ["high", "low"])])
def test_a_file_without_labels_goes_with_labels_of_any_kind(columns_in_files, kind, classes, unlabeled):
    (key,) = CellFiles(columns_in_files(unlabeled, kind), condition_keys=["key"], unlabeled_category="?").by_key
    assert list(key.values) == classes


@pytest.mark.parametrize("kinds", [("whole", "nullable text"), ("text", "whole classes")])
def test_classes_of_different_kinds_are_refused(columns_in_files, kinds):
    with pytest.raises(ValueError, match="key"):
        CellFiles(columns_in_files(*kinds), condition_keys=["key"])


def test_numbers_may_be_whole_in_one_file_only(columns_in_files):
    paths = columns_in_files("whole", "decimal")

    cells = CellFiles(paths, continuous_condition_keys=["key"])
    again = CellFiles.like(cells.registry, paths)

    assert np.allclose(cells.codes[:, 0], pd.Series(WHOLE + DECIMAL).pipe(lambda x: (x - x.mean()) / x.std(ddof=0)))
    assert np.array_equal(again.codes, cells.codes)


# --- what is refused --------------------------------------------------------------------------------------------------


def renamed(cells):
    cells.var_names = [f"ENSG{i}" for i in range(12)]
    return cells


def with_negative(cells):
    cells.X.data[5] = -1
    return cells


def with_empty_cell(cells):
    cells.X[7] = 0
    return cells


def with_obs(**columns):
    return lambda cells: anndata.AnnData(cells.X, cells.obs.assign(**columns), cells.var)


def by_columns(cells):
    return anndata.AnnData(cells.X.tocsc(), cells.obs, cells.var)


@pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")
@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        (with_negative, {}, ValueError, r"b\.h5ad"),
        (with_empty_cell, {}, ValueError, "cell_7"),
        (by_columns, {}, ValueError, "CSC"),
        (lambda cells: cells[:, 2:], {}, ValueError, "gene_0"),
        (lambda cells: cells[:, 2:], {"genes": ["gene_1", "gene_2"]}, ValueError, "genes"),
        (renamed, {"genes": "shared"}, ValueError, "genes"),
        (lambda cells: anndata.AnnData(cells.X, cells.obs[["cell_type"]], cells.var), {}, KeyError, "dose"),
        (with_obs(dose="1"), {}, ValueError, "dose"),
        (lambda cells: anndata.AnnData(obs=cells.obs, var=cells.var, layers={"raw": cells.X}), {}, KeyError, "layer"),
        *(
            (lambda cells: cells, options, error, next(iter(options)))
            for options, error in [
                ({"genes": "all"}, TypeError),
                ({"genes": {"gene_2"}}, TypeError),  # sets have no order
                ({"genes": ["gene_2", "gene_2"]}, ValueError),
                ({"values": "log1p"}, ValueError),
                ({"values": "raw"}, ValueError),
                ({"layer": "raw"}, KeyError),
                ({"condition_keys": "cell_type"}, TypeError),
                ({"window_size": 0}, ValueError),
                ({"continuous_condition_keys": ["cell_type"], "condition_keys": []}, ValueError),
            ]
        ),
    ],
)
def test_files_and_arguments_that_do_not_fit_are_refused(adata, write, change, options, error, words):
    paths = [write(adata, "a.h5ad"), write(change(adata.copy()), "b.h5ad")]

    with pytest.raises(error, match=words):
        CellFiles(paths, **{**KEYS, **options})


def test_anything_but_files_of_anndata_is_refused(tmp_path):
    text, folder = tmp_path / "text.h5ad", tmp_path / "empty.zarr"
    text.write_text("no")
    folder.mkdir()

    with pytest.raises(FileNotFoundError, match=r"none\.h5ad"):
        CellFiles(tmp_path / "none.h5ad")
    for paths, words in [(text, r"text\.h5ad"), (folder, r"empty\.zarr"), ([], "paths")]:
        with pytest.raises(ValueError, match=words):
            CellFiles(paths)


def test_files_can_be_replaced_once_they_are_refused_or_closed(adata, write):
    csc = adata.copy()
    csc.X = csc.X.tocsc()
    path = write(csc)

    with pytest.raises(ValueError, match="CSC") as refused:  # which keeps the frames, as a notebook does
        CellFiles(path, **KEYS)
    cells = CellFiles(write(adata), **KEYS)
    cells.close()
    write(adata)

    assert refused.traceback


def cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


def without_x(path):
    with h5py.File(path, "a") as file:
        del file["X"]


@pytest.mark.parametrize("damage", [cut, without_x])
def test_a_damaged_file_is_named(adata, write, tmp_path, damage):
    whole, path = write(adata, "whole.h5ad"), tmp_path / "damaged.h5ad"
    adata.write_h5ad(path, compression="gzip")
    damage(path)

    with pytest.raises((ValueError, KeyError), match=r"damaged\.h5ad"):
        CellFiles([whole, path], condition_keys=["cell_type"])
