"""Models that train on cells in files: the same statistics as in memory, and all that a trained model can do."""

from copy import deepcopy
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from builders import SIZES

from scgen_diffusion.data import CellFiles, RegisteredCells
from scgen_diffusion.model import SCLDM, SCRDIT
from scgen_diffusion.train import EpochBatches

pytestmark = pytest.mark.usefixtures("seed_0")

KEYS = {"condition_keys": ["cell_type", "dose"]}


@pytest.fixture(scope="module")
def adata(make_cells):
    adata = make_cells(matrix=sp.csr_matrix)
    types = adata.obs["cell_type"].astype(str)
    adata.obs["cell_type"] = pd.Categorical(types)  # in the order of the alphabet, as those of several files are
    return adata


@pytest.fixture(scope="module")
def cells(adata, tmp_path_factory):
    """Return the cells in two files, in windows of a third of them."""
    folder = tmp_path_factory.mktemp("cells")
    adata[:50].write_h5ad(folder / "a.h5ad")
    adata[50:].write_zarr(folder / "b.zarr")
    return CellFiles([folder / "a.h5ad", folder / "b.zarr"], **KEYS, window_size=32)


def of_files(cells, cls=SCLDM):
    torch.manual_seed(0)
    return cls(registry=cells.registry, **SIZES[cls])


def of_memory(adata, cls=SCLDM):
    torch.manual_seed(0)
    cls.setup_anndata(adata, **KEYS)
    return cls(adata, **SIZES[cls])


def test_models_train_save_load_and_generate(any_class, cells, quick, tmp_path):
    model = of_files(cells, any_class)

    model.train(1, datamodule=cells, **quick)
    model.save(tmp_path / "model")
    loaded = any_class.load(tmp_path / "model")

    one, other = model.generate(6, {"cell_type": "NK"}, seed=0), loaded.generate(6, {"cell_type": "NK"}, seed=0)
    assert np.array_equal(one.X.toarray(), other.X.toarray())
    assert (one.obs["cell_type"] == "NK").all()
    assert list(one.var["symbol"]) == list(cells.var["symbol"])
    assert model.combination_sizes_.sum() == cells.n_cells


def test_statistics_of_files_are_those_of_the_same_cells_in_memory(adata, cells, quick):
    models = of_files(cells, SCRDIT), of_memory(adata.copy(), SCRDIT)
    for model, source in zip(models, (cells, None), strict=True):
        model.train(1, datamodule=source, limit_train_batches=1, plan_kwargs={"learning_rate": 1e-12}, **quick)

    states = [model.module.state_dict() for model in models]
    for name in states[0]:
        if "library_size.head" not in name and "predicted" not in name:
            assert torch.allclose(states[0][name].double(), states[1][name].double(), rtol=1e-4, atol=1e-6), name
    assert models[0]._fingerprint == models[1]._fingerprint
    assert np.array_equal(models[0].train_indices_, models[1].train_indices_)
    assert np.array_equal(models[0].combinations_, models[1].combinations_)


@pytest.mark.parametrize("dtype", [sp.csr_matrix, sp.csr_matrix.toarray])
def test_a_backed_anndata_is_read_in_the_requested_order(adata, tmp_path, dtype):
    anndata.AnnData(dtype(adata.X), obs=adata.obs, var=adata.var).write_h5ad(tmp_path / "backed.h5ad")
    SCLDM.setup_anndata(backed := anndata.read_h5ad(tmp_path / "backed.h5ad", backed="r"), **KEYS)
    cells = RegisteredCells(SCLDM._get_most_recent_anndata_manager(backed, required=True))
    rows = np.array([70, 3, 3, 95])

    in_order = torch.cat([batch["X"] for batch in cells.loader(rows, 3)])
    batches = EpochBatches(adata.n_obs, 10, seed=0)
    shuffled = torch.cat([batch["X"] for batch in cells.loader(None, 10, batches=batches)])

    assert np.array_equal(in_order, adata.X[rows].toarray())
    assert np.array_equal(np.unique(shuffled, axis=0), np.unique(adata.X.toarray(), axis=0))
    assert not np.array_equal(shuffled, adata.X.toarray())


def test_cells_in_files_and_those_in_memory_replace_each_other(adata, cells, quick, tmp_path):
    model = of_memory(adata.copy())
    model.train_autoencoder(1, datamodule=cells, **quick)
    assert model.adata is None
    with pytest.raises(ValueError, match="cells"):
        model.save(tmp_path / "model", save_anndata=True)
    model.train_prior(1, **quick)  # on the cells of last time

    model.adata = fewer = adata[:40].copy()
    model.train(1, **quick)

    assert model.adata is fewer
    assert model.combination_sizes_.sum() == 40


