"""Cells in files: the same as in memory, in any number of files, and what each error says."""

from __future__ import annotations

import shutil

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
@pytest.mark.parametrize("layer", [None, "raw"])
def test_files_are_registered_as_the_same_cells_in_memory_are(adata, write, name, layer):
    adata.layers["raw"] = adata.X
    options = {"layer": layer, "set_condition_keys": ["genes"], "control_values": {"genes": "ctrl"}}

    found, expected = CellFiles(write(adata, name), **KEYS, **options), registered(adata, **options)

    assert plain(found.registry) == plain(dict(expected.registry))
    assert np.array_equal(found.codes, expected.codes)
    assert found.digest == expected.digest
    assert found.n_cells == expected.n_cells


@pytest.mark.parametrize("matrix", [np.asarray, sp.csr_matrix], ids=["dense", "csr"])
@pytest.mark.parametrize("name", ["cells.h5ad", "cells.zarr"])
def test_batches_in_order_are_those_of_memory(make_cells, write, matrix, name):
    adata = make_cells(matrix=matrix)
    rows = np.array([5, 1, 90, 17, 17, 0, 44])
    path = write(adata, name)

    found, expected = (gathered(cells.loader(rows, 3)) for cells in (CellFiles(path, **KEYS), registered(adata)))

    assert found.keys() == expected.keys()
    assert all(torch.equal(found[part], expected[part]) for part in found)


def test_with_one_window_for_all_shuffled_batches_are_a_permutation_of_the_cells(adata, write):
    batches = EpochBatches(adata.n_obs, 10, seed=0)
    loader = CellFiles(write(adata), **KEYS, window_size=1000, block_size=2).loader(None, 10, batches=batches)

    one = gathered(loader)
    batches.set_epoch(1)
    other = gathered(loader)

    everything = adata.X.toarray()
    assert not np.array_equal(one["X"], everything)
    assert not torch.equal(one["X"], other["X"])  # each epoch has an order of its own
    for batch in (one, other):
        assert np.array_equal(np.unique(batch["X"], axis=0), np.unique(everything, axis=0))
        assert len(batch["X"]) == len(everything)


def test_expression_and_conditions_stay_together(adata, write):
    cells = CellFiles(write(adata), **KEYS, window_size=20, block_size=4)
    code_of = {tuple(row): code for row, code in zip(adata.X.toarray(), cells.codes, strict=True)}

    for batch in cells.loader(np.arange(3, 90), 8, batches=EpochBatches(87, 8, seed=0)):
        expected = np.array([code_of[tuple(row)] for row in batch["X"].numpy()])
        assert np.allclose(batch[CONDITIONS].numpy(), expected)


