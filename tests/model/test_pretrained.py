"""The pretrained models: they load by name without data and network, and are the ones that were judged."""

import csv
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from scgen_diffusion.model import MULTISCLDM, SCLDM, load, pretrained_models

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
NAMES = ("kang_ifnb", "pbmc10k_citeseq", "pbmc3k")
LARGEST = 4_000_000  # bytes
MARKERS = {"CD14", "MS4A1", "NKG7", "LYZ", "GNLY", "CD79A", "IL7R", "ISG15", "FCGR3A"}


def rows_of(name, file):
    with (RESULTS / file).open(encoding="utf-8") as lines:
        return [row for row in csv.DictReader(lines) if row["model"] == name]


@pytest.fixture(scope="module")
def models():
    return {name: load(name, accelerator="cpu") for name in NAMES}


def rna_of(cells):
    return cells["rna"] if hasattr(cells, "mod") else cells


def test_a_fresh_process_needs_neither_network_nor_data(run_apart, tmp_path):
    code = f"""
import os, socket
os.chdir({str(tmp_path)!r})
os.environ |= {{"PATH": "", "HOME": {str(tmp_path)!r}}}
def refuse(*args, **kwargs): raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = refuse
import scgen_diffusion as scgd
for name in {NAMES}:
    print(name, scgd.model.load(name).generate(3, seed=0).n_obs)
"""
    out, _ = run_apart(code)
    assert [line for line in out.splitlines() if line.startswith(NAMES)] == [f"{name} 3" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_knows_the_genes_and_labels_that_users_look_for(models, name):
    model = models[name]
    assert type(model) is (MULTISCLDM if name == "pbmc10k_citeseq" else SCLDM)
    assert model.adata is None
    cells = model.generate(8, seed=0)
    assert rna_of(cells).shape == (8, 2_000)
    assert set(rna_of(cells).var_names) >= MARKERS
    labels = {row["label"] for row in rows_of(name, "pretrained_labels.csv")}
    known = [key.values for key in model.conditions.by_key]
    assert {part for label in labels for part in label.split("|")} == {value for values in known for value in values}


@pytest.mark.parametrize("name", NAMES)
def test_its_cells_have_the_means_that_were_recorded(models, name):
    rows = [row for row in rows_of(name, "pretrained_labels.csv") if int(row["n_training_cells"]) >= 100]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    keys = [key.name for key in models[name].conditions.by_key]
    asked = {key: np.repeat([label.split("|")[i] for label in labels], 40) for i, key in enumerate(keys)}
    cells = models[name].generate(condition={key: list(values) for key, values in asked.items()}, seed=5)
    matrix = rna_of(cells).X.toarray()
    totals = matrix.sum(1)
    values = dict(zip(rna_of(cells).var_names, np.log1p(matrix / totals[:, None] * 1e4).T, strict=True))
    values["total_counts"] = totals
    found, recorded = [], []
    for row in rows:
        if row["feature"].startswith("prot:"):
            continue
        mine = values[row["feature"]].reshape(-1, 40)[labels.index(row["label"])].mean()
        scale = 1_000 if row["feature"] == "total_counts" else 1
        found.append(mine / scale)
        recorded.append((float(row["generated"]) / scale, float(row["real"]) / scale))
    generated, real = np.transpose(recorded)
    assert np.corrcoef(found, generated)[0, 1] > 0.97  # means of 40 cells and of 200
    assert np.corrcoef(found, real)[0, 1] > 0.95


def test_isg15_rises_in_predicted_cells(models):
    model = models["kang_ifnb"]
    control = model.generate(40, {"cell_type": "CD14 Mono", "condition": "control"}, seed=0)
    treated = model.predict_perturbation(control, {"condition": "stimulated"}, seed=0)
    assert "perturbation_flow" in model.trained_stages_
    assert treated[:, "ISG15"].X.mean() > 5 * control[:, "ISG15"].X.mean()


def test_a_pretrained_model_can_be_fine_tuned(models):
    cells = models["pbmc3k"].generate(30, {"cell_type": "B"}, seed=0)
    cells.obs["cell_type"] = "my cells"
    model = SCLDM.load_query_data(cells, "pbmc3k", accelerator="cpu")
    assert "my cells" in model.conditions.categories["cell_type"]
    raw, averaged = (module.state_dict() for module in (model.module.prior, model.module.averaged_prior.module))
    assert all(torch.equal(raw[name], averaged[name]) for name in raw)
    assert SCLDM.prepare_query_anndata(cells, "pbmc3k").n_vars == 2_000


def test_an_unknown_name_lists_the_known_ones_closest_first():
    for read in (load, SCLDM.load, SCLDM.load_registry):
        with pytest.raises(FileNotFoundError, match=r"no saved model at pmbc3k.*closest first: 'pbmc3k', "):
            read("pmbc3k")


def test_a_path_wins_over_a_name(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained.save("pbmc3k")
    assert list(load("pbmc3k").var_.index) == list(trained.var_.index)
    with pytest.raises(FileNotFoundError, match=r"no saved model at .*nowhere.pbmc3k: model\.pt is missing"):
        load(Path("nowhere") / "pbmc3k")


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_is_small_names_no_cell_and_holds_the_model_that_was_judged(name):
    folder = pretrained_models()[name]
    cells_file = "mdata.h5mu" if name == "pbmc10k_citeseq" else "adata.h5ad"
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "_scvi_required_metadata.json", cells_file, "model.pt",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in folder.iterdir()) < LARGEST
    assert not any(re.search(rb"[ACGT]{14}", path.read_bytes()) for path in folder.iterdir())  # a barcode
    file = f"sha256:{hashlib.sha256((folder / 'model.pt').read_bytes()).hexdigest()}"
    assert {row["file"] for row in rows_of(name, "pretrained.csv")} == {file}


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_turned_into_single(models, name):
    stored = torch.load(pretrained_models()[name] / "model.pt", weights_only=True)["model_state_dict"]
    weights = models[name].module.state_dict()
    assert {tensor.dtype for key, tensor in stored.items() if "blocks" in key} == {torch.float16}
    for key, own in stored.items():
        tensor = weights[key]
        assert tensor.dtype == (torch.float32 if own.dtype == torch.float16 else own.dtype)
        assert torch.equal(tensor, own.to(tensor.dtype)), key
