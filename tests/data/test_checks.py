"""Checks of a user's cells: what passes, and what each error says."""

from __future__ import annotations

from contextlib import nullcontext

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from scgen_diffusion.data import CellFiles, check_expression, check_same_genes

N_CELLS = 4500  # more than the rows that are looked at together


@pytest.fixture(params=["dense", "csr", "csc", "csr_array", "backed dense", "backed csr", "layer"])
def make_adata(request, tmp_path):
    """Turn a dense array into an AnnData of every kind of storage; returns it and the layer to look at."""

    def make(x):
        kind = request.param
        if kind == "layer":
            return anndata.AnnData(np.full_like(x, 0.5), layers={"raw": x}), "raw"
        matrix = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "csr_array": sp.csr_array}.get(kind.split()[-1])
        adata = anndata.AnnData(x if matrix is None else matrix(x))
        if kind.startswith("backed"):
            adata.write_h5ad(tmp_path / "cells.h5ad")
            adata = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        return adata, None

    return make


def counts(n_cells=N_CELLS, n_genes=3):
    x = np.random.default_rng(0).poisson(1.0, (n_cells, n_genes)).astype(np.float32)
    x[:, 0] += 1
    return x


def log_values():
    return np.log1p(counts())


@pytest.mark.parametrize(("x", "values"), [(counts(), "counts"), (log_values(), "log1p")], ids=["counts", "log1p"])
def test_good_values_pass_in_every_storage(make_adata, x, values):
    adata, layer = make_adata(x)

    check_expression(adata, layer, values)


LAST, TWO_CELLS = (-1, 1), [4400, 4499]


@pytest.mark.parametrize(
    ("values", "where", "bad", "words"),
    [
        *(("counts", LAST, *case) for case in [(1.5, "1.5"), (-1, "-1"), (np.nan, "NaN"), (np.inf, "infinite")]),
        *(("log1p", LAST, *case) for case in [(-0.5, "negative"), (20.5, "counts"), (np.nan, "NaN")]),
        *((values, TWO_CELLS, 0, "4400") for values in ("counts", "log1p")),  # cells without counts
    ],
)
def test_bad_values_and_empty_cells_are_found_in_every_storage(make_adata, values, where, bad, words):
    x = counts() if values == "counts" else log_values()
    x[where] = bad
    adata, layer = make_adata(x)

    with pytest.raises(ValueError, match=words):
        check_expression(adata, layer, values)


def test_whole_numbers_are_no_log_values_in_any_storage(make_adata):
    adata, layer = make_adata(counts())

    with pytest.raises(ValueError, match="counts"):
        check_expression(adata, layer, "log1p")


def test_counts_that_float32_cannot_hold_are_refused():
    x = counts().astype(float)
    x[0, 0] = 2**24
    check_expression(anndata.AnnData(x), None, "counts")
    x[0, 0] += 1

    with pytest.raises(ValueError, match="16,777,216"):
        check_expression(anndata.AnnData(x), None, "counts")


@pytest.mark.parametrize("dtype", ["int64", "uint16", "float64", "float16", "bool"])
def test_counts_of_any_number_type_pass(dtype, recwarn):
    check_expression(anndata.AnnData(counts(50).clip(max=1).astype(dtype)), None, "counts")
    assert not [str(w.message) for w in recwarn if "overflow" in str(w.message)]


def test_log_values_of_which_some_are_whole_or_twenty_pass():
    for row in (-1, 0):  # among the rows that are looked at first, too
        x = counts().clip(max=20)
        x[row] = 0.25, 20, 1
        check_expression(anndata.AnnData(x), None, "log1p")


@pytest.mark.parametrize(("base", "is_natural"), [(None, True), (np.e, True), (2, False), (np.int64(10), False)])
def test_logarithms_are_natural_as_scanpy_says_in_uns(base, is_natural, tmp_path):
    adata = anndata.AnnData(counts(50))
    sc.pp.log1p(adata, base=base)
    adata.write_h5ad(tmp_path / "cells.h5ad")  # which leaves None out
    for check in (
        lambda: check_expression(adata, None, "log1p"),
        lambda: check_expression(anndata.read_h5ad(tmp_path / "cells.h5ad"), None, "log1p"),
        lambda: CellFiles(tmp_path / "cells.h5ad", values="log1p"),
    ):
        with nullcontext() if is_natural else pytest.raises(ValueError, match="base"):
            check()


def with_names(names):
    adata = anndata.AnnData(counts(5))
    adata.var_names = names
    return adata


@pytest.mark.parametrize(
    ("adata", "error", "words"),
    [
        *[(anndata.AnnData(np.ones((3, 2)).astype(dtype)), ValueError, "numbers") for dtype in (object, str, complex)],
        (with_names(["CD4", "CD8", "CD4"]), ValueError, "CD4"),
        (with_names(pd.Index([7, 11, 13])), ValueError, r"adata\.var_names"),  # such as Entrez identifiers
        (anndata.AnnData(obs=pd.DataFrame(index=["a"]), var=pd.DataFrame(index=["g"])), ValueError, r"adata\.X"),
        (anndata.AnnData(np.zeros((0, 3), np.float32)), ValueError, "0 cells and 3 genes"),
        (anndata.AnnData(np.zeros((3, 0), np.float32)), ValueError, "3 cells and 0 genes"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_expression_is_named(adata, error, words):
    with pytest.raises(error, match=words):
        check_expression(adata, None, "counts")


def test_bad_layers_are_named():
    masked = np.ma.masked_array(counts(50), mask=counts(50) > 1)
    adata = anndata.AnnData(counts(50), layers={"raw": masked})

    with pytest.raises(ValueError, match="raw"):
        check_expression(adata, "raw", "counts")
    with pytest.raises(KeyError, match="raw"):
        check_expression(adata, "row", "counts")


GENES = pd.Index([f"g{number}" for number in range(10)])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (GENES.delete([3, 7]), "g3"),
        (GENES.append(pd.Index(["mine"])), "mine"),
        (pd.Index([]), "g0"),
        (GENES[::-1], "order"),
        (GENES.append(GENES[:1]), "g0"),
    ],
)
def test_other_genes_are_refused(found, words):
    check_same_genes(GENES.copy(), GENES)
    with pytest.raises(ValueError, match=words):
        check_same_genes(found, GENES)