@pytest.mark.parametrize("cuts", [(40,), (1, 2, 95)])
def test_several_files_are_one_set_of_cells(adata, write, cuts):
    edges = [0, *cuts, adata.n_obs]
    parts = [adata[start:stop].copy() for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    for part in parts:
        part.obs["cell_type"] = part.obs[
            "cell_type"
        ].cat.remove_unused_categories()  # so that some labels are in one file only
    paths = [write(part, f"part{i}.{'zarr' if i % 2 else 'h5ad'}") for i, part in enumerate(parts)]
    whole = adata.copy()
    whole.obs["cell_type"] = pd.Categorical(whole.obs["cell_type"].astype(str))

    found, expected = CellFiles(paths, **KEYS), CellFiles(write(whole), **KEYS)

    assert plain(found.registry) == plain(expected.registry)
    assert np.array_equal(found.codes, expected.codes)
    assert found.digest == expected.digest
    rows = np.array([95, 0, 39, 40, 41, 2])
    assert torch.equal(gathered(found.loader(rows, 4))["X"], gathered(expected.loader(rows, 4))["X"])


def test_genes_are_matched_by_name_whatever_their_order(adata, write):
    paths = [write(adata), write(adata[:, ::-1].copy(), "other.h5ad")]

    batch = gathered(CellFiles(paths, **KEYS).loader(None, 50))["X"]

    assert np.array_equal(batch[:96], adata.X.toarray())
    assert np.array_equal(batch[96:], adata.X.toarray())


def test_genes_can_be_chosen_by_name_or_be_those_that_all_files_share(adata, write):
    paths = [write(adata[:, :8].copy(), "a.h5ad"), write(adata[:, [0, *range(4, 12)]].copy(), "b.h5ad")]

    chosen = CellFiles(paths, **KEYS, genes=pd.Index(["gene_5", "gene_0"]))
    shared = CellFiles(paths, **KEYS, genes="shared")

    assert list(chosen.var.index) == ["gene_5", "gene_0"]
    assert list(shared.var.index) == ["gene_0", "gene_4", "gene_5", "gene_6", "gene_7"]
    assert "symbol" in shared.var
    expected = adata[:, ["gene_5", "gene_0"]].X.toarray()
    assert np.array_equal(gathered(chosen.loader(None, 50))["X"], np.concatenate([expected, expected]))
    first = CellFiles(paths[0], **KEYS, genes=["gene_0", "gene_1"])
    assert np.array_equal(gathered(first.loader(None, 50))["X"], adata[:, :2].X.toarray())
    of_three = CellFiles([*paths, write(adata, "c.h5ad")], **KEYS, genes="shared")
    assert list(of_three.var.index) == list(shared.var.index)


def test_text_and_embeddings_of_files_are_read(adata, write):
    table = pd.DataFrame(np.eye(5), index=list(adata.obs["cell_type"].cat.categories), columns=list("abcde"))
    adata.uns["vectors"] = table[:3]
    paths = [write(adata, convert_strings_to_categoricals=False)]
    adata.uns["vectors"] = table[2:]  # rows are joined
    paths.append(write(adata, "b.h5ad", convert_strings_to_categoricals=False))
    options = {"set_condition_keys": ["genes"], "control_values": {"genes": "ctrl"}}

    cells = CellFiles(paths, condition_keys=["cell_type"], condition_embeddings={"cell_type": "vectors"}, **options)

    arguments = cells.registry["setup_args"]
    assert np.array_equal(arguments["condition_embeddings"]["cell_type"], table)
    assert cells.by_key[1].members == ["A", "B"]


@pytest.mark.parametrize("change", [lambda table: table + 1, lambda table: table.rename(columns={"a": "z"})])
def test_embeddings_of_files_that_contradict_each_other_are_refused(adata, write, change):
    adata.uns["vectors"] = pd.DataFrame(np.eye(5), adata.obs["cell_type"].cat.categories, list("abcde"))
    paths = [write(adata)]
    adata.uns["vectors"] = change(adata.uns["vectors"])
    paths.append(write(adata, "b.h5ad"))
    with pytest.raises(ValueError, match="uns"):
        CellFiles(paths, condition_keys=["cell_type"], condition_embeddings={"cell_type": "vectors"})


def test_classes_of_text_are_in_the_order_that_they_have_in_memory(adata, write):
    adata = adata[np.argsort(adata.obs["treated"])].copy()  # "ctrl" comes before "A+B"

    found = CellFiles(write(adata, convert_strings_to_categoricals=False), condition_keys=["genes"])

    assert found.by_key[0].values == ["A+B", "ctrl"]


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


@pytest.mark.parametrize("name", ["generated.h5ad", "generated.zarr"])
def test_generated_cells_have_their_counts_in_x_whatever_the_layer(adata, write, name):
    generated = adata.copy()
    generated.uns["scgen_diffusion"] = {"model": "SCLDM"}
    adata.layers["raw"], adata.X = adata.X, None
    paths = [write(adata), write(generated, name)]

    cells = CellFiles.like(CellFiles(paths[0], layer="raw", **KEYS).registry, paths)

    assert torch.equal(*gathered(cells.loader(None, 200))["X"].chunk(2))
    with pytest.raises(KeyError, match="layer"):
        CellFiles(paths[1], layer="cuonts", condition_keys=["cell_type"])


def test_conditions_of_cells_that_are_not_used_may_be_missing_or_unknown(adata, write):
    first, others = CellFiles(write(adata), **KEYS), adata.copy()
    rows = np.flatnonzero(adata.obs["cell_type"] == "NK")
    others.obs["cell_type"] = others.obs["cell_type"].astype(object).where(adata.obs["cell_type"] == "NK", "new")
    others.obs.loc[others.obs_names[np.flatnonzero(adata.obs["cell_type"] != "NK")[0]], "cell_type"] = np.nan
    path = write(others, "others.h5ad")
    with pytest.raises(ValueError, match="cell_type"):
        CellFiles.like(first.registry, path)
    with pytest.raises(ValueError, match="load_query_data"):
        CellFiles.like(first.registry, path, indices=[np.flatnonzero(others.obs["cell_type"] == "new")[0]])

    cells = CellFiles.like(first.registry, path, indices=rows[::-1])

    assert np.array_equal(cells.codes[rows], first.codes[rows])
    assert list(cells.read(rows).obs["cell_type"]) == ["NK"] * len(rows)
    with pytest.raises(ValueError, match="indices"):
        cells.read(np.setdiff1d(np.arange(cells.n_cells), rows)[:1])
    with pytest.raises(ValueError, match="indices"):
        cells.check()


def test_logarithms_that_were_read_are_marked_as_such(adata, write):
    counts = CellFiles(write(adata), **KEYS).read([0])
    adata.X = np.log1p(adata.X)
    logarithms = CellFiles(write(adata, "b.h5ad"), **KEYS, values="log1p").read([0])
    assert dict(logarithms.uns) == {"log1p": {}}
    assert dict(counts.uns) == {}


# --- errors -----------------------------------------------------------------------------------------------------------


def test_values_that_are_wrong_in_one_file_name_the_file(adata, write):
    bad = adata.copy()
    bad.X.data[5] = -1
    empty = adata.copy()
    empty.X[7] = 0
    paths = [write(adata), write(bad, "b.h5ad"), write(empty, "c.h5ad")]

    with pytest.raises(ValueError, match="X"):
        CellFiles(paths[:2], **KEYS)
    with pytest.raises(ValueError, match="cell_7"):
        CellFiles(paths[::2], **KEYS)
    with pytest.raises(ValueError, match="X"):
        CellFiles(paths[0], **KEYS, values="log1p")
    with pytest.raises(ValueError, match="values"):
        CellFiles(paths[0], **KEYS, values="raw")


@pytest.mark.parametrize(
    ("genes", "error", "words"),
    [
        (None, ValueError, "gene_0"),
        (["gene_1", "gene_2"], ValueError, "genes"),
        ("all", TypeError, "genes"),
        ({"gene_2"}, TypeError, "genes"),  # sets have no order
        (["gene_2", "gene_2"], ValueError, "genes"),
    ],
)
def test_genes_that_files_lack_are_refused(adata, write, genes, error, words):
    with pytest.raises(error, match=words):
        CellFiles([write(adata), write(adata[:, 2:].copy(), "b.h5ad")], **KEYS, genes=genes)


def test_files_without_a_common_gene_are_refused(adata, write):
    other = adata.copy()
    other.var_names = [f"ENSG{i}" for i in range(12)]
    with pytest.raises(ValueError, match="genes"):
        CellFiles([write(adata), write(other, "b.h5ad")], **KEYS, genes="shared")


def test_columns_that_a_file_lacks_or_writes_otherwise_name_the_file(adata, write):
    lacking, other = adata.copy(), adata.copy()
    del lacking.obs["dose"]
    other.obs["dose"] = other.obs["dose"].astype(str)
    paths = [write(adata), write(lacking, "b.h5ad"), write(other, "c.h5ad")]

    with pytest.raises(KeyError, match="dose"):
        CellFiles(paths[:2], **KEYS)
    with pytest.raises(ValueError, match="dose"):
        CellFiles(paths[::2], **KEYS)
    with pytest.raises(ValueError, match="cell_type"):
        CellFiles([paths[0], write(adata, "d.h5ad")], continuous_condition_keys=["cell_type"])
    with pytest.raises(TypeError, match="condition_keys"):
        CellFiles(paths[0], condition_keys="cell_type")
    with pytest.raises(KeyError, match="layer"):
        CellFiles(paths[0], layer="raw")
    adata.obsm["dose"] = np.ones((96, 2))
    with pytest.raises(ValueError, match="dose"):
        CellFiles(write(adata, "d.h5ad"), **KEYS)


WHOLE, DECIMAL, LETTERS = [1, 2, 2], [1.0, 2.5, 2.5], ["a", "b", "b"]
COLUMNS = {
    "whole": pd.Series(WHOLE),
    "short": pd.Series(WHOLE, dtype=np.int32),
    "whole classes": pd.Series(WHOLE, dtype="category"),
    "nullable whole": pd.Series(WHOLE, dtype="Int64"),
    "decimal": pd.Series(DECIMAL),
    "decimal classes": pd.Series(DECIMAL, dtype="category"),
    "truth": pd.Series([True, False, True]),
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
        with anndata.settings.override(allow_write_nullable_strings=True):
            return [written(number, kind) for number, kind in enumerate(kinds)]

    def written(number, kind):
        cells = adata[:3].copy()
        cells.obs["key"] = COLUMNS[kind].array
        return write(cells, f"{number}.h5ad")

    return files


@pytest.mark.parametrize(
    ("kinds", "classes"),
    [
        (("whole", "short"), [1, 2]),
        (("whole", "whole classes"), [1, 2]),
        (("short", "whole classes"), [1, 2]),
        (("nullable whole", "whole classes"), [1, 2]),
        (("whole", "nullable whole"), [1, 2]),
        (("text", "other text"), ["a", "b", "c"]),
        (("text classes", "nullable text"), ["a", "b"]),
        (("nullable text", "other text"), ["a", "b", "c"]),
        (("nullable text", "nullable text"), ["a", "b"]),
    ],
)
def test_classes_of_one_kind_are_the_same_however_files_store_them(columns_in_files, kinds, classes):
    (key,) = CellFiles(columns_in_files(*kinds), condition_keys=["key"]).by_key

    assert list(key.values) == classes
    assert {type(value) for value in key.values} == {type(classes[0])}


@pytest.mark.parametrize("kinds", [("whole", "nullable text"), ("text", "whole classes")])
def test_classes_of_different_kinds_are_refused(columns_in_files, kinds):
    with pytest.raises(ValueError, match="key"):
        CellFiles(columns_in_files(*kinds), condition_keys=["key"])


@pytest.mark.parametrize("unlabeled", ["nothing", "no class"])
@pytest.mark.parametrize(("kind", "classes"), [("text", ["a", "b"]), ("whole", [1, 2]), ("steps", ["high", "low"])])
def test_a_file_without_labels_goes_with_labels_of_any_kind(columns_in_files, kind, classes, unlabeled):
    paths = columns_in_files(unlabeled, kind)
    (key,) = CellFiles(paths, condition_keys=["key"], unlabeled_category="?").by_key
    assert list(key.values) == classes


def test_numbers_may_be_whole_in_one_file_only(columns_in_files):
    paths = columns_in_files("whole", "decimal")

    cells = CellFiles(paths, continuous_condition_keys=["key"])
    again = CellFiles.like(cells.registry, paths)

    assert np.allclose(cells.codes[:, 0], pd.Series(WHOLE + DECIMAL).pipe(lambda x: (x - x.mean()) / x.std(ddof=0)))
    assert np.array_equal(again.codes, cells.codes)


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        (["grades"], (["low", "high"], True)),
        (["grades", "grades"], (["low", "high"], True)),
        (["steps", "steps"], (["low", "high"], False)),
        (["steps", "grades"], (["high", "low"], False)),
        (["grades", "other grades"], (["high", "low"], False)),
        (["grades", "text classes"], (["a", "b", "high", "low"], False)),
    ],
)
def test_ordered_classes_stay_in_order_if_it_is_that_of_all_files(columns_in_files, kinds, found):
    (key,) = CellFiles(columns_in_files(*kinds), condition_keys=["key"]).by_key
    assert (list(key.values), key.ordered) == found


