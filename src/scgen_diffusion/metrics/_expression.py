"""What every metric starts from: log-normalised expression of the same genes, from whatever the cells come as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset

from scgen_diffusion.data import layer_names

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from ._scales import Scale

#: Cells as AnnData, or as an array or sparse matrix `(cells, genes)`.
Cells: TypeAlias = AnnData | np.ndarray | sp.spmatrix | sp.sparray

TARGET_SUM = 1e4
COUNTS_LAYER = "counts"


@dataclass(frozen=True)
class Expression:
    """Expression of some cells on the common scale of all metrics.

    Attributes
    ----------
    values
        `log1p` of what sums to 10 000 per cell, CSR, float32, `(cells, genes)`. A cell without counts stays zero.
    library_sizes
        Total counts `(cells,)`; None for cells that came log-normalised.
    """

    values: sp.csr_matrix
    library_sizes: NDArray[np.float64] | None

    def __len__(self) -> int:
        return self.values.shape[0]

    def __getitem__(self, rows: NDArray) -> Expression:
        """Return some of the cells, by position or mask."""
        sizes = None if self.library_sizes is None else self.library_sizes[rows]
        return Expression(self.values[rows], sizes)


def expression_of(
    cells: Cells, *, layer: str | None = None, name: str = "cells", scale: Scale | None = None
) -> Expression:
    """Return cells on the common scale: `log1p` of values that sum to 10 000 per cell over the genes given.

    Parameters
    ----------
    cells
        Counts, or, where ``uns["log1p"]`` says so, `log1p` values of any scale. Of an AnnData the layer is read, else
        ``layers["counts"]`` if there is one, else `X`. An array is taken as counts.
    layer
        Layer with the counts.
    name
        What errors call the cells.
    scale
        Another scale for counts, such as one for proteins; a function of a CSR matrix.

    Raises
    ------
    KeyError
        If there is no such layer.
    ValueError
        If there is no cell or gene, or if values are negative, not finite, or neither integers nor said to be logarithms.
    """
    matrix, is_log1p = matrix_of(cells, layer, name)
    if isinstance(matrix, (CSRDataset, CSCDataset)):  # of an AnnData in backed mode
        matrix = matrix.to_memory()
    matrix = sp.csr_matrix(matrix, dtype=np.float64)
    _check_values(matrix, is_log1p=is_log1p, name=name)
    scale = log_normalise if scale is None else scale
    if is_log1p:
        return Expression(scale(matrix.expm1()), None)
    return Expression(scale(matrix), np.asarray(matrix.sum(axis=1)).ravel())


def log_normalise(values: sp.spmatrix | NDArray) -> sp.csr_matrix:
    """Scale every cell to 10 000 and take `log1p`; a cell without counts stays zero. CSR, float32."""
    values = sp.csr_matrix(values, dtype=np.float64, copy=True)
    totals = np.asarray(values.sum(axis=1)).ravel()
    values.data *= np.repeat(TARGET_SUM / np.where(totals > 0, totals, 1), np.diff(values.indptr))
    return values.log1p().astype(np.float32)


def align_genes(synthetic: AnnData, genes: pd.Index, *, name: str = "synthetic") -> AnnData:
    """Return the cells with these genes in this order.

    Raises
    ------
    ValueError
        If a gene is absent, or occurs twice.
    """
    if synthetic.var_names.equals(genes):
        return synthetic
    missing = genes.difference(synthetic.var_names)
    if len(missing):
        msg = (
            f"`{name}` lacks {len(missing)} of the {len(genes)} genes of the real cells, such as {list(missing[:3])}; "
            f"compare on the common genes: real[:, common], {name}[:, common]."
        )
        raise ValueError(msg)
    if not synthetic.var_names.is_unique:
        msg = f"`{name}.var_names` must be unique where its genes are not those of the real cells in the same order."
        raise ValueError(msg)
    return synthetic[:, genes]


def matrix_of(cells: Cells, layer: str | None, name: str) -> tuple[sp.spmatrix | NDArray, bool]:
    """Return the values and whether they are `log1p` values."""
    if not isinstance(cells, AnnData):
        if layer is not None:
            msg = f"`layer` is {layer!r}, but `{name}` is an array, which has no layers."
            raise ValueError(msg)
        return cells, False
    if layer is None:
        layer = COUNTS_LAYER if COUNTS_LAYER in cells.layers else None
    elif layer not in cells.layers:
        msg = f"`{name}` has no layer {layer!r}; there are {layer_names(cells)}."
        raise KeyError(msg)
    if layer is not None:
        return cells.layers[layer], False
    if cells.X is None:
        msg = f"`{name}.X` is empty, and there is no layer {COUNTS_LAYER!r}; name the layer with counts: there are {layer_names(cells)}."
        raise ValueError(msg)
    return cells.X, "log1p" in cells.uns


def _check_values(matrix: sp.csr_matrix, *, is_log1p: bool, name: str) -> None:
    if 0 in matrix.shape:
        msg = f"`{name}` must have cells and genes, but its shape is {matrix.shape}."
        raise ValueError(msg)
    if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
        msg = f"`{name}` must not hold negative, infinite or missing values."
        raise ValueError(msg)
    if not is_log1p and (matrix.data % 1).any():
        msg = (
            f"`{name}` must hold counts (integers), but has values such as {matrix.data[matrix.data % 1 > 0][0]:.4g}. "
            f"Name the layer with counts, or, if X holds log1p values, set uns['log1p'] = {{}}."
        )
        raise ValueError(msg)