def test_a_model_reads_its_own_files_and_others(adata, cells, quick):
    model = of_files(cells)
    model.train(1, datamodule=cells, **quick)

    own = model.get_latent_representation()

    assert own.shape[0] == cells.n_cells
    assert np.allclose(model.get_latent_representation(cells, indices=[60, 2]), own[[60, 2]], atol=1e-5)
    assert np.allclose(model.get_latent_representation(cells.read([60, 2])), own[[60, 2]], atol=1e-5)
    assert model.get_reconstruction(cells.read([1, 2]), sample=False).n_obs == 2
    assert model.get_elbo(seed=0, batch_size=9) == pytest.approx(model.get_elbo(cells, seed=0), rel=1e-4)
    assert model.posterior_predictive_sample(indices=[60, 2], n_samples=2).shape == (2, 12, 2)
    for method in (model.get_normalized_expression, model.get_reconstruction):
        with pytest.raises(ValueError, match="adata|files"):
            method()
    with pytest.raises(TypeError, match="adata"):
        model.get_reconstruction(cells)


def test_stages_can_be_trained_one_by_one_and_a_loaded_model_trains_on(cells, quick, tmp_path):
    model = of_files(cells)
    model.train_autoencoder(1, datamodule=cells, **quick)
    model.train_prior(1, **quick)
    model.save(tmp_path / "model")
    loaded = SCLDM.load(tmp_path / "model")

    with pytest.raises(ValueError, match="datamodule"):
        loaded.train_prior(1, **quick)
    files = [file.root.file.filename for file in cells.files[:1]]
    opened = CellFiles.like(loaded.registry, files)
    loaded.train_prior(1, datamodule=opened, **quick)
    assert loaded.is_trained

    copied = deepcopy(loaded)
    copied.train_prior(1, **quick)


@pytest.mark.filterwarnings("ignore:The effect on")  # so few cells and epochs tell little
def test_the_perturbation_flow_is_trained_on_files_and_predicts_their_cells(adata, quick, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    keys = {"condition_keys": ["cell_type"], "continuous_condition_keys": ["dose"], "control_values": {"dose": 1}}
    cells = CellFiles(tmp_path / "cells.h5ad", **keys)
    model = of_files(cells)

    model.train(1, datamodule=cells, **quick)

    assert "perturbation_flow" in model.trained_stages_
    control = np.flatnonzero(adata.obs["dose"] == 1)
    predicted = model.predict_perturbation(adata[control].copy(), condition={"dose": 30}, seed=0)
    assert predicted.uns["scgen_diffusion"]["method"] == "perturbation_flow"
    assert predicted.obs_names.str.split("-").str[-1].tolist() == adata.obs_names[control].tolist()


def test_cells_that_were_set_up_otherwise_are_refused(adata, cells, quick, tmp_path):
    model = of_files(cells)
    logarithms = adata.copy()
    logarithms.X = np.log1p(logarithms.X)
    logarithms.write_h5ad(tmp_path / "logarithms.h5ad")
    adata.layers["other"] = adata.X[:, ::-1].copy()
    adata.write_h5ad(tmp_path / "cells.h5ad")

    for other, what in (
        (CellFiles(tmp_path / "logarithms.h5ad", **KEYS, values="log1p"), "values"),
        (CellFiles(tmp_path / "cells.h5ad", condition_keys=["cell_type"]), "conditions"),
        (CellFiles(tmp_path / "cells.h5ad", **KEYS, genes=["gene_0"]), "genes"),
        (CellFiles(tmp_path / "cells.h5ad", **KEYS, layer="other"), "layer"),
        (CellFiles(tmp_path / "cells.h5ad", **KEYS, control_values={"cell_type": "NK"}), "control_values"),
    ):
        with pytest.raises(ValueError, match=f"{what}.*CellFiles.like"):
            model.train(1, datamodule=other, **quick)
    some = SimpleNamespace(**dict.fromkeys(("loader", "codes", "digest", "names", "registry")))
    for unlike, name in (({}, "dict"), (some, "SimpleNamespace")):
        with pytest.raises(TypeError, match=f"datamodule.*{name}"):
            model.train(1, datamodule=unlike, **quick)
