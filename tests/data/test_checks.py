"""Checks of a user's cells: what passes, and what each error says."""

from __future__ import annotations

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from scgen_diffusion.data import CellFiles, check_expression, check_same_genes, check_storage

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


def with_value(value, row=N_CELLS - 1):
    x = counts()
    x[row, 1] = value
    return x


def test_good_counts_pass_in_every_storage(make_adata):
    adata, layer = make_adata(counts())

    check_expression(adata, layer, "counts")


@pytest.mark.parametrize(
    ("value", "words"),
    [(1.5, "not whole numbers.*1.5"), (-1, "negative.*-1"), (np.nan, "NaN or infinite"), (np.inf, "NaN or infinite")],
)
def test_a_single_bad_value_in_the_last_cell_is_found_in_every_storage(make_adata, value, words):
    adata, layer = make_adata(with_value(value))

    with pytest.raises(ValueError, match=words):
        check_expression(adata, layer, "counts")


def test_empty_cells_are_named_in_every_storage(make_adata):
    x = counts()
    x[[4400, 4499]] = 0
    adata, layer = make_adata(x)

    with pytest.raises(ValueError, match="4400"):
        check_expression(adata, layer, "counts")


def log_values():
    return np.log1p(counts())


def test_counts_that_float32_cannot_hold_are_refused():
    x = counts().astype(float)
    x[0, 0] = 2**24
    check_expression(anndata.AnnData(x), None, "counts")
    x[0, 0] += 1

    with pytest.raises(ValueError, match=r"holds values up to 1\.678e\+07; counts must be at most 16,777,216"):
        check_expression(anndata.AnnData(x), None, "counts")


def test_counts_of_half_precision_pass_without_a_warning(recwarn):
    check_expression(anndata.AnnData(counts().astype(np.float16)), None, "counts")
    assert not [str(w.message) for w in recwarn if "overflow" in str(w.message)]


def test_good_log_values_pass_in_every_storage(make_adata):
    adata, layer = make_adata(log_values())

    check_expression(adata, layer, "log1p")


def test_log_values_of_which_some_are_whole_pass():
    check_expression(anndata.AnnData(with_value(0.25)), None, "log1p")
    check_expression(anndata.AnnData(with_value(0.25, row=0)), None, "log1p")  # in the rows that are looked at first


@pytest.mark.parametrize("log", [np.log2, np.log10])
@pytest.mark.parametrize("total", [None, 1e4])
def test_logarithms_of_counts_to_other_bases_are_refused(make_adata, log, total):
    x = counts(300, 8)
    x = x if total is None else x / x.sum(1, keepdims=True) * total
    adata, layer = make_adata(log(1 + x))

    with pytest.raises(ValueError, match=log.__name__.replace("log", r"np\.log.")):
        check_expression(adata, layer, "log1p")


def not_of_another_base():
    x, rng = counts(300, 8), np.random.default_rng(0)
    natural = np.log1p(x / x.sum(1, keepdims=True) * 1e4)
    return {
        "natural": natural,
        "natural of counts": np.log1p(x),
        "tiny": np.log1p(x / x.sum(1, keepdims=True)),
        "half precision": natural.astype(np.float16),
        "three digits": np.round(natural, 3),
        "scaled": natural / natural.std(0),
        "regressed": (natural + 0.3 * rng.normal(size=(300, 1))).clip(0),
        "smoothed": natural @ rng.dirichlet(np.ones(8), 8),
        "arcsinh": np.arcsinh(x),
        "without counts": rng.gamma(1, size=x.shape).clip(0, 20),
        "grid": rng.integers(1, 8, x.shape) / 2,
    }


@pytest.mark.parametrize("name", not_of_another_base())
def test_other_values_are_not_taken_for_logarithms_of_another_base(name):
    check_expression(anndata.AnnData(not_of_another_base()[name]), None, "log1p")


def test_log_values_may_be_20_and_no_more():
    x = log_values()
    x[0, 0] = 20.0

    check_expression(anndata.AnnData(x), None, "log1p")


@pytest.mark.parametrize(
    ("value", "words"),
    [(-0.5, "negative values"), (20.5, "counts"), (np.nan, "NaN or infinite")],
)
def test_a_single_bad_log_value_in_the_last_cell_is_found_in_every_storage(make_adata, value, words):
    x = log_values()
    x[-1, 1] = value
    adata, layer = make_adata(x)

    with pytest.raises(ValueError, match=words):
        check_expression(adata, layer, "log1p")


