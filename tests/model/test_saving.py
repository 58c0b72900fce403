"""Saving and loading: whole, safe, and enough to generate in a fresh process."""

from __future__ import annotations

import errno
import gc
import json
import os
import pickle
import resource
import weakref
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from builders import Canary, same_cells

from scgen_diffusion.model import SCLDM, SCRDIT, WBDIT, _model_file, load
from scgen_diffusion.module import SCLDMArchitecture

FRESH = """
import json, sys
import torch
from scgen_diffusion import model as models
torch.set_num_threads(1)
folder, requests = sys.argv[1], json.loads(sys.argv[2])
for name, requests_of_model in requests.items():
    model = getattr(models, name).load(f"{folder}/{name}", adata=False, accelerator="cpu")
    assert model.adata is None
    for number, request in enumerate(requests_of_model):
        model.generate(**request).write_h5ad(f"{folder}/{name}_{number}.h5ad")
"""


def test_a_fresh_process_without_cells_generates_the_same(make_trained, trained, run_apart, tmp_path):
    of_seed, of_values = {"n_cells": 20, "seed": 7}, {"condition": {"cell_type": ["NK", "B cell"], "dose": [1, 10]}}
    of_all = [{**of_seed, "counts": True, "library_size": size} for size in ("normal", "latent", 300)]
    of_all += [{**of_values, "seed": 7, "guidance_scale": 2.0}]
    of_flows = [{**of_seed, "sampler": sampler} for sampler in ("euler", "midpoint", "heun")]
    of_diffusion = [{**of_seed, "sampler": sampler, "n_steps": 5} for sampler in ("dpm_solver", "ddim", "ddpm")]
    models = [trained, *(make_trained(cls=cls) for cls in (SCRDIT, WBDIT))]  # one process, as it is slow to start
    requests = {type(m).__name__: of_all + (of_flows if m is trained else of_diffusion) for m in models}
    for model in models:
        model.save(tmp_path / type(model).__name__)

    run_apart(FRESH, tmp_path, json.dumps(requests))

    for model in models:
        name = type(model).__name__
        for number, request in enumerate(requests[name]):
            there, here = anndata.read_h5ad(tmp_path / f"{name}_{number}.h5ad"), model.generate(**request)
            assert same_cells(there, here), (name, request)
            assert ("log1p" in there.uns) == ("log1p" in here.uns)


def test_a_loaded_model_is_the_saved_one_and_can_be_saved_again(trained_any, tmp_path):
    trained_any.save(tmp_path / "first")
    type(trained_any).load(tmp_path / "first").save(tmp_path / "again")

    for name in ("first", "again"):
        loaded = type(trained_any).load(tmp_path / name)
        assert loaded.adata is None
        assert loaded.is_trained
        assert loaded.architecture == trained_any.architecture
        assert same_cells(loaded.generate(10, seed=3), trained_any.generate(10, seed=3))
        pd.testing.assert_frame_equal(loaded.generate(1, seed=0).var, trained_any.generate(1, seed=0).var)
        assert list(loaded.history) == list(trained_any.history)
        for key, frame in trained_any.history.items():
            pd.testing.assert_frame_equal(loaded.history[key], frame)


def test_a_trained_model_can_be_pickled(make_trained):
    trained = make_trained()  # with its trainer, which a loaded model has not

    copy = pickle.loads(pickle.dumps(trained))

    assert same_cells(copy.generate(10, seed=3), trained.generate(10, seed=3))


def test_methods_that_need_cells_ask_for_them_after_loading(trained, saved_model):
    loaded = SCLDM.load(saved_model)

    with pytest.raises(ValueError, match="give `adata`"):
        loaded.get_latent_representation()
    np.testing.assert_allclose(
        loaded.get_latent_representation(trained.adata), trained.get_latent_representation(), rtol=1e-6
    )


