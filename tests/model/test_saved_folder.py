"""The saved folder: scvi-tools' own layout, read by scvi-tools itself, and never executed or trusted by us."""

from __future__ import annotations

import importlib
import inspect
import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from builders import Canary

from scgen_diffusion.model import SCLDM, SCRDIT, WBDIT, load

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


def contents(folder):
    return torch.load(folder / "model.pt", weights_only=True)


def assert_plain(value):
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            assert_plain(item)
    else:
        assert isinstance(value, torch.Tensor | str | int | float | None)


def test_the_file_has_the_layout_of_scvi_tools_and_holds_plain_values(folder):
    content = contents(folder)

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
    content = contents(folder)
    content["attr_dict"]["registry_"]["model_name"] = "SCVI"
    torch.save(content, tmp_path / "model.pt")
    card = hub.HubModelCardHelper.from_dir(tmp_path, license_info="mit", anndata_version="0.12").model_card
    assert all(part in card.content for part in ("condition_keys", "cell_type"))


def test_registry_and_setup_are_shown(folder, capsys):
    model = load(folder)
    registry = type(model).load_registry(folder)
    type(model)(registry=registry, **model.init_params_["kwargs"]["architecture"])  # as scvi-tools' models are built
    type(model).view_setup_args(folder)

    assert registry["setup_args"]["condition_keys"] == ["cell_type"]
    assert "condition_keys" in capsys.readouterr().out
    for show in (model.view_anndata_setup, model.view_registry, load(folder, adata=False).view_registry):
        show()
        shown = capsys.readouterr().out
        assert all(name in shown for name in ("n_conditions", "n_cells"))


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


@pytest.mark.parametrize(("cls", "name"), [*READERS, (None, "load")])
def test_no_method_executes_what_is_in_a_folder(cls, name, tmp_path, make_cells):
    canary = Canary(tmp_path / "canary")
    torch.save({"attr_dict": canary, "model_state_dict": {}, "var_names": []}, tmp_path / "model.pt")
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
    content = contents(folder)
    content["attr_dict"]["train"] = "not a method"
    torch.save(content, tmp_path / "model.pt")

    with pytest.raises(ValueError, match=r"model\.pt .*'train'"):
        load(tmp_path)
