"""Checks of a user's AnnData, before any long work starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scvi import settings

from scgen_diffusion._arguments import check_count, known_names, list_first

from ._matrices import chunk_sums, chunks, to_csr

if TYPE_CHECKING:
    from collections.abc import Sequence


LARGEST_LOG1P = 20.0  # log1p of half a billion; no common normalisation gives more
LARGEST_COUNT = 2**24  # up to which float32 holds all whole numbers
LARGEST_SEED = 2**63 - 1  # largest that files can hold
N_CELLS_CHECKED = 2_000  # to distinguish counts from logarithms
COUNTS_ADVICE = "Give the layer with raw counts as `layer=...`, or set `values='log1p'` for log-normalised values."


def check_expression(
    adata: AnnData, layer: str | None, values: Literal["counts", "log1p"], advice: str = COUNTS_ADVICE
) -> None:
    """Raise as :func:`expression_totals` does, and for cells without any count."""
    check_not_empty(expression_totals(adata, layer, values, advice), adata.obs_names, check_layer(adata, layer))


def expression_totals(
    adata: AnnData, layer: str | None, values: Literal["counts", "log1p"], advice: str, owner: str = "adata"
) -> np.ndarray:
    """Return the row sums, ``(cells,)``, of cells that hold the kind of values that ``values`` says.

    Raises
    ------
    KeyError
        If there is no such layer.
    ValueError
        For no cells or genes, gene names that are not text or not unique, values that are NaN, infinite or negative,
        fractional counts (with advice), and logarithms that are integers, too large or not natural by ``uns["log1p"]``.
    """
    where = check_layer(adata, layer, owner)
    check_size(adata.shape, where)
    if numbers := [name for name in adata.var_names if not isinstance(name, str)]:
        msg = f"{owner}.var_names must be text, but found {numbers[0]!r}; convert them: .astype(str)."
        raise ValueError(msg)
    check_unique_names(adata.var_names, f"{owner}.var_names")
    matrix = values_in(adata, layer)
    if matrix is None:
        msg = f"{where} is empty. {advice}"
        raise ValueError(msg)
    if layer is None and adata.raw is not None:
        advice += f" If `{owner}.raw` has the counts: `{owner}.raw.to_adata()`, without `uns['log1p']`."
    totals = check_values(matrix, where, values, advice)
    if values == "log1p":
        check_natural_logarithms(adata.uns.get("log1p"), where)
    return totals


def are_whole_numbers(matrix: Any) -> bool:
    """Return whether the values of the first rows are whole numbers: counts, whatever ``uns["log1p"]`` says."""
    found = to_csr(matrix[:N_CELLS_CHECKED]).data
    return len(found) > 0 and not (found % 1).any()


def check_layer(adata: AnnData, layer: str | None, owner: str = "adata") -> str:
    """Return the name of a layer for messages; raise KeyError if there is no such layer."""
    if layer is None:
        return f"{owner}.X"
    if layer not in adata.layers:
        msg = f"`layer` {layer!r} is not in {owner}.layers. {known_names(layer, layer_names(adata))}"
        raise KeyError(msg)
    return f"{owner}.layers[{layer!r}]"


def check_is_anndata(cells: object, name: str, advice: str = "") -> None:
    """Raise TypeError for anything but an AnnData; ``name`` is the user's name for the cells."""
    if not isinstance(cells, AnnData):
        msg = f"`{name}` must be an AnnData, but found {type(cells).__name__}.{advice}"
        raise TypeError(msg)


def make_indexable(cells: AnnData) -> AnnData:
    """Return the cells, in memory if they are a view of a file: anndata makes no view of such a view."""
    return cells.to_memory() if cells.isbacked and cells.is_view else cells