def test_cells_given_to_a_model_without_cells_do_not_become_its_own(trained, saved_model, quick):
    loaded = SCLDM.load(saved_model)

    loaded.get_latent_representation(trained.adata)

    assert loaded.adata is None
    with pytest.raises(ValueError, match="give `adata`"):
        loaded.get_latent_representation()
    with pytest.raises(ValueError, match="no cells to train on"):
        loaded.train(1, **quick)
    again = loaded.get_latent_representation(trained.adata.copy())  # registered like the first ones
    np.testing.assert_allclose(again, trained.get_latent_representation(), rtol=1e-6)


NK = {"cell_type": "NK"}
READERS = {
    "predictions": lambda model, cells: model.predict_perturbation(cells, NK, n_steps=2).obs["dose"].to_numpy(float),
    "latents": lambda model, cells: model.get_latent_representation(cells),
    "reconstructions": lambda model, cells: model.get_reconstruction(cells, sample=False).X,
    "conditions": lambda model, cells: model.conditions.encode(
        model.generate(condition=cells, seed=0, n_steps=1), len(cells)
    ),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("with_cells", [False, True])
def test_copies_of_cells_that_a_model_has_read_are_cells_like_others(trained, saved_model, read, with_cells):
    loaded = SCLDM.load(saved_model, adata=trained.adata.copy() if with_cells else False)
    cells = trained.adata[:20].copy()
    expected, order = read(loaded, cells), np.random.default_rng(0).permutation(20)

    for rows in (np.arange(20), np.arange(5), order):
        for others in (cells[rows].copy(), cells[rows], cells[rows].copy()[:].copy()):
            np.testing.assert_allclose(read(loaded, others), expected[rows], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(read(loaded, cells), expected)


def test_a_copy_of_cells_that_a_model_has_read_can_become_its_own(trained, saved_model):
    loaded, cells = SCLDM.load(saved_model), trained.adata[:20].copy()
    loaded.predict_perturbation(cells, NK, seed=0)

    loaded.adata = cells.copy()

    assert loaded.get_latent_representation().shape[0] == 20


def test_cells_can_build_a_model_after_another_has_read_a_copy(saved_model, make_cells, tiny):
    cells = make_cells()
    SCLDM.setup_anndata(cells, condition_keys=["cell_type", "dose"])
    SCLDM.load(saved_model).predict_perturbation(cells.copy(), NK, seed=0)

    assert SCLDM(cells, **tiny).adata is cells


LOADERS = {
    "load": SCLDM.load,
    "query": lambda folder, cells: SCLDM.load_query_data(cells, folder, trainable="all", accelerator="cpu"),
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_cells_can_build_a_model_after_another_was_loaded_with_a_copy(saved_model, make_cells, tiny, load):
    cells = make_cells()
    SCLDM.setup_anndata(cells, condition_keys=["cell_type"])  # not as the saved model was set up

    loaded = load(saved_model, cells.copy())

    model = SCLDM(cells, **tiny)
    assert model.adata is cells
    assert list(model.conditions.keys) == ["cell_type"]
    assert loaded.get_latent_representation(cells).shape[0] == loaded.get_latent_representation().shape[0] == 96


def test_a_model_without_cells_keeps_none_of_those_that_it_reads(trained, saved_model):
    loaded, given = SCLDM.load(saved_model), sp.csr_matrix(trained.adata.X)
    kept = weakref.ref(given)

    loaded.get_latent_representation(anndata.AnnData(given, var=trained.adata.var[[]]))
    del given
    gc.collect()

    assert kept() is None


def test_a_model_whose_cells_were_replaced_can_be_saved_and_loaded(trained, saved_model, make_cells, tmp_path):
    model = SCLDM.load(saved_model, adata=trained.adata.copy())

    model.adata = make_cells(40, seed=1)
    model.save(tmp_path / "m", save_anndata=True)

    loaded = SCLDM.load(tmp_path / "m")
    assert loaded.adata.n_obs == 40
    assert same_cells(loaded.generate(10, seed=3), trained.generate(10, seed=3))


def test_cells_that_replace_a_models_own_need_its_genes_in_order(trained, saved_model):
    model, cells = SCLDM.load(saved_model, adata=trained.adata.copy()), trained.adata.copy()

    for others, words in [
        (cells[:, ::-1].copy(), "another order"),
        (cells[:, 1:].copy(), "1 .'gene_0'. missing"),
        (cells.X, "found ndarray"),
    ]:
        with pytest.raises((TypeError, ValueError), match=words):
            model.adata = others
    assert model.adata.var_names.equals(cells.var_names)


@pytest.mark.parametrize("loads_with_cells", [True, False])
def test_only_the_same_cells_in_the_same_order_keep_the_split(trained, saved_model, loads_with_cells):
    def attached(cells):
        model = SCLDM.load(saved_model, adata=cells if loads_with_cells else False)
        if not loads_with_cells:
            model.adata = cells
        return model

    same = attached(trained.adata.copy())
    with pytest.warns(UserWarning, match="or another order, so their split is gone"):
        reordered = attached(trained.adata[::-1].copy())

    assert same._split_fits
    assert same.validation_indices_.tolist() == trained.validation_indices_.tolist()
    assert reordered.train_indices_ is reordered.validation_indices_ is reordered.test_indices_ is None


def test_a_model_of_before_keeps_its_split_for_as_many_cells(trained, tmp_path):
    trained.save(tmp_path / "m")
    content = torch.load(tmp_path / "m" / "model.pt")
    del content["attr_dict"]["split_digest_"]
    torch.save(content, tmp_path / "m" / "model.pt")

    loaded = SCLDM.load(tmp_path / "m", adata=trained.adata[::-1].copy())

    assert loaded.validation_indices_.tolist() == trained.validation_indices_.tolist()


def test_cells_can_be_saved_with_the_model(trained, tmp_path):
    trained.save(tmp_path / "m", save_anndata=True, prefix="my_")

    loaded = SCLDM.load(tmp_path / "m", prefix="my_")

    np.testing.assert_array_equal(loaded.adata.X, trained.adata.X)
    np.testing.assert_array_equal(loaded.get_latent_representation(), trained.get_latent_representation())
    assert SCLDM.load(tmp_path / "m", adata=False, prefix="my_").adata is None


def test_a_model_loaded_with_its_cells_can_be_trained_on(trained_any, tmp_path, quick):
    trained_any.save(tmp_path / "m", save_anndata=True)

    loaded = type(trained_any).load(tmp_path / "m")
    loaded.train(1, **quick)

    assert loaded.generate(3, seed=0).n_obs == 3


def test_cells_of_other_genes_are_refused_by_name(trained, saved_model):
    with pytest.raises(ValueError, match="1 .'gene_3'. missing"):
        SCLDM.load(saved_model, adata=trained.adata[:, trained.adata.var_names != "gene_3"].copy())
    with pytest.raises(ValueError, match="another order"):
        SCLDM.load(saved_model, adata=trained.adata[:, ::-1].copy())


def test_cells_without_a_condition_column_are_refused_by_name(trained, saved_model):
    adata = trained.adata.copy()
    del adata.obs["dose"]

    with pytest.raises(KeyError, match="'dose'"):
        SCLDM.load(saved_model, adata=adata)


def test_an_existing_folder_is_not_overwritten_unless_asked(trained, tmp_path):
    trained.save(tmp_path / "m")
    before = (tmp_path / "m" / "model.pt").read_bytes()

    with pytest.raises(ValueError, match="without '/', but found 'sub/x_'"):
        trained.save(tmp_path / "other", prefix="sub/x_")
    with pytest.raises(ValueError, match="already exists.*overwrite=True"):
        trained.save(tmp_path / "m")
    assert (tmp_path / "m" / "model.pt").read_bytes() == before
    trained.save(tmp_path / "m", overwrite=True)


@contextmanager
def full_disk():
    """Let no file grow beyond 10 kB, as on a disk that is full; pytest's own log neither, so only for a moment."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_cannot_be_written_is_named(make_model, quick, tmp_path):
    where = r"Writing the checkpoint autoencoder.ckpt in .* failed: File too large.*make the same call again to resume"
    with pytest.raises(OSError, match=where), full_disk():
        make_model().train(1, checkpoint_dir=tmp_path, **quick)


@pytest.mark.parametrize("folder", ["file", "file/folder"])
def test_a_file_in_the_way_of_checkpoints_is_named_before_training(make_model, quick, tmp_path, folder):
    (tmp_path / "file").write_text("mine")
    model = make_model()

    with pytest.raises(NotADirectoryError, match="checkpoint_dir"):
        model.train(1, checkpoint_dir=tmp_path / folder, **quick)
    assert model.trained_stages_ == []


def test_backed_cells_stay_those_of_their_file(make_model, make_cells, tmp_path):
    make_cells(matrix=sp.csr_matrix).write_h5ad(tmp_path / "cells.h5ad")
    cells = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")

    make_model(cells).save(tmp_path / "m", save_anndata=True)

    assert cells.filename == tmp_path / "cells.h5ad"
    assert cells[:5].to_memory().n_obs == 5
    assert anndata.read_h5ad(tmp_path / "m" / "adata.h5ad").n_obs == cells.n_obs


def test_a_save_that_fails_names_the_folder_and_leaves_no_new_one(trained, tmp_path):
    with (
        pytest.raises(OSError, match=r"Writing new in .*File too large"),
        full_disk(),
    ):
        trained.save(tmp_path / "new")

    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_a_file_or_may_not_be_written_is_named(trained, tmp_path, monkeypatch):
    (tmp_path / "m").write_text("mine")
    with pytest.raises(NotADirectoryError, match="m is a file. `dir_path` must be a folder"):
        trained.save(tmp_path / "m", overwrite=True)
    assert (tmp_path / "m").read_text() == "mine"
    monkeypatch.setattr("pathlib.Path.mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EACCES, "")))
    with pytest.raises(OSError, match="failed: Permission denied. Allow writing there, or choose another folder"):
        trained.save(tmp_path / "new")


def test_a_save_that_fails_leaves_what_was_there(trained, tmp_path):
    trained.save(tmp_path / "m", save_anndata=True)
    before = {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()}

    with pytest.raises(OSError, match="Writing model.pt in"), full_disk():
        trained.save(tmp_path / "m", overwrite=True)

    assert {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()} == before


def save_and_be_killed(model, folder, n_steps):
    """Save in another process, which dies after some steps; return its exit code."""
    if process := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    steps = iter(range(n_steps))

    def dying(method):
        return lambda *args, **options: os._exit(9) if next(steps, None) is None else method(*args, **options)

    for name in ("rename", "replace", "unlink", "mkdir"):
        setattr(Path, name, dying(getattr(Path, name)))
    os.mkdir = dying(os.mkdir)
    code = 1
    try:
        model.save(folder, save_anndata=True, overwrite=True)
        code = 0
    finally:
        os._exit(code)


@pytest.mark.filterwarnings("ignore:.*use of fork")
@pytest.mark.parametrize("is_there", [True, False])
def test_a_save_that_is_killed_leaves_no_cells_of_another_model(make_model, make_cells, tmp_path, is_there):
    new, old, codes = make_model(make_cells(40, seed=1)), make_model(make_cells()), []
    while not codes or codes[-1]:
        if is_there:
            old.save(tmp_path / "m", save_anndata=True, overwrite=True)
        codes.append(save_and_be_killed(new, tmp_path / "m", len(codes)))
        if (tmp_path / "m").exists():
            loaded = SCLDM.load(tmp_path / "m")
            assert loaded.adata is None or loaded.adata.n_obs == loaded.summary_stats.n_cells

    assert set(codes) == {9, 0}
    assert loaded.adata.n_obs == 40
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"model.pt", "adata.h5ad"}


def test_a_link_in_the_folder_is_replaced_and_its_file_stays(trained, tmp_path):
    trained.save(tmp_path / "m", save_anndata=True)
    (tmp_path / "m" / "adata.h5ad").rename(tmp_path / "atlas.h5ad")
    (tmp_path / "m" / "adata.h5ad").symlink_to(tmp_path / "atlas.h5ad")
    atlas = (tmp_path / "atlas.h5ad").stat()

    trained.save(tmp_path / "m", save_anndata=True, overwrite=True)

    assert (tmp_path / "atlas.h5ad").stat() == atlas
    assert not (tmp_path / "m" / "adata.h5ad").is_symlink()


def test_cells_that_were_saved_earlier_are_not_those_of_the_model_that_replaces_it(trained, make_model, tmp_path):
    make_model().save(tmp_path / "m", save_anndata=True)
    (tmp_path / "m" / "README.md").write_text("mine")

    trained.save(tmp_path / "m", overwrite=True)

    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == ["README.md", "model.pt"]
    assert SCLDM.load(tmp_path / "m").adata is None


def test_the_model_of_cells_that_cannot_be_removed_is_not_replaced(trained, make_model, tmp_path):
    make_model().save(tmp_path / "m")
    before = (tmp_path / "m" / "model.pt").read_bytes()
    (tmp_path / "m" / "adata.h5ad").mkdir()

    with pytest.raises(OSError, match="adata.h5ad"):
        trained.save(tmp_path / "m", overwrite=True)

    assert (tmp_path / "m" / "model.pt").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["adata.h5ad", "model.pt"]


def test_cells_that_a_model_has_not_cannot_be_saved(saved_model, tmp_path):
    with pytest.raises(ValueError, match="no cells in memory"):
        SCLDM.load(saved_model).save(tmp_path / "m", save_anndata=True)


def named(cells, name):
    cells.obs.index.name = name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda cells: cells.obs.insert(0, "note", pd.date_range("2024", periods=96)), "'note' to /obs"),
        (lambda cells: cells.obs.insert(0, "note", pd.arrays.SparseArray([0.5, 0] * 48)), "'note' to /obs"),
        (lambda cells: cells.obs.insert(0, "note", [1, "one"] * 48), "'note' to /obs"),
        (lambda cells: cells.var.insert(0, "day", pd.Timestamp("2024-01-01")), "'day' to /var"),
        (lambda cells: cells.obs.insert(0, "_index", 1), "'_index' is a reserved name.*'obs'"),
        (lambda cells: cells.obs.insert(0, 3, 1), "3 of type.*'obs'"),
        (lambda cells: named(cells, 0), "0 of type.*'obs'"),
        (lambda cells: named(cells, "dose"), "'dose'.*also used by a column.*'obs'"),
        (lambda cells: cells.uns.update(made={"by": print}), "'by' to /uns/made"),
    ],
)
def test_what_a_file_cannot_hold_is_named_with_the_reason_and_nothing_is_written(
    make_cells, make_model, tmp_path, change, words
):
    model = make_model(cells := make_cells())
    model.save(tmp_path / "m", save_anndata=True)
    before = {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()}
    change(cells)

    for folder in ("m", "new"):
        with pytest.raises(TypeError, match=words):
            model.save(tmp_path / folder, save_anndata=True, overwrite=True)

    assert list(tmp_path.iterdir()) == [tmp_path / "m"]
    assert {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: setattr(cells, "X", cells.X / 2), "not whole numbers"),
        (lambda cells: cells.obs.pop("cell_type"), "'cell_type'"),
        (lambda cells: setattr(cells.obs, "cell_type", cells.obs["cell_type"].cat.rename_categories(str.upper)), "NK"),
        (lambda cells: cells._inplace_subset_var(cells.var_names != "gene_3"), "1 .'gene_3'. missing"),
    ],
)
def test_cells_that_were_changed_in_place_are_not_saved(make_model, make_cells, tmp_path, change, message):
    model = make_model(cells := make_cells())
    change(cells)

    with pytest.raises(ValueError, match=rf"`load` would refuse these cells: .*{message}.*`save_anndata` out"):
        model.save(tmp_path / "m", save_anndata=True)
    assert list(tmp_path.iterdir()) == []
    model.save(tmp_path / "m")
    cells.write_h5ad(tmp_path / "m" / "adata.h5ad")
    with pytest.raises((KeyError, ValueError), match=rf"{message}.*`adata=False`"):
        SCLDM.load(tmp_path / "m")


def test_a_misspelt_argument_is_refused(trained, tmp_path):
    with pytest.raises(TypeError, match=r"`save` got 'save_adata', .* closest first: 'save_anndata'"):
        trained.save(tmp_path / "m", save_adata=True)
    assert list(tmp_path.iterdir()) == []


def test_a_path_may_begin_with_the_home_folder(make_model, quick, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = make_model()

    model.train_autoencoder(1, checkpoint_dir="~/checkpoints", **quick)
    model.save("~/model")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "model"]
    assert SCLDM.load("~/model").trained_stages_ == ["autoencoder"]


@pytest.mark.parametrize("load", [SCLDM.load, load])
def test_true_for_cells_is_refused_and_says_what_is_allowed(saved_model, load):
    with pytest.raises(TypeError, match=r"None .*False .*found True"):
        load(saved_model, adata=True)


def test_cells_that_were_not_saved_with_a_model_are_kept(trained, make_cells, tmp_path):
    make_cells().write_h5ad(tmp_path / "adata.h5ad")
    before = (tmp_path / "adata.h5ad").read_bytes()

    for save_anndata in (False, True):
        with pytest.raises(ValueError, match=r"adata\.h5ad was not saved with a model"):
            trained.save(tmp_path, overwrite=True, save_anndata=save_anndata)
    trained.save(tmp_path, overwrite=True, prefix="mine-")

    assert (tmp_path / "adata.h5ad").read_bytes() == before


@pytest.mark.parametrize("error", [MemoryError(), PermissionError(13, "Permission denied")], ids=repr)
@pytest.mark.parametrize(("module", "name"), [(anndata, "read_h5ad"), (_model_file, "read_torch")])
def test_errors_of_the_system_are_not_taken_for_damage(trained, tmp_path, monkeypatch, module, name, error):
    trained.save(tmp_path / "model", save_anndata=True)

    def read(path):
        raise error

    monkeypatch.setattr(module, name, read)
    with pytest.raises(type(error)):
        type(trained).load(tmp_path / "model")


def test_damaged_cells_beside_a_model_are_named(trained, tmp_path):
    trained.save(tmp_path / "m", save_anndata=True)
    path = tmp_path / "m" / "adata.h5ad"
    path.write_bytes(path.read_bytes()[:2_000])

    with pytest.raises(ValueError, match=r"adata\.h5ad is damaged"):
        SCLDM.load(tmp_path / "m")
    assert SCLDM.load(tmp_path / "m", adata=False).is_trained


def test_a_missing_model_is_reported(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no saved model at {folder}: model.pt is missing"):
            SCLDM.load(folder)
    with pytest.raises(FileNotFoundError, match=f"no saved model at {tmp_path}: mymodel.pt is missing"):
        SCLDM.load(tmp_path, prefix="my")


def folder_with(tmp_path, content):
    tmp_path.joinpath("model.pt").write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("name", ["var_", "combinations_", "combination_sizes_"])
def test_a_file_without_what_every_model_has_is_damaged(saved_model, tmp_path, name):
    content = torch.load(saved_model / "model.pt", weights_only=True)
    content["attr_dict"][name] = None
    torch.save(content, tmp_path / "model.pt")

    with pytest.raises(ValueError, match=r"model\.pt is damaged"):
        SCLDM.load(tmp_path)


def claim_genes(content):
    content["attr_dict"]["registry_"]["field_registries"]["X"]["summary_stats"]["n_vars"] = 2 * 10**9


def claim_width(content):
    content["attr_dict"]["init_params_"]["kwargs"]["architecture"]["width"] = 10**6


def claim_layers(content):
    content["attr_dict"]["init_params_"]["kwargs"]["architecture"]["n_layers"] = 10**9


def repeat_combinations(content):
    content["attr_dict"]["combinations_"] = torch.zeros(1, 2).expand(10**11, 2)


def repeat_weights(content):
    content["model_state_dict"]["library_size.means"] = torch.zeros(1).expand(10**12)


@pytest.mark.parametrize("claim", [claim_genes, claim_width, claim_layers, repeat_combinations, repeat_weights])
def test_a_file_that_claims_to_be_larger_than_it_is_is_refused_before_memory_is_taken(saved_model, tmp_path, claim):
    content = torch.load(saved_model / "model.pt", weights_only=True)
    claim(content)
    torch.save(content, tmp_path / "model.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(ValueError, match=r"model\.pt is damaged"):
        SCLDM.load(tmp_path)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("load", [SCLDM.load, SCLDM.load_registry, load])
def test_the_file_of_a_model_instead_of_its_folder_says_which_folder(saved_model, load):
    with pytest.raises(FileNotFoundError, match=rf"model\.pt is a file; give the folder {saved_model}\.$"):
        load(saved_model / "model.pt")


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda whole: whole[:10],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-10],
        lambda whole: whole[: len(whole) // 2] + bytes(64) + whole[len(whole) // 2 + 64 :],  # torch would load it
        lambda _: b"eggs and spam",
        lambda _: b"\x80\x02",
        lambda _: bytes(1000),
    ],
)
def test_a_file_that_is_cut_or_something_else_is_named(saved_model, tmp_path, change):
    content = change((saved_model / "model.pt").read_bytes())

    with pytest.raises(ValueError, match=r"model\.pt is damaged or not a model file"):
        SCLDM.load(folder_with(tmp_path, content))


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))], ids=["torch", "pickle"]
)
@pytest.mark.parametrize(
    "wrap", [lambda c: c, lambda c: {"format": "scgen_diffusion-2", "attr_dict": c}], ids=["bare", "inside"]
)
def test_code_in_a_file_is_refused_and_never_runs(tmp_path, save, wrap):
    canary = tmp_path / "canary"
    save(wrap(Canary(canary)), tmp_path / "model.pt")

    with pytest.raises(ValueError, match=r"model\.pt is damaged or not a model file"):
        SCLDM.load(tmp_path)

    assert not canary.exists()


@pytest.mark.parametrize("content", [{}, {"format": "other"}, [1], torch.ones(2), "text"], ids=repr)
def test_a_file_that_is_not_ours_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")

    with pytest.raises(ValueError, match="not written by scgen-diffusion"):
        SCLDM.load(tmp_path)


def test_a_file_of_ours_that_lacks_parts_is_refused(saved_model, tmp_path):
    content = torch.load(saved_model / "model.pt", weights_only=True)
    for part in ("attr_dict", "model_state_dict"):
        torch.save({key: value for key, value in content.items() if key != part}, tmp_path / "model.pt")
        with pytest.raises(ValueError, match=r"model\.pt"):
            SCLDM.load(tmp_path)


def test_a_model_of_another_class_is_refused(saved_model):
    class Other(SCLDM):
        """Another model."""

    with pytest.raises(ValueError, match="class 'SCLDM', but Other.load was called"):
        Other.load(saved_model)


def test_an_untrained_model_can_be_saved_and_still_cannot_generate(make_model, any_class, tmp_path):
    model = make_model(cls=any_class)
    model.save(tmp_path / "m")

    for untrained in (model, any_class.load(tmp_path / "m")):
        with pytest.raises(RuntimeError, match=r"call train\(\) first"):
            untrained.generate(2)


@pytest.mark.parametrize("keys", [["dose"], ["treated"], ["dose", "treated", "cell_type"], []], ids=str)
def test_categories_keep_their_type_through_a_file(make_trained, tmp_path, keys):
    model = make_trained(condition_keys=keys)
    model.save(tmp_path / "m")
    loaded = SCLDM.load(tmp_path / "m")

    for key in keys:
        before, after = model.generate(4, seed=0).obs[key], loaded.generate(4, seed=0).obs[key]
        pd.testing.assert_series_equal(before, after)
        value = model.adata.obs[key].iloc[5]
        assert set(loaded.generate(3, {key: value}, seed=0).obs[key]) == {value}
    assert same_cells(model.generate(4, seed=0), loaded.generate(4, seed=0))


def test_dates_as_conditions_are_refused(make_cells):
    adata = make_cells()
    adata.obs["day"] = pd.to_datetime(np.where(adata.obs["treated"], "2024-01-01", "2024-02-01"))

    with pytest.raises(ValueError, match="'day'"):
        SCLDM.setup_anndata(adata, condition_keys=["day"])


def test_numpy_numbers_as_options_survive_a_file(make_trained, tmp_path):
    make_trained(ema_decay=np.float64(0.9)).save(tmp_path / "m")

    assert SCLDM.load(tmp_path / "m").architecture.ema_decay == 0.9


def test_keys_from_an_array_survive_a_file(make_cells, tiny, tmp_path):
    adata = make_cells()
    SCLDM.setup_anndata(adata, condition_keys=np.array(["cell_type"]))
    SCLDM(adata, **tiny).save(tmp_path / "m")

    assert SCLDM.load(tmp_path / "m").conditions.keys == ["cell_type"]


def test_columns_of_var_survive_a_file(make_cells, make_trained, tmp_path):
    adata = make_cells()
    adata.var["chromosome"] = pd.Categorical(["X"] * 6 + ["Y"] * 6)
    adata.var["start"] = np.arange(12, dtype=np.int16)
    adata.var["gc"] = np.linspace(0, 1, 12, dtype=np.float32)
    adata.var["exons"] = pd.array([1, None] * 6, dtype="Int64")
    adata.var["coding"] = pd.array([True, None] * 6, dtype="boolean")
    adata.var["alias"] = pd.array(["text", None] * 6, dtype="string")
    adata.var["note"] = ["text", None] * 6
    adata.var.index.name = "gene"
    gaps = ["alias", "note"]  # become categories, which any anndata writes
    expected = adata.var.astype(dict.fromkeys(gaps, object)).astype(dict.fromkeys(gaps, "category"))
    adata.var["found"] = pd.to_datetime(["2024-01-01"] * 12)  # cannot be kept
    model = make_trained(adata)
    model.save(tmp_path / "m")

    cells = SCLDM.load(tmp_path / "m").generate(2, seed=0)

    pd.testing.assert_frame_equal(cells.var, expected)
    pd.testing.assert_frame_equal(model.generate(2, seed=0).var, expected)
    cells.write_h5ad(tmp_path / "cells.h5ad")


def test_all_options_are_saved_so_that_later_defaults_change_no_model(trained, tmp_path):
    trained.save(tmp_path / "model")

    options = load(tmp_path / "model").init_params_["kwargs"]["architecture"]

    assert set(options) == {field.name for field in fields(SCLDMArchitecture)}
