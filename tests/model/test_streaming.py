"""``generate_to``: the cells of ``generate`` in a file, from any number of processes and after any number of kills."""

from __future__ import annotations

import inspect
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from scgen_diffusion.model import SCRDIT

N_CELLS = 700  # six blocks on a CPU, the last one not full
REQUEST = {"n_cells": N_CELLS, "seed": 5, "sampler": "euler", "n_steps": 1}
SHARD = 256
WRITE = {".zarr": anndata.AnnData.write_zarr, ".h5ad": anndata.AnnData.write_h5ad}
READ = {".zarr": anndata.read_zarr, ".h5ad": anndata.read_h5ad}


def read(path):
    return READ[path.suffix](path)


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
    found, expected = read(path), read(other)
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
    assert trained.generate_to(goal, **REQUEST, shard_size=SHARD) == goal

    assert_same(goal, trained.generate(**REQUEST))
    assert [path.name for path in goal.parent.iterdir()] == [goal.name]


def test_columns_of_var_that_anndata_refuses_do_no_harm(make_cells, make_trained, goal):
    odd = make_cells()
    names = odd.var_names
    odd.var["symbol"] = ["TP53", None] * 6
    odd.var["alias"] = pd.array(["text", None] * 6, dtype="string")
    odd.var["gc"] = pd.array([0.5, None] * 6, dtype="Float32")
    odd.var["_index"] = odd.var["gene"] = names[::-1]
    odd.var.index = names.rename("gene")
    model = make_trained(odd)

    assert_same(model.generate_to(goal, **REQUEST, shard_size=SHARD), model.generate(**REQUEST))
    assert {*model.var_} == {*odd.var} - {"_index"}


def test_gene_space_models_stream_too(trained_gene_space, gene_space_class, tmp_path):
    request = {**REQUEST, "sampler": "ddim", "counts": gene_space_class is SCRDIT}  # and log1p by the other

    path = trained_gene_space.generate_to(tmp_path / "cells.h5ad", **request, shard_size=SHARD)

    assert_same(path, trained_gene_space.generate(**request))


def test_dense_values_stream_too(make_trained, tmp_path):
    model = make_trained(likelihood="gaussian")
    expected = model.generate(**REQUEST)

    for suffix in READ:
        assert_same(model.generate_to(tmp_path / f"cells{suffix}", **REQUEST, shard_size=SHARD), expected)