def obs_column(cells: AnnData, key: str, name: str) -> pd.Series:
    """Return a column of ``obs``; ``name`` is the user's name for the cells.

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
    check_unique_names(cells.obs[[key]].columns, f"{name}.obs")
    return cells.obs[key]


def values_in(cells: AnnData, layer: str | None) -> Any:
    """Return the values of a layer, or of ``X``; None if there is no ``X``."""
    return cells.X if layer is None else cells.layers[layer]


def layer_of(cells: AnnData, layer: str | None) -> str | None:
    """Return the layer if the cells have it, else None: generated cells have their counts in ``X``."""
    return layer if layer in cells.layers else None


def layer_names(adata: AnnData) -> list[str]:
    """List the layers, without ``X``, which anndata 0.13 lists under the name None."""
    return [name for name in adata.layers if name is not None]


def check_values(
    matrix: Any, where: str, values: Literal["counts", "log1p"], advice: str = COUNTS_ADVICE
) -> np.ndarray:
    """Raise unless a matrix holds the kind of values that ``values`` says; return the row sums, ``(cells,)``.

    The matrix is read part by part.
    """
    if values not in ("counts", "log1p"):
        msg = f"`values` must be 'counts' or 'log1p', but found {values!r}."
        raise ValueError(msg)
    totals, all_whole = [], True
    for chunk in chunks(matrix, where):
        stored = np.asarray(chunk.data if sp.issparse(chunk) else chunk)
        if wrong := _wrong_values(stored, values, advice):
            msg = f"{where} holds {wrong}"
            raise ValueError(msg)
        all_whole = all_whole and (values == "counts" or not _fractions(stored).size)
        totals.append(chunk_sums(chunk))
    if values == "log1p" and all_whole:
        msg = f"{where} holds whole numbers only, like counts, not log-normalised values. Set `values='counts'`."
        raise ValueError(msg)
    return np.concatenate(totals)


def _wrong_values(stored: np.ndarray, values: str, advice: str) -> str:
    """Say which of some values are wrong; "" if none."""
    if stored.dtype.kind not in "biuf":
        return f"values of type {stored.dtype}, but numbers are needed."
    if not np.isfinite(stored).all():
        return "values that are NaN or infinite; every value must be finite."
    least, most = float(stored.min(initial=0)), float(stored.max(initial=0))
    if least < 0:
        return f"negative values (smallest {least:.4g}); give the {values} before scanpy.pp.scale, or their layer."
    if values == "log1p":
        too_large = f"values up to {most:.4g}, too large for logarithms. Did you mean `values='counts'`?"
        return too_large if most > LARGEST_LOG1P else ""
    if (fractions := _fractions(stored)).size:
        return f"values that are not whole numbers (for example {fractions[0]:.4g}), but needs counts. {advice}"
    if most > LARGEST_COUNT:
        return f"values up to {most:.4g}; counts must be at most {LARGEST_COUNT:,}. Are they counts?"
    return ""


def _fractions(stored: np.ndarray) -> np.ndarray:
    """Return the values that are not whole numbers."""
    return stored[stored != np.round(stored)]


def check_natural_logarithms(log1p: Any, where: str) -> None:
    """Raise if scanpy's ``uns["log1p"]`` says that logarithms have another base than e; None means e."""
    base = log1p.get("base") if isinstance(log1p, Mapping) else None
    if base is not None and not (isinstance(base, Real) and np.isclose(float(base), np.e)):
        remedy = f"Multiply {where} by np.log({base}), and set uns['log1p']['base'] = None"
        msg = f"uns['log1p']['base'] is {base}, but models need natural logarithms. {remedy}."
        raise ValueError(msg)


def check_names(names: Sequence[str] | None, argument: str) -> list[str]:
    """Return names as a list, empty for None; raise TypeError for anything but a list of names."""
    if names is None:
        return []
    is_list = isinstance(names, Collection) and not isinstance(names, str | Mapping | Set)
    if not is_list or not all(isinstance(name, str) for name in names):
        msg = f"`{argument}` must be a list of names, but found {names!r:.60}."
        raise TypeError(msg)
    return [str(name) for name in names]  # also subclasses of str


def check_not_empty(totals: np.ndarray, names: pd.Index, where: str) -> None:
    """Raise if the values of any cell add up to zero."""
    empty = totals == 0
    if empty.any():
        msg = f"{where} has cells without any count: {list_first(names[empty])}. Remove them (scanpy.pp.filter_cells)."
        raise ValueError(msg)


def check_unique_names(names: pd.Index, where: str) -> None:
    """Raise if two cells, genes or columns have the same name; ``where`` says which, such as ``adata.var_names``."""
    if not names.is_unique:
        msg = f"{where} has duplicates: {list_first(names[names.duplicated()].unique())}. Make the names unique."
        raise ValueError(msg)


def check_size(shape: tuple[int, int], where: str) -> None:
    """Raise unless there are cells and genes."""
    if 0 in shape:
        msg = f"{where} has {shape[0]} cells and {shape[1]} genes; at least one of each is needed."
        raise ValueError(msg)


def check_rows(indices: Sequence[int] | np.ndarray | None, n_cells: int) -> np.ndarray:
    """Return the selected row numbers; raise if there are none."""
    rows = row_numbers(indices, n_cells)
    if len(rows) == 0:
        msg = "`indices` selects no cells." if n_cells else "There are no cells."
        raise ValueError(msg)
    return rows


def row_numbers(indices: Sequence[int] | np.ndarray | None, n_cells: int) -> np.ndarray:
    """Turn None, a mask or indices into row numbers."""
    rows = np.arange(n_cells)
    if indices is None:
        return rows
    try:
        return pd.Index(rows)[np.asarray(indices if len(indices) else rows[:0])].to_numpy()  # refuses two dimensions
    except (IndexError, TypeError, ValueError) as error:
        msg = f"`indices` must be row numbers or a mask of {n_cells} cells: {error}."
        raise ValueError(msg) from error


def resolve_seed(seed: int | None) -> int:
    """Return the given seed, or scvi-tools' seed, or else a random one."""
    if seed is None:
        seed = settings.seed
    if seed is None:
        return int(np.random.default_rng().integers(2**31))
    return check_count("seed", seed, least=0, most=LARGEST_SEED)