def test_anything_but_an_anndata_raises(adata, write, tmp_path):
    text, folder = tmp_path / "text.h5ad", tmp_path / "empty.zarr"
    text.write_text("no")
    folder.mkdir()
    csc = adata.copy()
    csc.X = csc.X.tocsc()
    only_layer = anndata.AnnData(obs=adata.obs, var=adata.var, layers={"raw": adata.X})

    with pytest.raises(FileNotFoundError, match="There is no file"):
        CellFiles(tmp_path / "none.h5ad")
    with pytest.raises(ValueError, match=r"text\.h5ad"):
        CellFiles(text)
    with pytest.raises(ValueError, match=r"empty\.zarr"):
        CellFiles(folder)
    with pytest.raises(ValueError, match="csc_matrix"):
        CellFiles([write(adata[:, 1:], "fewer.h5ad"), write(csc, "csc.h5ad")])  # before genes that differ
    with pytest.raises(KeyError, match="layers"):
        CellFiles(write(only_layer, "layers.h5ad"))
    with pytest.raises(ValueError, match="`paths` is empty"):
        CellFiles([])
    with pytest.raises(ValueError, match="window_size"):
        CellFiles(write(adata), window_size=0)


def test_files_can_be_replaced_once_they_are_refused_or_closed(adata, write):
    csc = adata.copy()
    csc.X = csc.X.tocsc()
    path = write(csc)

    with pytest.raises(ValueError, match="csc_matrix") as refused:  # which keeps the frames, as a notebook does
        CellFiles(path, **KEYS)
    cells = CellFiles(write(adata), **KEYS)
    cells.close()
    write(adata)

    assert refused.traceback
    for read in (lambda: cells.digest, lambda: cells.match_labels(["cell_type"]), cells.check):
        with pytest.raises(ValueError, match="files were closed; open them again"):
            read()