REQUESTS = {
    "open key": {"n_cells": 300, "condition": {"cell_type": ["NK", "B cell", "rare"]}},
    "list": {"condition": {"cell_type": ["NK", "B cell"] * 150, "dose": [1, 10, 10] * 100}},
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
    assert anndata.concat([cells, read(goal)]).obs["cell_type"].dtype == cells.obs["cell_type"].dtype  # and in order


def test_more_than_ten_shards_stay_in_order(trained, tmp_path):
    request = {"n_cells": 1_400, "seed": 5, "sampler": "euler", "n_steps": 1}

    path = trained.generate_to(tmp_path / "cells.h5ad", **request, shard_size=128)

    assert_same(path, trained.generate(**request))


def test_a_zarr_is_cut_into_shards_of_chunks(trained, tmp_path):
    root = zarr.open_group(
        trained.generate_to(tmp_path / "cells.zarr", 12_000, seed=0, n_steps=1, sampler="euler"), mode="r"
    )

    for name in ("X/data", "X/indices"):
        (chunk,), (shard,), (n,) = root[name].chunks, root[name].shards, root[name].shape
        assert root[name].metadata.zarr_format == 3
        assert chunk < n
        assert shard % chunk == 0


def test_an_h5ad_can_stay_in_its_file(trained, tmp_path):
    path = trained.generate_to(tmp_path / "cells.h5ad", **REQUEST, shard_size=SHARD)

    backed = anndata.read_h5ad(path, backed="r")

    assert backed.isbacked
    expected = trained.generate(**REQUEST)
    np.testing.assert_array_equal(backed[250:260].X.toarray(), expected.X[250:260].toarray())
    np.testing.assert_array_equal(backed.to_memory().X.toarray(), expected.X.toarray())


def test_a_zarr_can_be_read_lazily(trained, tmp_path):
    pytest.importorskip("dask")
    pytest.importorskip("xarray")
    path = trained.generate_to(tmp_path / "cells.zarr", **REQUEST, shard_size=SHARD)

    lazy = anndata.experimental.read_lazy(path)[250:260].to_memory()

    expected = trained.generate(**REQUEST)[250:260]
    np.testing.assert_array_equal(values(lazy), values(expected))
    assert lazy.obs["cell_type"].tolist() == expected.obs["cell_type"].tolist()


def test_a_zarr_can_be_read_by_annbatch(trained, tmp_path):
    annbatch = pytest.importorskip("annbatch")
    root = zarr.open_group(trained.generate_to(tmp_path / "cells.zarr", **REQUEST, shard_size=SHARD), mode="r")
    stored = anndata.AnnData(anndata.io.sparse_dataset(root["X"]), obs=anndata.io.read_elem(root["obs"]))

    loader = annbatch.Loader(shuffle=False, chunk_size=50, preload_nchunks=2, batch_size=100).add_adatas([stored])
    batches = list(loader)

    expected = trained.generate(**REQUEST)
    np.testing.assert_array_equal(np.concatenate([batch["X"].toarray() for batch in batches]), values(expected))
    labels = pd.concat([batch["obs"] for batch in batches])["cell_type"]
    assert labels.astype(str).tolist() == expected.obs["cell_type"].astype(str).tolist()


def test_conditions_of_millions_of_cells_take_no_row_for_each(trained):
    request = trained.conditions.request({"cell_type": ["NK", "B cell"]}, 10_000_000)

    assert len(request) == 10_000_000
    assert sum(codes.nbytes for _, codes in request.given) < 100
    labels = trained.conditions.to_obs(request[np.array([0, 4_999_999, 5_000_000, 9_999_999])].clip(0), None)[
        "cell_type"
    ]
    assert labels.tolist() == ["NK", "NK", "B cell", "B cell"]


def test_what_provenance_says_of_long_lists_is_short(trained):
    cells = trained.generate(condition={"cell_type": ["NK"] * 1001}, seed=0, sampler="euler", n_steps=1)

    assert cells.uns["scgen_diffusion"]["condition"] == {"cell_type": "1001 values"}


@pytest.mark.parametrize("method", ["generate", "predict_perturbation"])
def test_what_writes_to_a_file_takes_all_that_the_method_in_memory_takes(any_class, method):
    streamed = inspect.signature(getattr(any_class, f"{method}_to")).parameters
    for name, parameter in inspect.signature(getattr(any_class, method)).parameters.items():
        assert streamed[name].default == parameter.default
        assert streamed[name].annotation == parameter.annotation


def test_numbers_may_be_those_of_numpy(trained, goal):
    numbers = {
        "n_steps": 2,
        "seed": 3,
        "guidance_scale": 2,
        "library_size": 500,
        "shard_size": SHARD,
    }
    written = trained.generate_to(goal, 5, {"dose": 10}, sampler="euler", **numbers)
    of_numpy = {name: np.int64(value) for name, value in numbers.items()}
    of_numpy |= {"guidance_scale": np.float32(2)}
    before = goal.stat().st_mtime_ns

    again = trained.generate_to(goal, np.int64(5), {"dose": np.int64(10)}, sampler="euler", **of_numpy)

    assert (again, goal.stat().st_mtime_ns) == (written, before)  # the same request, which is finished
    new = goal.with_name(f"new{goal.suffix}")
    trained.generate_to(new, np.int64(5), {"dose": np.int64(10)}, sampler="euler", **of_numpy)
    per_key = {"cell_type": np.float32(2), "dose": np.int64(1)}
    trained.generate_to(new, 5, guidance_scale=per_key, n_steps=np.int64(2), overwrite=True)
