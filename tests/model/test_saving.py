"""Saving and loading: whole, safe, in scvi-tools' own layout, and enough to generate in a fresh process."""

import importlib
import inspect
import io
import json
import os
import pickle
from dataclasses import fields
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from builders import Canary, contents, full_disk, same_cells

from scgen_diffusion.model import SCLDM, SCRDIT, WBDIT, load
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
    of_all = [{**of_seed, "counts": True, "library_size": size} for size in (None, 300)]
    of_all += [{**of_values, "seed": 7, "guidance_scale": 2.0}]
    of_flows = [{**of_seed, "sampler": sampler} for sampler in ("euler", "midpoint")]
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

    copy = pickle.loads(pickle.dumps(trained_any))
    for loaded in (copy, *(type(trained_any).load(tmp_path / name) for name in ("first", "again"))):
        assert (loaded.adata is None) == (loaded is not copy)
        assert loaded.is_trained
        assert loaded.architecture == trained_any.architecture
        assert same_cells(loaded.generate(10, seed=3), trained_any.generate(10, seed=3))
        pd.testing.assert_frame_equal(loaded.generate(1, seed=0).var, trained_any.generate(1, seed=0).var)
        assert list(loaded.history) == list(trained_any.history)
        for key, frame in trained_any.history.items():
            pd.testing.assert_frame_equal(loaded.history[key], frame)


def test_cells_given_to_a_model_without_cells_do_not_become_its_own(trained, saved_model, quick, tmp_path):
    loaded = SCLDM.load(saved_model)

    for _ in range(2):
        for ask in (loaded.get_latent_representation, lambda: loaded.train(1, **quick)):
            with pytest.raises(ValueError, match="adata|cells"):
                ask()
        with pytest.raises(ValueError, match="cells"):
            loaded.save(tmp_path / "m", save_anndata=True)
        found = loaded.get_latent_representation(trained.adata.copy())
        np.testing.assert_allclose(found, trained.get_latent_representation(), rtol=1e-6)
    assert loaded.adata is None


@pytest.mark.parametrize("loads_with_cells", [True, False])
def test_only_the_same_cells_in_the_same_order_keep_the_split(trained, saved_model, loads_with_cells):
    def attached(cells):
        model = SCLDM.load(saved_model, adata=cells if loads_with_cells else False)
        if not loads_with_cells:
            model.adata = cells
        return model

    same, reordered = attached(trained.adata.copy()), attached(trained.adata[::-1].copy())

    assert same.validation_indices_.tolist() == trained.validation_indices_.tolist()
    assert reordered.train_indices_ is reordered.validation_indices_ is reordered.test_indices_ is None


def test_cells_can_be_saved_with_the_model_which_trains_on(trained_any, make_cells, quick, tmp_path):
    trained_any.save(tmp_path / "m", save_anndata=True, prefix="my_")
    cls = type(trained_any)

    loaded = cls.load(tmp_path / "m", prefix="my_")

    np.testing.assert_array_equal(loaded.adata.X, trained_any.adata.X)
    assert same_cells(loaded.generate(3, seed=0), trained_any.generate(3, seed=0))
    loaded.train(1, **quick)
    loaded.adata = make_cells(40, seed=1)
    loaded.save(tmp_path / "m", save_anndata=True, prefix="my_", overwrite=True)
    assert cls.load(tmp_path / "m", prefix="my_").adata.n_obs == 40
    path = tmp_path / "m" / "my_adata.h5ad"
    path.write_bytes(path.read_bytes()[:2_000])
    with pytest.raises(ValueError, match=r"adata\.h5ad is damaged"):
        cls.load(tmp_path / "m", prefix="my_")
    assert cls.load(tmp_path / "m", adata=False, prefix="my_").adata is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda cells: cells[:, cells.var_names != "gene_3"].copy(), "gene_3"),
        (lambda cells: cells[:, ::-1].copy(), "order"),
        (lambda cells: cells.X, "ndarray"),
        (lambda cells: anndata.AnnData(cells.X, cells.obs[["cell_type"]], cells.var), "dose"),
        (lambda cells: True, "adata|AnnData"),
    ],
)
def test_cells_that_do_not_fit_are_refused_by_name(trained, saved_model, change, named):
    model, others = SCLDM.load(saved_model, adata=trained.adata.copy()), change(trained.adata.copy())

    for load_model in (SCLDM.load, load):
        with pytest.raises((KeyError, TypeError, ValueError), match=named):
            load_model(saved_model, adata=others)
    with pytest.raises((KeyError, TypeError, ValueError), match=named):
        model.adata = others
    assert model.adata.var_names.equals(trained.adata.var_names)


