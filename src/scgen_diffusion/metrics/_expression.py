"""What every metric starts from: log-normalised expression of the same genes, from whatever the cells come as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset

from scgen_diffusion.data import LARGEST_LOG1P, layer_names, warn_user

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from ._scales import Scale

#: Cells as AnnData, or as an array or sparse matrix `(cells, genes)`.
Cells: TypeAlias = AnnData | np.ndarray | sp.spmatrix | sp.sparray

TARGET_SUM = 1e4
COUNTS_LAYER = "counts"
N_LOOKED_AT = 2_000  # cells that tell counts from logarithms


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
        Counts, or, where ``uns["log1p"]`` says so, `log1p` values of any scale, to the base that it names (natural by default). Of an AnnData the
        layer is read, else ``layers["counts"]`` if there is one, else `X`. An array is taken as counts. Whole numbers in `X` are counts whatever ``uns`` says,
        with a warning.
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
    matrix, log_base = matrix_of(cells, layer, name)
    if isinstance(matrix, (CSRDataset, CSCDataset)):  # of an AnnData in backed mode
        matrix = matrix.to_memory()
    return on_scale(matrix, log_base, name=name, scale=scale)


def on_scale(
    matrix: sp.spmatrix | NDArray, log_base: float | None, *, name: str, scale: Scale | None = None
) -> Expression:
    """Return values on a scale, from what :func:`matrix_of` says of them."""
    matrix = sp.csr_matrix(matrix, dtype=np.float64)
    _check_values(matrix, log_base, name)
    scale = log_normalise if scale is None else scale
    if log_base is not None:
        return Expression(scale((matrix * np.log(log_base)).expm1()), None)
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
    check_has_genes(synthetic, genes, name)
    if synthetic.var_names.equals(genes):
        return synthetic
    if synthetic.isbacked and synthetic.is_view:  # of which anndata makes no other view
        synthetic = synthetic.to_memory()
    return synthetic[:, genes]


def check_has_genes(synthetic: AnnData, genes: pd.Index, name: str) -> None:
    """Raise as :func:`align_genes` does."""
    if synthetic.var_names.equals(genes):
        return
    missing = genes.difference(synthetic.var_names)
    if len(missing):
        msg = (
            f"`{name}` lacks {len(missing)} of the {len(genes)} genes of the real cells, such as {list(missing[:3])}; "
            f"compare on the common genes: real[:, common], {name}[:, common]."
        )
        raise ValueError(msg)
    if not (synthetic.var_names.is_unique and genes.is_unique):
        msg = (
            f"`{name}` and the real cells have their genes in another order, and some genes twice, so that it is not clear which belong "
            "together. Make `var_names` unique, or bring the genes into one order."
        )
        raise ValueError(msg)


def matrix_of(cells: Cells, layer: str | None, name: str) -> tuple[sp.spmatrix | NDArray, float | None]:
    """Return the values, and the base of their logarithms: None for counts."""
    if not isinstance(cells, AnnData):
        if layer is not None:
            msg = f"`layer` is {layer!r}, but `{name}` is an array, which has no layers."
            raise ValueError(msg)
        return cells, None
    if layer is None:
        layer = COUNTS_LAYER if COUNTS_LAYER in cells.layers else None
    elif layer not in cells.layers:
        msg = f"`{name}` has no layer {layer!r}; there are {layer_names(cells)}."
        raise KeyError(msg)
    if layer is not None:
        return cells.layers[layer], None
    if cells.X is None:
        msg = f"`{name}.X` is empty, and there is no layer {COUNTS_LAYER!r}; name the layer with counts: there are {layer_names(cells)}."
        raise ValueError(msg)
    return cells.X, _log_base(cells, name)


def _log_base(cells: AnnData, name: str) -> float | None:
    """Return the base of the logarithms in `X`; None for counts, which whole numbers are whatever ``uns`` says."""
    if "log1p" not in cells.uns:
        return None
    found = sp.csr_matrix(cells.X[:N_LOOKED_AT]).data
    if len(found) and not (found % 1).any():
        msg = (
            f"`{name}.uns['log1p']` says that `X` holds logarithms, but these are whole numbers, and taken as counts. "
            "Delete `uns['log1p']` if they are."
        )
        warn_user(msg)
        return None
    entry = cells.uns["log1p"]
    base = entry.get("base") if isinstance(entry, Mapping) else None
    if base is None:
        return np.e
    if not isinstance(base, int | float | np.number) or not 1 < base < np.inf:
        msg = f"`{name}.uns['log1p']['base']` is {base!r}; it must be a number above 1, or None for natural logarithms."
        raise ValueError(msg)
    return float(base)


def _check_values(matrix: sp.csr_matrix, log_base: float | None, name: str) -> None:
    if 0 in matrix.shape:
        msg = f"`{name}` must have cells and genes, but its shape is {matrix.shape}."
        raise ValueError(msg)
    if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
        msg = (
            f"`{name}` must not hold negative, infinite or missing values. Scaled values (scanpy.pp.scale) do not serve; "
            "name the layer with counts."
        )
        raise ValueError(msg)
    if log_base is not None and (largest := matrix.data.max(initial=0)) * np.log(log_base) > LARGEST_LOG1P:
        msg = (
            f"`{name}.uns['log1p']` says that `X` holds logarithms, but it has values up to {largest:.4g}, which are none. "
            "Name the layer with counts, or take the logarithm."
        )
        raise ValueError(msg)
    if log_base is None and (matrix.data % 1).any():
        msg = (
            f"`{name}` must hold counts (integers), but has values such as {matrix.data[matrix.data % 1 > 0][0]:.4g}. "
            f"Name the layer with counts, or, if X holds log1p values, set uns['log1p'] = {{}}."
        )
        raise ValueError(msg)
