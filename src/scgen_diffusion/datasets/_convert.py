"""From what was published to integer counts with labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import rdata
import scanpy as sc
from anndata import AnnData
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray


def read_r(path: Path) -> Any:
    """Read the only object of an ``.rda`` file. It is parsed, not run.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    The object as `rdata` converts it; a sparse matrix (genes, cells) becomes an AnnData (cells, genes).
    """
    constructors = {**rdata.conversion.DEFAULT_CLASS_MAP, "dgCMatrix": _from_sparse_matrix}
    (content,) = rdata.read_rda(path, constructor_dict=constructors).values()
    return content


def _from_sparse_matrix(matrix: Any, _attributes: Mapping[str, Any]) -> AnnData:
    genes, cells = matrix.Dimnames  # the compressed columns of (genes, cells) are the compressed rows of (cells, genes)
    values = sparse.csr_matrix((matrix.x, matrix.i, matrix.p), shape=(len(cells), len(genes)))
    return AnnData(X=values, obs=pd.DataFrame(index=_names(cells)), var=pd.DataFrame(index=_names(genes)))


def normalised_values(log_values: sparse.spmatrix) -> sparse.csr_matrix:
    """Undo `log1p` in double precision, shape `(cells, genes)`."""
    return sparse.csr_matrix(log_values, dtype=np.float64).expm1()


def smallest_per_cell(values: sparse.csr_matrix) -> NDArray[np.float64]:
    """Return the smallest value above zero of every cell, shape `(cells,)`; infinite where a cell has none."""
    smallest = np.full(values.shape[0], np.inf)
    np.minimum.at(smallest, np.repeat(np.arange(values.shape[0]), np.diff(values.indptr)), values.data)
    return smallest


def scale_to_counts(values: sparse.csr_matrix, factors: ArrayLike) -> sparse.csr_matrix:
    """Multiply every cell of shape `(cells, genes)` by its factor, shape `(cells,)`, and round to integers."""
    counts = values.copy()
    counts.data = np.rint(values.data * np.repeat(np.asarray(factors), np.diff(values.indptr)))
    return counts


def categorical_obs(cells: Iterable[str], **columns: Iterable[str]) -> pd.DataFrame:
    """Build an `obs` table of categorical columns, categories in sorted order.

    Parameters
    ----------
    cells
        Barcodes.
    columns
        One text per cell, by column name.
    """
    categoricals = {name: pd.Categorical(_names(values)) for name, values in columns.items()}
    return pd.DataFrame(categoricals, index=_names(cells))


def count_adata(counts: Any, obs: pd.DataFrame, genes: Iterable[str]) -> AnnData:
    """Build an AnnData whose `X` and ``layers["counts"]`` are the counts: CSR, float32, not shared.

    Parameters
    ----------
    counts
        Integers of shape `(cells, genes)`, sparse or dense.
    obs
        Labels, one row per cell.
    genes
        Gene names.
    """
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    counts.eliminate_zeros()
    counts.sort_indices()
    var = pd.DataFrame(index=_names(genes))
    return AnnData(X=counts, obs=obs, var=var, layers={"counts": counts.copy()})


def expression_adata(counts: Any, obs: pd.DataFrame, genes: Iterable[str], source: Mapping[str, str]) -> AnnData:
    """Build what the public functions return: counts as a layer, log-normalised values as `X`.

    Parameters
    ----------
    counts, obs, genes
        As in :func:`count_adata`. Cells without any count are left out.
    source
        Where the data come from.
    """
    adata = count_adata(counts, obs, genes)
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    adata.uns["source"] = dict(source)
    return adata


def _names(values: Iterable[str]) -> pd.Index:
    return pd.Index([str(value) for value in values], dtype=object)