def test_an_existing_folder_is_not_overwritten_unless_asked(trained, tmp_path):
    trained.save(tmp_path / "m")
    before = contents(tmp_path / "m")

    with pytest.raises(TypeError, match="save_adata"):
        trained.save(tmp_path / "other", save_adata=True)
    with pytest.raises(ValueError, match="overwrite"):
        trained.save(tmp_path / "m")
    assert contents(tmp_path / "m") == before
    trained.save(tmp_path / "m", overwrite=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError):
        trained.save(tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_checkpoint_that_cannot_be_written_is_named(make_model, quick, tmp_path):
    with pytest.raises(OSError, match="autoencoder.ckpt.*File too large"), full_disk():
        make_model().train(1, checkpoint_dir=tmp_path, **quick)


def test_a_save_that_fails_names_the_folder_and_leaves_what_was_there(trained, tmp_path):
    trained.save(tmp_path / "m", save_anndata=True)
    before = contents(tmp_path / "m")

    for folder, named in (("m", "model.pt"), ("new", "new")):
        with pytest.raises(OSError, match=f"{named}.*File too large"), full_disk():
            trained.save(tmp_path / folder, overwrite=True)

    assert contents(tmp_path / "m") == before
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]


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


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda cells: cells.obs.insert(0, "note", pd.date_range("2024", periods=96)), "note"),
        (lambda cells: cells.obs.insert(0, "note", [1, "one"] * 48), "note"),
        (lambda cells: cells.obs.insert(0, "_index", 1), "_index"),
        (lambda cells: cells.uns.update(made={"by": print}), "by"),
    ],
)
def test_what_a_file_cannot_hold_is_named_and_nothing_is_written(make_cells, make_model, tmp_path, change, named):
    model = make_model(cells := make_cells())
    model.save(tmp_path / "m", save_anndata=True)
    before = contents(tmp_path / "m")
    change(cells)

    for folder in ("m", "new"):
        with pytest.raises(Exception, match=named):  # anndata's own, of several types
            model.save(tmp_path / folder, save_anndata=True, overwrite=True)

    assert list(tmp_path.iterdir()) == [tmp_path / "m"]
    assert contents(tmp_path / "m") == before


def test_a_path_may_begin_with_the_home_folder(make_model, quick, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = make_model()

    model.train_autoencoder(1, checkpoint_dir="~/checkpoints", **quick)
    model.save("~/model")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "model"]
    assert SCLDM.load("~/model").trained_stages_ == ["autoencoder"]


def test_cells_that_were_not_saved_with_a_model_are_kept(trained, make_cells, tmp_path):
    make_cells().write_h5ad(tmp_path / "adata.h5ad")
    before = (tmp_path / "adata.h5ad").read_bytes()

    for save_anndata in (False, True):
        with pytest.raises(ValueError, match=r"adata\.h5ad was not saved with a model"):
            trained.save(tmp_path, overwrite=True, save_anndata=save_anndata)
    trained.save(tmp_path, overwrite=True, prefix="mine-")

    assert (tmp_path / "adata.h5ad").read_bytes() == before


def test_a_missing_model_is_reported(saved_model, tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path, saved_model / "model.pt"):
        for read in (SCLDM.load, SCLDM.load_registry, load):
            with pytest.raises(FileNotFoundError, match="model.pt"):
                read(folder)


def saved(value):
    torch.save(value, buffer := io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[: len(whole) // 2] + bytes(64) + whole[len(whole) // 2 + 64 :],  # torch would load it
        lambda _: b"eggs and spam",
        *(lambda _, value=value: saved(value) for value in ({}, {"format": "other"}, [1], "text")),
    ],
)
def test_a_file_that_is_cut_or_something_else_is_named(saved_model, tmp_path, change):
    (tmp_path / "model.pt").write_bytes(change((saved_model / "model.pt").read_bytes()))

    with pytest.raises(ValueError, match=r"model\.pt"):
        SCLDM.load(tmp_path)


