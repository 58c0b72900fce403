"""Saving and loading the gene-space models: enough to generate in a fresh process."""

from __future__ import annotations

import json

import anndata
import numpy as np
import pandas as pd
import pytest

from scgen_diffusion.model import SCLDM, SCRDIT, WBDIT


@pytest.fixture(scope="module")
def saved(trained_gene_space, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    trained_gene_space.save(folder)
    return folder


def same_cells(one, other):
    return (one.X != other.X).nnz == 0 and one.obs.astype(str).equals(other.obs.astype(str))


FRESH = """
import json, sys
import torch
from scgen_diffusion import model as models
torch.set_num_threads(1)
folder, requests = sys.argv[1], json.loads(sys.argv[2])
for name in ("SCRDIT", "WBDIT"):
    model = getattr(models, name).load(f"{folder}/{name}", adata=False, accelerator="cpu")
    assert model.adata is None
    for number, request in enumerate(requests):
        model.generate(**request).write_h5ad(f"{folder}/{name}_{number}.h5ad")
"""


def test_a_fresh_process_without_cells_generates_the_same(make_trained_gene_space, run_apart, tmp_path):
    requests = [{"n_cells": 20, "seed": 7, "sampler": s, "n_steps": 5} for s in ("dpm_solver", "ddim", "ddpm")]
    requests += [{"n_cells": 20, "seed": 7, "counts": True, "library_size": k} for k in ("normal", "latent", 300)]
    requests += [{"condition": {"cell_type": ["NK", "B cell"], "dose": [1, 10]}, "seed": 7, "guidance_scale": 2.0}]
    models = {cls.__name__: make_trained_gene_space(cls) for cls in (SCRDIT, WBDIT)}  # one process is slow to start
    for name, model in models.items():
        model.save(tmp_path / name)

    run_apart(FRESH, tmp_path, json.dumps(requests))

    for name, model in models.items():
        for number, request in enumerate(requests):
            there, here = anndata.read_h5ad(tmp_path / f"{name}_{number}.h5ad"), model.generate(**request)
            assert same_cells(there, here), (name, request)
            assert ("log1p" in there.uns) == (not request.get("counts", False))


def test_a_loaded_model_is_the_saved_one(trained_gene_space, saved, tmp_path):
    loaded = type(trained_gene_space).load(saved)

    assert loaded.adata is None
    assert loaded.is_trained
    assert loaded.architecture == trained_gene_space.architecture
    pd.testing.assert_frame_equal(loaded.generate(1, seed=0).var, trained_gene_space.generate(1, seed=0).var)
    assert list(loaded.history) == list(trained_gene_space.history)
    loaded.save(tmp_path / "again")
    again = type(trained_gene_space).load(tmp_path / "again")
    assert same_cells(again.generate(10, seed=3), trained_gene_space.generate(10, seed=3))


def test_cells_can_be_saved_with_the_model_and_trained_on(trained_gene_space, tmp_path, quick):
    trained_gene_space.save(tmp_path / "m", save_anndata=True)

    loaded = type(trained_gene_space).load(tmp_path / "m")
    loaded.train(1, **quick)

    np.testing.assert_array_equal(loaded.adata.X, trained_gene_space.adata.X)
    assert loaded.generate(3, seed=0).n_obs == 3


def test_one_class_does_not_load_another(trained_gene_space, saved):
    name = type(trained_gene_space).__name__
    for cls in {SCLDM, SCRDIT, WBDIT} - {type(trained_gene_space)}:
        with pytest.raises(ValueError, match=f"class '{name}', but {cls.__name__}.load was called"):
            cls.load(saved)


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "unet", "path": "flow_matching", "target": "velocity", "zero_value": -3, "scaling": "none"},
        {"backbone": "dit", "head": "spike_and_slab", "target": "data", "scaling": "gene"},
        {"condition_keys": [], "clamp": False, "ema_decay": np.float64(0.5), "library_size": "normal"},
        {"condition_keys": ["treated"], "condition_strategy": "mutually_exclusive", "zero_value": np.float64(-2.0)},
    ],
    ids=["flow", "spike and slab", "unconditional", "mutually exclusive"],
)
def test_every_part_survives_a_file(make_trained_gene_space, gene_space_class, tmp_path, options):
    model = make_trained_gene_space(gene_space_class, **options)
    model.save(tmp_path / "m")
    loaded = gene_space_class.load(tmp_path / "m")

    assert loaded.architecture == model.architecture
    for request in ({"seed": 0, "n_steps": 4}, {"seed": 0, "n_steps": 4, "counts": True}):
        ours, theirs = model.generate(5, **request).to_df(), loaded.generate(5, **request).to_df()
        pd.testing.assert_frame_equal(ours, theirs)


def test_an_untrained_model_can_be_saved_and_still_cannot_generate(make_gene_space, gene_space_class, tmp_path):
    make_gene_space(gene_space_class).save(tmp_path / "m")

    with pytest.raises(RuntimeError, match=r"call train\(\) first"):
        gene_space_class.load(tmp_path / "m").generate(2)


def test_cells_of_other_genes_are_refused_by_name(trained_gene_space, saved):
    adata = trained_gene_space.adata
    with pytest.raises(ValueError, match="1 .'gene_3'. missing"):
        type(trained_gene_space).load(saved, adata=adata[:, adata.var_names != "gene_3"].copy())
    with pytest.raises(ValueError, match="another order"):
        type(trained_gene_space).load(saved, adata=adata[:, ::-1].copy())
