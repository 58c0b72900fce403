"""AnnData: the cells that a model returns, and new cells padded to the genes of a model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scgen_diffusion._arguments import is_number, warn_user
from scgen_diffusion._version import VERSION

from ._checks import check_unique_names, layer_names
from ._matrices import check_storage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger(__name__)

PROVENANCE_KEY = "scgen_diffusion"
SYNTHETIC = "synthetic"
OF_CONTROL = "_of_control"  # ends the names of columns with the old conditions of predicted cells
JOIN = "|"
NO_LABEL = "no label"
SMALLEST_SHARE = 0.8  # of a model's genes, as in scvi-tools; fewer give a warning


def build_anndata(
    x: sp.csr_matrix | np.ndarray,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    provenance: Mapping[str, Any],
    *,
    is_log1p: bool,
    layers: Mapping[str, np.ndarray] | None = None,
    obsm: Mapping[str, np.ndarray | pd.DataFrame] | None = None,
) -> AnnData:
    """Build the AnnData of generated cells; ``uns["log1p"]`` tells scanpy that values are logarithms."""
    uns: dict[str, Any] = {PROVENANCE_KEY: dict(provenance)}
    if is_log1p:
        uns["log1p"] = {}
    return AnnData(X=x, obs=mark_synthetic(obs, provenance), var=var.copy(), uns=uns, layers=layers, obsm=obsm)


def mark_synthetic(obs: pd.DataFrame, provenance: Mapping[str, Any]) -> pd.DataFrame:
    """Add the column that marks cells as synthetic and names the model."""
    maker = f"{provenance['model']} {VERSION}"
    return obs.assign(**{SYNTHETIC: pd.Categorical.from_codes(np.zeros(len(obs), dtype=int), categories=[maker])})


def drop_unused_categories(obs: pd.DataFrame) -> pd.DataFrame:
    """Return `obs` without categories that no cell has, which scanpy would take for empty groups.

    Ordered ones stay: if they differ, anndata cannot join cells.
    """
    obs = obs.copy()
    for name, dtype in obs.dtypes.items():
        if isinstance(dtype, pd.CategoricalDtype) and not dtype.ordered:
            obs[name] = obs[name].cat.remove_unused_categories()
    return obs


def as_label(value: Any) -> str:
    """Return a value of `obs` as text: 1 for 1.0, since a missing value makes floats of integers, and "no label".

    Numbers of single precision are those that they look like (:func:`widen_number`).
    """
    if isinstance(value, str):  # most are; the other checks take ten times as long
        return str(value)
    if pd.isna(value):
        return NO_LABEL
    if not is_number(value):
        return str(value)
    if float(value).is_integer():
        return str(int(value))
    return str(widen_number(value))


def as_labels(column: pd.Series) -> pd.Series:
    """Return a column of `obs` as text (:func:`as_label`)."""
    if pd.api.types.is_float_dtype(column.dtype):
        column = widen(column).astype("category")  # to write each number once
    if isinstance(column.dtype, pd.CategoricalDtype):
        texts = np.array([*map(as_label, column.cat.categories), NO_LABEL], dtype=object)
        return pd.Series(texts[column.cat.codes], column.index)
    return column.astype(object).map(as_label)


def widen_number(value: Any) -> Any:
    """Return a number of single precision as the one that it looks like: 0.1, also for 0.10000000149011612.

    Others stay as they are.
    """
    if not isinstance(value, float | np.floating):
        return value
    with np.errstate(over="ignore"):
        single = value if isinstance(value, np.float16) else np.float32(value)
    return float(str(single)) if float(single) == float(value) else value


def widen(column: pd.Series) -> pd.Series:
    """Return a column of less than double precision as the numbers that it looks like, as :func:`widen_number`."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        found = pd.Series(column.cat.categories)
        wide = widen(found)
        return column if wide is found else column.cat.rename_categories(wide.to_numpy())
    if not pd.api.types.is_float_dtype(column.dtype) or getattr(column.dtype, "itemsize", 8) >= 8:
        return column
    numbers = column.to_numpy(f"f{column.dtype.itemsize}", na_value=np.nan)
    return pd.Series(numbers.astype(str).astype(float), column.index)