def test_a_model_of_another_class_is_refused(saved_model):
    with pytest.raises(ValueError, match="SCLDM.*WBDIT"):
        WBDIT.load(saved_model)


def test_an_untrained_model_can_be_saved_and_still_cannot_generate(make_model, any_class, tmp_path):
    model = make_model(cls=any_class)
    model.save(tmp_path / "m")

    for untrained in (model, any_class.load(tmp_path / "m")):
        with pytest.raises(RuntimeError, match="train"):
            untrained.generate(2)


@pytest.mark.parametrize("keys", [["dose", "treated", "cell_type"], []], ids=str)
def test_categories_and_options_keep_their_type_through_a_file(make_trained, tmp_path, keys):
    model = make_trained(condition_keys=keys, ema_decay=np.float64(0.9))
    model.save(tmp_path / "m")
    loaded = SCLDM.load(tmp_path / "m")

    assert loaded.architecture.ema_decay == 0.9
    assert loaded.conditions.keys == list(keys)
    for key in keys:
        before, after = model.generate(4, seed=0).obs[key], loaded.generate(4, seed=0).obs[key]
        pd.testing.assert_series_equal(before, after)
        value = model.adata.obs[key].iloc[5]
        assert set(loaded.generate(3, {key: value}, seed=0).obs[key]) == {value}
    assert same_cells(model.generate(4, seed=0), loaded.generate(4, seed=0))


def test_columns_of_var_survive_a_file(make_cells, make_trained, tmp_path):
    adata = make_cells()
    adata.var = pd.DataFrame(
        {
            "chromosome": pd.Categorical(["X"] * 6 + ["Y"] * 6),
            "gc": np.linspace(0, 1, 12, dtype=np.float32),
            "exons": pd.array([1, None] * 6, dtype="Int64"),
            "alias": pd.array(["text", None] * 6, dtype="string"),
            "note": ["text", None] * 6,
        },
        index=adata.var_names.rename("gene"),
    )
    gaps = ["alias", "note"]  # become categories, which any anndata writes
    expected = adata.var.astype(dict.fromkeys(gaps, object)).astype(dict.fromkeys(gaps, "category") | {"exons": float})
    adata.var["found"] = pd.to_datetime(["2024-01-01"] * 12)  # cannot be kept
    model = make_trained(adata)
    model.save(tmp_path / "m")

    for cells in (model.generate(2, seed=0), SCLDM.load(tmp_path / "m").generate(2, seed=0)):
        pd.testing.assert_frame_equal(cells.var, expected)
        cells.write_h5ad(tmp_path / "cells.h5ad")


def test_all_options_are_saved_so_that_later_defaults_change_no_model(saved_model):
    options = load(saved_model).init_params_["kwargs"]["architecture"]

    assert set(options) == {field.name for field in fields(SCLDMArchitecture)}


EVERY_KIND = {
    "continuous_condition_keys": ["dose"],
    "set_condition_keys": {"targets": "+"},
    "control_values": {"targets": "control"},
    "condition_embeddings": {"targets": pd.DataFrame({"x": [0.0, 1.0], "y": [1.0, 0.0]}, index=["A", "B"])},
}


@pytest.fixture(scope="module")
def folder(either_class, make_cells, make_model, tmp_path_factory):
    """Save a model of each kind with its cells, which have conditions of every kind."""
    cells = make_cells()
    cells.obs["targets"] = np.resize(["A", "B", "A+B", "control"], cells.n_obs)
    model = make_model(cells, cls=either_class, condition_keys=["cell_type"], setup=EVERY_KIND)
    where = tmp_path_factory.mktemp("saved") / "model"
    model.save(where, save_anndata=True)
    return where


def assert_plain(value):
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            assert_plain(item)
    else:
        assert isinstance(value, torch.Tensor | str | int | float | None)


def test_the_file_has_the_layout_of_scvi_tools_and_holds_plain_values(folder):
    content = torch.load(folder / "model.pt", weights_only=True)

    assert {"model_state_dict", "var_names", "attr_dict"} <= set(content)
    assert content["var_names"] == [f"gene_{gene}" for gene in range(12)]
    assert_plain(content["attr_dict"])
    json.dumps([content["attr_dict"]["registry_"], content["attr_dict"]["init_params_"]])


