"""Collections that annbatch wrote are read like any other store."""

from __future__ import annotations

import warnings

import pytest
import scipy.sparse as sp
import torch

from scgen_diffusion.data import CellFiles
from scgen_diffusion.train import EpochBatches

annbatch = pytest.importorskip("annbatch", reason="annbatch needs Python 3.12")


def test_a_collection_holds_every_cell_once(make_cells, tmp_path):
    make_cells(matrix=sp.csr_matrix).write_h5ad(tmp_path / "cells.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        annbatch.DatasetCollection(tmp_path / "collection.zarr", mode="a").add_adatas(
            [tmp_path / "cells.h5ad"], dataset_size=50, n_obs_per_chunk=8, shard_size=16, shuffle_chunk_size=4
        )

    cells = CellFiles(tmp_path / "collection.zarr", condition_keys=["cell_type"])

    assert len(cells.files) > 1
    read = torch.cat([batch["X"] for batch in cells.loader(None, 10, batches=EpochBatches(96, 10, seed=0))]).numpy()
    assert sorted(map(tuple, read)) == sorted(map(tuple, make_cells().X))