def test_the_same_file_is_not_taken_twice(adata, write, tmp_path, monkeypatch):
    path, other = write(adata, "one.h5ad"), write(adata, "other.h5ad")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link.h5ad").symlink_to("one.h5ad")
    (tmp_path / "folder").mkdir()

    for again in (path, "one.h5ad", "./one.h5ad", "~/one.h5ad", "folder/../one.h5ad", "link.h5ad"):
        with pytest.raises(ValueError, match="paths.*one.h5ad"):
            CellFiles([path, other, again])
    assert CellFiles([path, other]).n_cells == 2 * adata.n_obs


def test_files_may_store_numbers_in_single_and_in_double_precision(adata, write):
    adata.obs["dose"] = np.resize([0.1, 0.3], adata.n_obs)
    other = adata.copy()
    other.obs["dose"] = adata.obs["dose"].astype("float32")

    cells = CellFiles([write(adata, "double.h5ad"), write(other, "single.h5ad")], condition_keys=["dose"])

    np.testing.assert_array_equal(cells.codes, np.resize([0, 1], 2 * adata.n_obs)[:, None])


def cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


def old(path):
    """Leave out what anndata 0.7 did not write."""
    with h5py.File(path, "a") as file:
        for name in ("_index", "cell_type"):
            del file["obs"][name].attrs["encoding-type"]