def join_labels(obs: pd.DataFrame, keys: Sequence[str]) -> np.ndarray:
    r"""Return one label per cell, `(cells,)`: the values of several columns (:func:`as_label`), joined by ``|``.

    With several columns, a ``|`` or ``\`` within a value is escaped by a ``\``, so that different values give different
    labels.
    """
    if repeated := [key for key in keys if keys.count(key) > 1]:
        msg = f"The column of labels {repeated[0]!r} is listed more than once; list it once."
        raise ValueError(msg)
    columns = [as_labels(obs[key]) for key in keys]
    if len(columns) > 1:
        columns = [column.str.replace(r"([|\\])", r"\\\1", regex=True) for column in columns]
    return np.array([JOIN.join(values) for values in zip(*columns, strict=True)], dtype=str)


class ValueSummary(NamedTuple):
    """Summary of the values of a matrix.

    Parameters
    ----------
    n_values, n_nonzero
        Number of values, and of those that are not zero.
    largest
        The largest value.
    """

    n_values: int
    n_nonzero: int
    largest: float

    @classmethod
    def of(cls, x: sp.csr_matrix | np.ndarray) -> ValueSummary:
        """Summarise values ``(cells, genes)``."""
        stored = x if isinstance(x, np.ndarray) else x.data
        largest = max(float(stored.max(initial=-np.inf)), 0.0 if stored.size < np.prod(x.shape) else -np.inf)
        return cls(int(np.prod(x.shape)), int(np.count_nonzero(stored)), largest)

    @property
    def zeros(self) -> float:
        """Share of the values that are zero."""
        return 1 - self.n_nonzero / self.n_values

    def merge(self, other: ValueSummary) -> ValueSummary:
        """Return the joint summary of both."""
        return ValueSummary(
            self.n_values + other.n_values, self.n_nonzero + other.n_nonzero, max(self.largest, other.largest)
        )


def pad_genes(adata: AnnData, var: pd.DataFrame) -> AnnData:
    """Return cells with the genes of ``var``, in its order and in every layer; missing genes are zero.

    Raises
    ------
    ValueError
        If a gene name is not unique, or no gene is known.
    """
    found, wanted = adata.var_names, var.index
    check_unique_names(found, "adata.var_names")
    place = found.get_indexer(wanted)
    shared = place >= 0
    if not shared.any():
        msg = f"adata.var_names has no gene of the model, such as {wanted[0]!r}; it has genes such as {found[0]!r}."
        raise ValueError(msg)
    n_missing, n_unknown = int((~shared).sum()), adata.n_vars - int(shared.sum())
    msg = f"{n_missing} of the model's {len(wanted)} genes were filled with zeros; {n_unknown} unknown ones dropped."
    logger.info(msg)
    if shared.mean() < SMALLEST_SHARE:
        warn_user(f"{msg} Below {SMALLEST_SHARE:.0%} the results may be poor.")
    ones = (np.ones(shared.sum(), dtype="float32"), (place[shared], shared.nonzero()[0]))
    selection = sp.csr_matrix(ones, shape=(adata.n_vars, len(wanted)))

    def select(matrix: Any) -> Any:
        check_storage(matrix, "A matrix of adata")
        if sp.issparse(matrix):
            return sp.csr_matrix(matrix @ selection.astype(matrix.dtype))
        chosen = np.zeros((adata.n_obs, len(wanted)), dtype=matrix.dtype)
        chosen[:, shared] = matrix[:, place[shared]]  # also of dask, and of types that SciPy lacks
        return chosen

    source = adata.to_memory() if adata.isbacked else adata
    return AnnData(
        X=None if source.X is None else select(source.X),
        obs=source.obs.copy(),
        var=var.copy(),
        uns=dict(source.uns),
        obsm=dict(source.obsm),
        layers={name: select(source.layers[name]) for name in layer_names(source)},
    )
