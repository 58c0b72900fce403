"""Matrices of cells: sparse ones that point outside of themselves are refused wherever cells enter."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

from scgen_diffusion.data import CellFiles, check_expression, check_structure
from scgen_diffusion.metrics import ComparisonSpace
from scgen_diffusion.model import SCLDM

DAMAGES = {
    "outside": lambda indices, ends: indices.__setitem__(slice(100, 110), 10**6),
    "the next": lambda indices, ends: indices.__setitem__(100, 120),
    "negative": lambda indices, ends: indices.__setitem__(slice(100, 110), -1),
    "falling ends": lambda indices, ends: ends.__setitem__(5, ends[4] - 5),
    "no end": lambda indices, ends: ends.__setitem__(-1, 0),
    "a late start": lambda indices, ends: ends.__setitem__(0, 3),
    "ends beyond": lambda indices, ends: ends.__setitem__(-1, ends[-1] + 1000),
    "a far end": lambda indices, ends: ends.__setitem__(7, 2**31 - 1),
}
damaged = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


@pytest.fixture
def cells(make_cells):
    return make_cells(matrix=sp.csr_matrix)


@damaged
@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, sp.csr_array])
def test_damaged_matrices_in_memory_are_refused(cells, kind, damage):
    cells.X = kind(cells.X)
    damage(cells.X.indices, cells.X.indptr)

    with pytest.raises(ValueError, match=r"adata\.X is damaged"):
        SCLDM.setup_anndata(cells)
    with pytest.raises(ValueError, match="`train` is damaged"):
        ComparisonSpace.fit(cells)


@pytest.mark.parametrize("damage", [damage for name, damage in DAMAGES.items() if name != "a late start"])
@pytest.mark.parametrize("name", ["cells.h5ad", "cells.zarr"])
def test_damaged_matrices_in_files_are_refused(cells, tmp_path, name, damage):
    path = tmp_path / name
    is_hdf5 = path.suffix == ".h5ad"
    (cells.write_h5ad if is_hdf5 else cells.write_zarr)(path)
    file = h5py.File(path, "r+") if is_hdf5 else zarr.open_group(path, mode="r+")
    indices, ends = file["X/indices"][:], file["X/indptr"][:]
    damage(indices, ends)
    file["X/indices"][:], file["X/indptr"][:] = indices, ends
    if is_hdf5:
        file.close()

    with pytest.raises(ValueError, match=rf"X of {name} is damaged"):
        CellFiles(path)
    if is_hdf5:
        with pytest.raises(ValueError, match=r"adata\.X is damaged"):
            SCLDM.setup_anndata(anndata.read_h5ad(path, backed="r"))


@pytest.mark.parametrize("part", ["data", "indices"])
def test_missing_values_are_damage(part):
    matrix = sp.csr_matrix(np.eye(3))
    setattr(matrix, part, getattr(matrix, part)[:-1])

    with pytest.raises(ValueError, match="X is damaged"):
        check_structure(matrix, "X")


def test_several_values_of_one_place_are_added_before_they_are_checked():
    matrix = sp.csr_matrix(([0.5, 0.5, 1.0], [0, 0, 1], [0, 2, 3]), shape=(2, 2))
    check_expression(anndata.AnnData(matrix), None, "counts")

    assert matrix.data.tolist() == [0.5, 0.5, 1.0]
