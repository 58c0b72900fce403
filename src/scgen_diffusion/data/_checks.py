"""Checks of a user's AnnData, before any long work starts."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp
from scvi import settings

from scgen_diffusion._arguments import check_count, known_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from anndata import AnnData

CHUNK = 4096  # rows looked at together, so that backed files are never read whole
LARGEST_LOG1P = 20.0  # log1p of half a billion; no normalisation in use gives as much
LARGEST_SEED = 2**63 - 1  # which files can hold
N_NAMED = 5  # how many offenders an error names
COUNTS_ADVICE = (
    "Name the layer that holds raw counts with `layer=...`. For log-normalised values set "
    "`values='log1p'`, which suits SCRDIT, WBDIT, and SCLDM with `likelihood='gaussian'`."
)


def check_expression(adata: AnnData, layer: str | None, values: Literal["counts", "log1p"]) -> None:
    """Raise unless the matrix holds what ``values`` says, in every cell.

    Raises
    ------
    KeyError
        If there is no such layer.
    ValueError
        For duplicate genes, values that are NaN, infinite or negative, counts that are fractional, logarithms that are whole,
        too large or not natural, and cells without any count.
    """
    where = check_layer(adata, layer)
    check_shape(adata, where)
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        msg = f"{where} is empty; give the layer that holds the {values}."
        raise ValueError(msg)
    totals = check_values(matrix, where, values)
    if values == "log1p":
        check_natural_logarithms(adata.uns.get("log1p"), where)
    check_not_empty(totals, adata.obs_names, where)


def check_layer(adata: AnnData, layer: str | None, owner: str = "adata") -> str:
    """Return the name of what ``layer`` means.

    Raises
    ------
    KeyError
        If there is no such layer.
    TypeError
        For a matrix in place of its name.
    """
    if layer is None:
        return f"{owner}.X"
    if not isinstance(layer, str):
        msg = f"`layer` must be the name of a layer, or None for {owner}.X, but found {type(layer).__name__}."
        raise TypeError(msg)
    if layer not in adata.layers:
        msg = f"`layer` {layer!r} is not in {owner}.layers. {known_names(layer, layer_names(adata))} Leave it out for {owner}.X."
        raise KeyError(msg)
    return f"{owner}.layers[{layer!r}]"


def obs_column(cells: AnnData, key: str, name: str) -> pd.Series:
    """Return a column of ``obs``; ``name`` says how the cells are called.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If there are several of this name.
    """
    if key not in cells.obs:
        msg = f"`{name}.obs` has no column {key!r}. {known_names(key, list(cells.obs.columns))}"
        raise KeyError(msg)
    column = cells.obs[key]
    if column.ndim > 1:
        msg = f"`{name}.obs` has {column.shape[1]} columns {key!r}; rename all but one."
        raise ValueError(msg)
    return column


def layer_names(adata: AnnData) -> list[str]:
    """List the layers; from anndata 0.13 on, ``X`` is among them under the name None, and is left out here."""
    return [name for name in adata.layers if name is not None]


def check_values(
    matrix: Any, where: str, values: Literal["counts", "log1p"], advice: str = COUNTS_ADVICE
) -> np.ndarray:
    """Raise unless a matrix, which is read part by part, holds what ``values`` says; return the sums of its rows, ``(cells,)``."""
    if values not in ("counts", "log1p"):
        msg = f"`values` must be 'counts' or 'log1p', but found {values!r}."
        raise ValueError(msg)
    totals, all_whole = [], True
    for chunk in _chunks(matrix):
        stored = np.asarray(chunk.data if sp.issparse(chunk) else chunk)
        if stored.dtype.kind not in "biuf":
            msg = f"{where} holds values of the type {stored.dtype}, but numbers are needed."
            raise ValueError(msg)
        if (bad := ~np.isfinite(stored)).any():
            msg = f"{where} holds {bad.sum()} values that are NaN or infinite; every value must be finite."
            raise ValueError(msg)
        if (stored < 0).any():
            reason = "counts cannot be negative."
            if values == "log1p":
                reason = (
                    "log-normalised values cannot be negative. Scaled values (scanpy.pp.scale) do not serve; name the layer that holds them "
                    "unscaled with `layer=...`."
                )
            msg = f"{where} holds negative values (smallest {stored.min():.4g}); {reason}"
            raise ValueError(msg)
        if values == "counts" or all_whole:
            fractional = stored[stored != np.round(stored)]
            all_whole = not fractional.size
        if values == "counts" and not all_whole:
            found = f"{fractional[0]:.4g}"
            msg = f"{where} holds values that are not whole numbers (for example {found}), but counts are needed. {advice}"
            raise ValueError(msg)
        if values == "log1p" and stored.max(initial=0) > LARGEST_LOG1P:
            msg = f"{where} holds values up to {stored.max():.4g}, which are no logarithms. Did you mean `values='counts'`?"
            raise ValueError(msg)
        totals.append(_sums(chunk))
    if values == "log1p" and all_whole:
        msg = f"{where} holds whole numbers only, as counts do, not log-normalised values. Set `values='counts'`."
        raise ValueError(msg)
    return np.concatenate(totals)


def check_natural_logarithms(log1p: Any, where: str) -> None:
    """Raise if ``uns["log1p"]``, as scanpy writes it, says that logarithms have another base than e, which None stands for."""
    base = log1p.get("base") if isinstance(log1p, Mapping) else None
    if base is not None and not (isinstance(base, Real) and np.isclose(float(base), np.e)):
        msg = (
            f"uns['log1p']['base'] says that logarithms are to the base {base}, but models read and write natural ones. Convert those in "
            f"{where}: multiply them by np.log({base}), and set adata.uns['log1p']['base'] = None. If {where} holds natural logarithms "
            "already, set it to None alone."
        )
        raise ValueError(msg)


def check_not_empty(totals: np.ndarray, names: pd.Index, where: str) -> None:
    """Raise if the values of any cell add up to nothing."""
    empty = totals == 0
    if empty.any():
        msg = (
            f"{where} has cells without any count: {name_some(names[empty])}. Remove them, for example with "
            "scanpy.pp.filter_cells(adata, min_counts=1)."
        )
        raise ValueError(msg)


def check_shape(adata: AnnData, where: str, owner: str = "adata") -> None:
    """Raise unless there are cells and genes, each gene and each of its columns once."""
    check_size(adata.shape, where)
    if not adata.var_names.is_unique:
        repeated = adata.var_names[adata.var_names.duplicated()].unique()
        msg = f"{owner}.var_names has duplicates: {name_some(repeated)}. Call {owner}.var_names_make_unique() first."
        raise ValueError(msg)
    check_distinct_columns(adata.var.columns, f"{owner}.var")


def check_size(shape: tuple[int, int], where: str) -> None:
    """Raise unless there are cells and genes."""
    if 0 in shape:
        msg = f"{where} has {shape[0]} cells and {shape[1]} genes; at least one of each is needed."
        raise ValueError(msg)


def check_distinct_columns(columns: pd.Index, where: str) -> None:
    """Raise if two columns have the same name."""
    if not columns.is_unique:
        msg = f"{where} has several columns of the name {columns[columns.duplicated()][0]!r}; rename them, or remove all but one."
        raise ValueError(msg)


def check_same_genes(found: pd.Index, expected: pd.Index) -> None:
    """Raise unless ``found`` holds the ``expected`` genes in the same order."""
    if list(found) == list(expected):
        return
    if not found.is_unique:
        msg = f"Genes occur more than once: {name_some(found[found.duplicated()].unique())}."
        raise ValueError(msg)
    missing, extra = expected.difference(found, sort=False), found.difference(expected, sort=False)
    msg = "The genes are those of the model in another order."
    if len(missing) or len(extra):
        msg = f"The genes differ from the {len(expected)} of the model: {name_some(missing)} missing, {name_some(extra)} unknown to the model."
    raise ValueError(msg if len(missing) else f"{msg} Use adata[:, model.get_var_names()].")


def checked_rows(indices: Sequence[int] | np.ndarray | None, n_cells: int) -> np.ndarray:
    """Return the numbers of the rows that are asked for, at least one."""
    rows = row_numbers(indices, n_cells)
    if len(rows) == 0:
        msg = "`indices` selects no cells."
        raise ValueError(msg)
    return rows


def row_numbers(indices: Sequence[int] | np.ndarray | None, n_cells: int) -> np.ndarray:
    """Turn None or a mask into the numbers of the rows it means."""
    if indices is None:
        return np.arange(n_cells)
    rows = np.asarray(indices)
    is_mask = rows.dtype == bool
    if rows.ndim != 1 or (is_mask and len(rows) != n_cells) or (len(rows) and rows.dtype.kind not in "iub"):
        msg = f"`indices` must be a list of whole numbers, or a mask of the {n_cells} cells, but found {rows.dtype} of shape {rows.shape}."
        raise ValueError(msg)
    if is_mask:
        return np.flatnonzero(rows)
    rows = rows.astype(int)
    if len(rows) and (rows.min() < -n_cells or rows.max() >= n_cells):
        msg = f"`indices` must lie within the {n_cells} cells, but found {rows.min()} to {rows.max()}."
        raise ValueError(msg)
    return np.where(rows < 0, rows + n_cells, rows)


def resolve_seed(seed: int | None) -> int:
    """Take scvi-tools' seed if none is given, or else a fresh one, which provenance records."""
    if seed is None:
        seed = settings.seed
    if seed is None:
        return int(np.random.default_rng().integers(2**31))
    return check_count("seed", seed, least=0, most=LARGEST_SEED)


def name_some(names: pd.Index) -> str:
    """Say how many names there are, and the first of them."""
    if not len(names):
        return "none"
    listed = ", ".join(map(repr, names[:N_NAMED]))
    return f"{len(names)} ({listed}{', ...' if len(names) > N_NAMED else ''})"


def row_sums(matrix: Any) -> np.ndarray:
    """Return the sums of a matrix's rows, which is read part by part, ``(cells,)``."""
    return np.concatenate([_sums(chunk) for chunk in _chunks(matrix)])


def _chunks(matrix: Any) -> Iterator[np.ndarray | sp.spmatrix]:
    for start in range(0, matrix.shape[0], CHUNK):
        chunk = matrix[start : start + CHUNK]
        yield chunk.tocsr() if sp.issparse(chunk) else np.asarray(chunk)


def _sums(chunk: np.ndarray | sp.spmatrix) -> np.ndarray:
    """Add in double precision what models read in single: the sums are the same, however the values are stored."""
    return np.asarray(chunk.astype(np.float32, copy=False).sum(axis=1, dtype=np.float64)).ravel()