def test_whole_numbers_are_no_log_values_in_any_storage(make_adata):
    adata, layer = make_adata(counts())

    with pytest.raises(ValueError, match="counts"):
        check_expression(adata, layer, "log1p")


def test_cells_without_log_values_are_named():
    x = log_values()
    x[[3, 7]] = 0

    with pytest.raises(ValueError, match="3"):
        check_expression(anndata.AnnData(x), None, "log1p")


@pytest.mark.parametrize(("base", "is_natural"), [(None, True), (np.e, True), (2, False), (np.int64(10), False)])
def test_logarithms_are_natural_as_scanpy_says_in_uns(base, is_natural, tmp_path):
    adata = anndata.AnnData(counts(50))
    sc.pp.log1p(adata, base=base)
    adata.write_h5ad(tmp_path / "cells.h5ad")  # which leaves None out
    for cells in (adata, anndata.read_h5ad(tmp_path / "cells.h5ad")):
        if is_natural:
            check_expression(cells, None, "log1p")
            continue
        with pytest.raises(ValueError, match=rf"to the base {base}, but .* natural ones.*np.log\({base}\)"):
            check_expression(cells, None, "log1p")
        with pytest.raises(ValueError, match=f"to the base {base}"):
            CellFiles(tmp_path / "cells.h5ad", values="log1p")
        cells.X *= np.log(base)
        cells.uns["log1p"]["base"] = None
        check_expression(cells, None, "log1p")


@pytest.mark.parametrize("dtype", [object, str, complex])
def test_values_that_are_no_numbers_are_refused(dtype):
    with pytest.raises(ValueError, match="values of type .*, but numbers are needed"):
        check_expression(anndata.AnnData(np.ones((3, 2)).astype(dtype)), None, "counts")


def test_masked_arrays_are_refused():
    masked = np.ma.masked_array(counts(50), mask=counts(50) > 1)

    with pytest.raises(ValueError, match="raw"):
        check_expression(anndata.AnnData(counts(50), layers={"raw": masked}), "raw", "counts")


def test_dask_arrays_of_sparse_chunks_are_refused():
    try:
        import dask.array as da
    except ImportError:
        lazy = SimpleNamespace(_meta=sp.csr_matrix((0, 0)))  # dask keeps an example of a chunk
    else:
        lazy = da.from_array(np.ones((2, 2)), chunks=(1, 2)).map_blocks(sp.csr_matrix)

    with pytest.raises(ValueError, match=r"adata\.X"):
        check_storage(lazy, "adata.X")


@pytest.mark.parametrize("dtype", ["int64", "uint16", "float64", "bool"])
def test_counts_of_any_number_type_pass(dtype):
    check_expression(anndata.AnnData(counts(50).clip(max=1).astype(dtype)), None, "counts")


def test_duplicate_genes_are_named():
    adata = anndata.AnnData(counts(5))
    adata.var_names = ["CD4", "CD8", "CD4"]

    with pytest.raises(ValueError, match="CD4"):
        check_expression(adata, None, "counts")


def test_genes_named_by_numbers_are_refused():
    adata = anndata.AnnData(counts(10))
    adata.var_names = pd.Index([7, 11, 13])  # such as Entrez identifiers

    with pytest.raises(ValueError, match=r"adata\.var_names"):
        check_expression(adata, None, "counts")


def test_an_unknown_layer_lists_the_known_ones_closest_first():
    adata = anndata.AnnData(counts(5), layers={"spliced": counts(5), "counts": counts(5)})

    with pytest.raises(KeyError, match="count"):
        check_expression(adata, "count", "counts")


def test_a_missing_matrix_is_reported():
    adata = anndata.AnnData(obs=pd.DataFrame(index=["a"]), var=pd.DataFrame(index=["g"]))

    with pytest.raises(ValueError, match=r"adata\.X is empty"):
        check_expression(adata, None, "counts")


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_no_cells_or_no_genes_are_refused(shape):
    with pytest.raises(ValueError, match=f"{shape[0]} cells and {shape[1]} genes"):
        check_expression(anndata.AnnData(np.zeros(shape, dtype=np.float32)), None, "counts")


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
