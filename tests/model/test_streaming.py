"""``generate_to``: the cells of ``generate`` in a file, from any number of processes and after any number of kills."""

import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from builders import read_cells

from scgen_diffusion.model import SCRDIT

N_CELLS = 700  # six blocks on a CPU, the last one not full
REQUEST = {"n_cells": N_CELLS, "seed": 5, "sampler": "euler", "n_steps": 1}
SHARD = 256
WRITE = {".zarr": anndata.AnnData.write_zarr, ".h5ad": anndata.AnnData.write_h5ad}


def values(cells):
    return cells.X.toarray() if sp.issparse(cells.X) else np.asarray(cells.X)


def plain(value):
    """Return what can be compared."""
    return (
        {name: plain(item) for name, item in value.items()} if isinstance(value, dict) else np.asarray(value).tolist()
    )


def assert_same(path, expected):
    """Raise unless the file holds what a file of these cells would hold that anndata wrote."""
    other = path.with_name(f"expected{path.suffix}")
    WRITE[path.suffix](expected, other)
    found, expected = read_cells(path), read_cells(other)
    shutil.rmtree(other) if other.is_dir() else other.unlink()
    np.testing.assert_array_equal(values(found), values(expected))
    assert sp.issparse(found.X) == sp.issparse(expected.X)
    assert found.X.dtype == expected.X.dtype
    pd.testing.assert_frame_equal(found.obs, expected.obs, check_index_type=False)
    pd.testing.assert_frame_equal(found.var, expected.var, check_index_type=False)
    assert plain(found.uns) == plain(expected.uns)


@pytest.fixture(params=[".zarr", ".h5ad"])
def goal(request, tmp_path):
    return tmp_path / f"cells{request.param}"


def test_the_file_holds_what_generate_returns(trained, goal):
    request = {**REQUEST, "n_cells": 1_400}  # of more than ten parts

    assert trained.generate_to(goal, **request, shard_size=128) == goal

    expected = trained.generate(**request)
    assert_same(goal, expected)
    assert [path.name for path in goal.parent.iterdir()] == [goal.name]
    if goal.suffix == ".h5ad":
        part = anndata.read_h5ad(goal, backed="r")[250:260].to_memory()
        np.testing.assert_array_equal(values(part), values(expected[250:260]))


def test_gene_space_models_and_dense_values_stream_too(trained_gene_space, gene_space_class, make_trained, goal):
    if gene_space_class is SCRDIT:  # counts by the one, log1p by the other
        model, request = trained_gene_space, {**REQUEST, "sampler": "ddim", "counts": True}
    else:
        model, request = make_trained(likelihood="gaussian"), REQUEST
    assert_same(model.generate_to(goal, **request, shard_size=SHARD), model.generate(**request))


REQUESTS = {
    "open key": {"n_cells": 300, "condition": {"cell_type": ["NK", "B cell", "rare"]}},
    "table": {"condition": pd.DataFrame({"dose": [1, 10, 100] * 100})},
    "totals": {"n_cells": 300, "library_size": np.arange(300) + 20},
    "guidance": {"n_cells": 300, "guidance_scale": {"dose": 2.0}},
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_every_kind_of_request_can_be_streamed(trained, tmp_path, request_):
    request_ = {"seed": 5, "sampler": "euler", "n_steps": 1, **request_}

    path = trained.generate_to(tmp_path / "cells.h5ad", **request_, shard_size=100)

    assert_same(path, trained.generate(**request_))


def test_numbers_and_sets_stream_with_the_categories_of_all_cells(make_cells, make_trained, tmp_path):
    cells = make_cells()
    rng = np.random.default_rng(0)
    cells.obs["age"] = rng.normal(40, 9, cells.n_obs)
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.as_ordered()
    cells.obs["drugs"] = rng.choice(["none", "A", "B", "A+B"], cells.n_obs)
    setup = {"continuous_condition_keys": ["age"], "set_condition_keys": ["drugs"], "control_values": {"drugs": "none"}}
    model = make_trained(cells, condition_keys=["cell_type"], setup=setup)
    drugs = [{"A"}] * 300 + [{"A", "B"}] * 100  # the second shard alone has no cell with one drug

    request = {"condition": {"drugs": drugs, "age": np.linspace(30, 50, 400)}, "seed": 5}
    goal = tmp_path / "cells.h5ad"
    model.generate_to(goal, **request, n_steps=1, sampler="euler", shard_size=128)

    assert_same(goal, model.generate(**request, n_steps=1, sampler="euler"))
    assert anndata.concat([cells, read_cells(goal)]).obs["cell_type"].dtype == cells.obs["cell_type"].dtype