def test_the_hub_of_scvi_tools_reads_the_folder_and_makes_its_card(folder, tmp_path):
    """scvi-tools makes cards for the names of its own models only; but for the name, it finds all that it needs."""
    pytest.importorskip("huggingface_hub")
    hub = importlib.import_module("scvi.hub")
    cls = load(folder).__class__
    metadata = hub.HubMetadata.from_dir(folder, anndata_version="0.12", model_parent_module="scgen_diffusion.model")
    metadata.save(folder / "_scvi_required_metadata.json", overwrite=True)
    (folder / "README.md").write_text("# A model")

    model = hub.HubModel(str(folder)).model

    assert metadata.model_cls_name == cls.__name__
    assert type(model) is cls
    assert model.adata.n_obs == 96
    content = torch.load(folder / "model.pt", weights_only=True)
    content["attr_dict"]["registry_"]["model_name"] = "SCVI"
    torch.save(content, tmp_path / "model.pt")
    card = hub.HubModelCardHelper.from_dir(tmp_path, license_info="mit", anndata_version="0.12").model_card
    assert all(part in card.content for part in ("condition_keys", "cell_type"))


@pytest.mark.parametrize("is_query", [False, True])
def test_all_that_a_model_remembers_comes_back(trained, make_cells, tmp_path, is_query):
    model = trained
    if is_query:
        model = SCLDM.load_query_data(make_cells(), trained, trainable="all", accelerator="cpu")
    model.save(tmp_path / "m")
    loaded = SCLDM.load(tmp_path / "m")
    remembered = {name for name in vars(model) if name.endswith("_")}

    assert {name for name in vars(loaded) if name.endswith("_")} == remembered
    for name in remembered - {"registry_", "var_", "history_", *(() if is_query else ["reference_"])}:
        np.testing.assert_equal(getattr(loaded, name), getattr(model, name), err_msg=name)


READERS = [
    (cls, name)
    for cls in (SCLDM, SCRDIT, WBDIT)
    for name, method in inspect.getmembers(cls, callable)
    if not name.startswith("_")
    and name != "save"
    and {"dir_path", "reference_model", "collection_path", "path"} & set(inspect.signature(method).parameters)
    and (inspect.ismethod(method) or isinstance(inspect.getattr_static(cls, name), staticmethod))
]


assert {"load", "load_query_data", "from_reference_checkpoint"} <= {name for _, name in READERS}


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: {"format": "scgen_diffusion-2", "attr_dict": c}])
@pytest.mark.parametrize(("cls", "name"), [*READERS, (None, "load")])
def test_no_method_executes_what_is_in_a_folder(cls, name, save, wrap, tmp_path, make_cells):
    canary = Canary(tmp_path / "canary")
    save(wrap(canary), tmp_path / "model.pt")
    for file in ("model_params.pt", "attr.pkl", "weights.ckpt"):
        tmp_path.joinpath(file).write_bytes(pickle.dumps(canary))
    tmp_path.joinpath("var_names.csv").write_text("gene\n")
    method = getattr(cls, name) if cls else load
    known = {
        "dir_path": tmp_path,
        "output_dir_path": tmp_path / "out",
        "reference_model": tmp_path,
        "adata": make_cells(),
        "path": tmp_path / "weights.ckpt",
        "var_names": ["gene"],
        "categories": {},
    }
    parameters = inspect.signature(method).parameters.values()
    needed = {p.name: known[p.name] for p in parameters if p.default is p.empty and p.name in known}

    with pytest.raises((ValueError, NotImplementedError)):
        method(**(needed or {"dir_path": tmp_path}))

    assert not (tmp_path / "canary").exists()


def test_attributes_that_no_model_has_are_refused(folder, tmp_path):
    content = torch.load(folder / "model.pt", weights_only=True)
    content["attr_dict"]["train"] = "not a method"
    torch.save(content, tmp_path / "model.pt")

    with pytest.raises(ValueError, match=r"model\.pt .*'train'"):
        load(tmp_path)