def longer(path):
    with h5py.File(path, "a") as file:
        del file["X"]
        anndata.io.write_elem(file, "X", np.ones((file["obs/cell_type/codes"].shape[0] + 10, 20), "float32"))


def without_x(path):
    with h5py.File(path, "a") as file:
        del file["X"]


@pytest.mark.parametrize("damage", [cut, old, longer, without_x])
def test_a_damaged_file_is_named(adata, write, tmp_path, damage):
    whole, path = write(adata, "whole.h5ad"), tmp_path / "damaged.h5ad"
    adata.write_h5ad(path, compression="gzip")
    damage(path)

    with pytest.raises((ValueError, KeyError), match=r"damaged\.h5ad"):
        CellFiles([whole, path], condition_keys=["cell_type"])


def replaced_by_rename(path, new):
    path.rename(path.with_name("old"))
    new.rename(path)


def replaced_in_place(path, new):
    if new.is_dir():
        shutil.copytree(new, path, dirs_exist_ok=True)
    else:
        shutil.copyfile(new, path)


def removed(path, new):
    path.rename(path.with_name("old"))


@pytest.mark.parametrize("change", [replaced_by_rename, replaced_in_place, removed])
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_files_that_are_replaced_are_noticed_when_they_are_read(adata, write, suffix, change):
    cells = CellFiles(path := write(adata, f"cells{suffix}"), **KEYS)
    cells.read_values(np.arange(3))
    batches = iter(cells.loader(None, 16))
    next(batches)

    change(path, write(adata[:, ::-1].copy(), f"new{suffix}"))

    for read in (cells.check, lambda: cells.digest, lambda: cells.read([0]), lambda: cells.matrix.read(np.arange(3))):
        with pytest.raises(ValueError, match=f"cells{suffix} was replaced"):
            read()
