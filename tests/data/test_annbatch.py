"""Cells that annbatch reads are those that we read ourselves; without it, the error says what to do."""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scgen_diffusion.data import AnnbatchCells, CellFiles
from scgen_diffusion.model import SCLDM
from scgen_diffusion.train import EpochBatches

HAS_ANNBATCH = importlib.util.find_spec("annbatch") is not None
needs_annbatch = pytest.mark.skipif(not HAS_ANNBATCH, reason="annbatch needs Python 3.12")
KEYS = {"condition_keys": ["cell_type"]}


@pytest.mark.skipif(HAS_ANNBATCH, reason="annbatch is installed")
def test_without_annbatch_the_error_says_what_reads_the_same():
    with pytest.raises(
        ImportError, match="AnnbatchCells needs annbatch, for Python 3.12 or later.*CellFiles reads the same"
    ):
        AnnbatchCells("cells.zarr")


@pytest.fixture
def collection(make_cells, tmp_path):
    """Write a collection of shuffled cells, in two parts."""
    import annbatch

    cells = make_cells(matrix=sp.csr_matrix)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        annbatch.DatasetCollection(tmp_path / "collection.zarr", mode="a").add_adatas(
            [tmp_path / "cells.h5ad"], dataset_size=50, n_obs_per_chunk=8, shard_size=16, shuffle_chunk_size=4
        )
    return tmp_path / "collection.zarr"


@needs_annbatch
@pytest.mark.parametrize("genes", [None, ["gene_7", "gene_0", "gene_2"]])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_of_a_collection_are_those_that_we_read_ourselves(collection, genes, shuffle):
    options = {**KEYS, "genes": genes, "window_size": 30, "block_size": 5}
    rows = np.setdiff1d(np.arange(96), [4, 50, 51])

    batches = [EpochBatches(len(rows), 7, seed=0) if shuffle else None for _ in range(2)]
    ours, theirs = (
        cls(collection, **options).loader(rows, 7, batches=order)
        for cls, order in zip((CellFiles, AnnbatchCells), batches, strict=True)
    )

    for _ in range(2):
        for one, other in zip(ours, theirs, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)


@needs_annbatch
def test_a_collection_holds_every_cell_once(collection, make_cells):
    cells = AnnbatchCells(collection, **KEYS)

    assert len(cells.files) > 1
    read = torch.cat([batch["X"] for batch in cells.loader(None, 10, batches=EpochBatches(96, 10, seed=0))]).numpy()
    assert sorted(map(tuple, read)) == sorted(map(tuple, make_cells().X))


@needs_annbatch
def test_a_model_trains_on_a_collection(collection, tiny, quick):
    cells = AnnbatchCells(collection, **KEYS)
    model = SCLDM(registry=cells.registry, **tiny)

    model.train(1, datamodule=cells, **quick)

    assert model.generate(3, seed=0).n_obs == 3


@needs_annbatch
def test_files_that_annbatch_does_not_read_are_refused(make_cells, tmp_path):
    make_cells().write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(ValueError, match="annbatch reads zarr stores only.*CellFiles"):
        next(iter(AnnbatchCells(tmp_path / "cells.h5ad", **KEYS).loader(None, 4)))
