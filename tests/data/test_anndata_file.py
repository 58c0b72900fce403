"""Matrices in files: requested rows, sparse or dense, from one file or several."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from anndata.io import sparse_dataset, write_elem

from scgen_diffusion.data import stack_rows
from scgen_diffusion.data._anndata_file import open_anndata_files
from scgen_diffusion.data._matrices import FileMatrix, JoinedMatrix, dense

X = np.random.default_rng(0).poisson(0.5, (120, 6)).astype(np.float32)


def readable(element):
    return element if hasattr(element, "dtype") else sparse_dataset(element)


@pytest.fixture(params=[(f, m) for f in ("h5", "zarr") for m in ("csr", "dense")], ids="-".join)
def element(request, tmp_path):
    """Write X, and return what holds it."""
    kind, storage = request.param
    root = h5py.File(tmp_path / "x.h5", "w") if kind == "h5" else zarr.open_group(str(tmp_path / "x.zarr"), mode="w")
    write_elem(root, "x", sp.csr_matrix(X) if storage == "csr" else X)
    return readable(root["x"])


@pytest.mark.parametrize("columns", [None, [4, 0, 2]])
@pytest.mark.parametrize("rows", [[0], [119], [3, 4, 5, 90], [0, 1, 2, 30, 31, 60, 119], list(range(120))])
def test_rows_are_read_as_they_were_written_with_columns_in_the_requested_order(element, rows, columns):
    matrix = FileMatrix(element, "x", columns and np.array(columns))
    expected = X[:, columns] if columns else X

    assert matrix.shape == expected.shape
    assert np.array_equal(dense(JoinedMatrix([matrix]).read(np.array(rows))), expected[rows])
    assert np.array_equal(dense(matrix[100:200]), expected[100:])


def test_the_parts_in_which_a_file_is_stored_are_known(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as root:
        write_elem(root, "whole", X)
        write_elem(root, "parts", X, dataset_kwargs={"chunks": (30, 6)})
        write_elem(root, "sparse", sp.csr_matrix(X), dataset_kwargs={"chunks": (50,)})

        for name, expected in (("whole", 0), ("parts", 30), ("sparse", 50 * 120 / (X > 0).sum())):
            assert FileMatrix(readable(root[name]), name).rows_per_chunk == pytest.approx(expected)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.filterwarnings("ignore:.*contain strings")
@pytest.mark.parametrize("index", [pd.Index, pd.CategoricalIndex])
def test_names_of_cells_are_read_however_they_are_stored(tmp_path, suffix, index):
    names = [f"cell {number}" for number in range(10)]
    cells, path = anndata.AnnData(X[:10], obs=pd.DataFrame(index=index(names))), tmp_path / f"cells{suffix}"
    cells.write_h5ad(path) if suffix == ".h5ad" else cells.write_zarr(path)

    (file,) = open_anndata_files(path)

    assert list(file.names) == names


def test_the_parts_of_a_collection_are_in_the_order_of_their_numbers(tmp_path):
    root = zarr.open_group(str(tmp_path / "cells.zarr"), mode="w")
    root.attrs["encoding-type"] = "annbatch-preshuffled"
    with pytest.raises(ValueError, match=r"cells\.zarr"):  # a collection without parts
        open_anndata_files(tmp_path / "cells.zarr")
    for number in range(11):
        write_elem(root, f"dataset_{number}", anndata.AnnData(X[:1]))

    names = [file.name for file in open_anndata_files(tmp_path / "cells.zarr")]

    assert names == [f"cells.zarr/dataset_{number}" for number in range(11)]


def test_rows_are_put_below_each_other():
    parts = [sp.csr_matrix(X[:3]), X[3:5], sp.csr_matrix(X[5:])]

    assert (stack_rows(parts) != sp.csr_matrix(X)).nnz == 0
    assert np.array_equal(stack_rows([X[:3], X[3:]]), X)
    assert stack_rows(parts[:1]) is parts[0]
