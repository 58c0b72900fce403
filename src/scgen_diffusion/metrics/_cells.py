"""Read cells as expression on a common scale, labels or points, from AnnData or arrays, and check and align them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from sklearn.utils import check_array

from scgen_diffusion._arguments import as_list, warn_user
from scgen_diffusion.data import (
    LARGEST_LOG1P,
    CellFiles,
    are_whole_numbers,
    as_labels,
    check_structure,
    join_labels,
    layer_names,
    layer_of,
    make_indexable,
    obs_column,
    to_csr,
    values_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

#: Function that turns counts `(cells, features)` into the values to compare; zeros stay zeros.
Scale: TypeAlias = "Callable[[sp.csr_matrix], sp.csr_matrix]"
#: Cells as AnnData, or as an array or sparse matrix `(cells, genes)`.
Cells: TypeAlias = AnnData | np.ndarray | sp.spmatrix | sp.sparray

TARGET_SUM = 1e4
COUNTS_LAYER = "counts"
REAL = ("real_test", "train", "control")  # names of the sets of real cells
GENERATED = ("synthetic", "predicted")
MANY_EMPTY = 0.05  # share of empty cells above which generated cells are not what they were meant to be
CHUNK = 2_000
N_SHARED_CHECKED = 500
N_LAYER_CHECKED = 100


@dataclass(frozen=True)
class Expression:
    """Expression of some cells on the common scale of all metrics.

    Attributes
    ----------
    values
        `log1p` of values that sum to 10,000 per cell, CSR, float32, `(cells, genes)`. Cells without counts stay zero.
    library_sizes
        Total counts `(cells,)`; None if the cells came log-normalised.
    """

    values: sp.csr_matrix
    library_sizes: NDArray[np.float64] | None

    def __len__(self) -> int:
        return self.values.shape[0]

    def __getitem__(self, rows: NDArray) -> Expression:
        """Return some of the cells, by position or mask."""
        sizes = None if self.library_sizes is None else self.library_sizes[rows]
        return Expression(self.values[rows], sizes)


def stacked(parts: Iterable[Expression]) -> Expression:
    """Put the cells of several parts together."""
    parts = list(parts)
    sizes = [part.library_sizes for part in parts]
    values = sp.vstack([part.values for part in parts], format="csr")
    return Expression(values, None if any(size is None for size in sizes) else np.concatenate(sizes))


def expression_of(cells: Cells | Expression, *, layer: str | None = None, name: str = "cells") -> Expression:
    """Return cells on the common scale: `log1p` of values that sum to 10,000 per cell over the given genes.

    Parameters
    ----------
    cells
        Counts, or `log1p` values if ``uns["log1p"]`` is set (its ``base`` is respected; natural logarithms by default).
        In an AnnData, ``layers["counts"]`` is read if there is no `layer`, else `X`. Arrays are read as counts, and an
        :class:`Expression` is returned as it is. Whole numbers in `X` are always read as counts, with a warning if
        ``uns["log1p"]`` is set.
    layer
        Layer with the counts; cells whose `name` is ``"synthetic"`` or ``"predicted"`` may have them in `X` instead.
    name
        Name of the cells in error messages.

    Raises
    ------
    KeyError
        If the layer does not exist.
    ValueError
        If there are no cells or genes, or if values are negative, not finite, or neither integers nor marked as
        logarithms.
    """
    if isinstance(cells, Expression):
        return cells
    matrix, log_base = matrix_of(cells, layer, name, is_generated=name in GENERATED)
    if isinstance(matrix, CSRDataset):  # from an AnnData in backed mode
        matrix = matrix.to_memory()
    return on_scale(matrix, log_base, name=name, scale=log_normalise)


def on_scale(matrix: sp.spmatrix | NDArray, log_base: float | None, *, name: str, scale: Scale) -> Expression:
    """Return values on a scale, given the base of their logarithms from :func:`matrix_of`."""
    matrix = to_csr(matrix, name).astype(np.float64, copy=False)
    if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
        advice = "If it was scaled (scanpy.pp.scale), set `layer` to the layer with counts."
        msg = f"`{name}` must not hold negative, infinite or missing values. {advice}"
        raise ValueError(msg)
    if log_base is None:
        if len(others := matrix.data[matrix.data % 1 > 0]):
            msg = f"`{name}` must hold counts, or logarithms with uns['log1p'], but has {others[0]:.4g}; set `layer`."
            raise ValueError(msg)
        return Expression(scale(matrix), np.asarray(matrix.sum(axis=1)).ravel())
    if (largest := matrix.data.max(initial=0)) * np.log(log_base) > LARGEST_LOG1P:
        msg = f"`{name}.uns['log1p']` says that `X` holds logarithms, but {largest:.4g} is too large; set `layer`."
        raise ValueError(msg)
    return Expression(scale((matrix * np.log(log_base)).expm1()), None)


def scale_to_target(values: sp.spmatrix | NDArray) -> sp.csr_matrix:
    """Return a copy in which every cell sums to 10,000 (CSR, float64); cells without counts stay zero."""
    values = sp.csr_matrix(values, dtype=np.float64, copy=True)
    totals = np.asarray(values.sum(axis=1)).ravel()
    values.data *= np.repeat(TARGET_SUM / np.where(totals > 0, totals, 1), np.diff(values.indptr))
    return values


def log_normalise(values: sp.spmatrix | NDArray) -> sp.csr_matrix:
    """Scale every cell to 10,000 and take `log1p` (CSR, float32); cells without counts stay zero."""
    return scale_to_target(values).log1p().astype(np.float32)


def means(values: sp.csr_matrix) -> NDArray[np.float64]:
    """Return every gene's mean, `(genes,)`."""
    return np.bincount(values.indices, values.data, minlength=values.shape[1]) / values.shape[0]


def shares_expressed(values: sp.csr_matrix) -> NDArray[np.float64]:
    """Return the share of the cells that express every gene, `(genes,)`."""
    return np.bincount(values.indices, values.data > 0, minlength=values.shape[1]) / values.shape[0]


def variances(values: sp.csr_matrix) -> NDArray[np.float64]:
    """Return every gene's variance, `(genes,)`."""
    squares = values.astype(np.float64).power(2)
    return np.maximum(means(squares) - means(values) ** 2, 0)


def align_genes(synthetic: AnnData, genes: pd.Index, *, name: str = "synthetic") -> AnnData:
    """Return the cells with these genes in this order.

    Raises
    ------
    ValueError
        If a gene is missing, or occurs twice.
    """
    check_genes(synthetic.var_names, genes, name)
    if synthetic.var_names.equals(genes):
        return synthetic
    return make_indexable(synthetic)[:, genes]


def check_genes(found: pd.Index, genes: pd.Index, name: str) -> None:
    """Raise unless cells with the genes ``found`` have these genes, in any order."""
    if found.equals(genes):
        return
    if len(missing := genes.difference(found)):
        some, own = list(missing[:3]), list(found[:3])
        msg = (
            f"`{name}` lacks {len(missing)} of the {len(genes)} genes of the real cells, such as {some}; it has {own}."
        )
        raise ValueError(msg)
    if not (found.is_unique and genes.is_unique):
        msg = f"`{name}` and the real cells have other orders of genes, whose names must then be unique."
        raise ValueError(msg)


def matrix_of(
    cells: Cells, layer: str | None, name: str, *, is_generated: bool = False
) -> tuple[sp.spmatrix | NDArray | CSRDataset, float | None]:
    """Return the values, and the base of their logarithms (None for counts). Generated cells may lack the layer."""
    if not isinstance(cells, AnnData):
        return cells, None
    layer = layer_of(cells, layer) if is_generated else layer
    if layer is None and COUNTS_LAYER in cells.layers:
        layer = COUNTS_LAYER
        if is_generated and cells.X is not None:
            _warn_of_other_counts(cells, name)
    if layer is not None and layer not in cells.layers:
        msg = f"`{name}` has no layer {layer!r}; its layers are {layer_names(cells)}."
        raise KeyError(msg)
    if (matrix := values_in(cells, layer)) is None:
        msg = f"`{name}` has no `X` and no layer {COUNTS_LAYER!r}; its layers are {layer_names(cells)}."
        raise ValueError(msg)
    if isinstance(matrix, CSCDataset):  # to read some rows of columns in a file, all of it must be read
        matrix = matrix.to_memory()
    check_structure(matrix, f"`{name}`")
    has_logs = layer is None and "log1p" in cells.uns
    return matrix, _log_base(cells.uns["log1p"], matrix, name) if has_logs else None


def _warn_of_other_counts(cells: AnnData, name: str) -> None:
    """Warn if predictions were written to `X` of a copy of other cells, whose counts are read from the layer.

    Where counts are zero, `X` is positive neither as counts or logarithms nor after scaling.
    """
    x, counts = (to_csr(matrix[:N_LAYER_CHECKED], name) for matrix in (cells.X, cells.layers[COUNTS_LAYER]))
    if ((x > 0) > (counts != 0)).nnz:
        layer = f"layers[{COUNTS_LAYER!r}]"
        msg = f"`{name}` has values in `X` that do not come from its {layer}, which is compared. If `X` is right, "
        warn_user(f"{msg}`del {name}.{layer}`; if the layer is, `{name}.X = {name}.{layer}`.")


def _log_base(entry: object, matrix: object, name: str) -> float | None:
    """Return the base of the logarithms in `X` by ``uns["log1p"]``; None for whole numbers, which are counts."""
    if are_whole_numbers(matrix):
        warn_user(f"`{name}.uns['log1p']` says that `X` holds logarithms, but its whole numbers are read as counts.")
        return None
    base = entry.get("base") if isinstance(entry, Mapping) else None
    return np.e if base is None else float(base)


def _log_base_of_files(cells: CellFiles, name: str) -> float | None:
    """Return the base of the logarithms, None for counts; raise unless all files have the same one."""
    bases = {}
    for file in cells.files:
        has_logs = cells.layer is None and "log1p" in file.keys("uns")
        entry = file.read("uns", "log1p") if has_logs else None
        base = np.e if cells.values == "log1p" else None
        bases[file.name] = base if entry is None else _log_base(entry, file.matrix(None), name)
    if len({*bases.values()}) > 1:
        msg = f"All files of `{name}` must hold counts (None), or logarithms to one base, but they have {bases}."
        raise ValueError(msg)
    return next(iter(bases.values()))


@dataclass(frozen=True)
class Source:
    """One of the given sets of cells; nothing is computed until cells are read.

    Attributes
    ----------
    name
        Name of the set in error messages.
    obs_names
        Names of the cells.
    labels
        Groups, `(cells,)`; None without ``groupby``.
    values
        Function that returns the values at given positions as they are, CSR, in the given order.
    log_base
        Base of the logarithms; None for counts.
    scale
        Scale to compare the values on; None if they are on it.
    """

    name: str
    obs_names: pd.Index
    labels: NDArray[np.str_] | None
    values: Callable[[NDArray], sp.csr_matrix]
    log_base: float | None
    scale: Scale | None

    @classmethod
    def of(
        cls,
        cells: AnnData | CellFiles,
        name: str,
        genes: pd.Index,
        *,
        groupby: str | Sequence[str] | None = None,
        layer: str | None = None,
        scale: Scale | None = None,
    ) -> Source:
        """Check genes and labels, and prepare to read these genes. Real cells must have the layer."""
        found = cells.var.index
        check_genes(found, genes, name)
        columns = slice(None) if found.equals(genes) else found.get_indexer(genes)
        if isinstance(cells, CellFiles):
            read_rows, log_base = cells.read_values, _log_base_of_files(cells, name)
            names = cells.obs_names
            if groupby is not None:
                cells = AnnData(obs=cells.read_columns(as_list(groupby), kind="groupby").set_axis(names))
        else:
            # read once, because a view of an AnnData copies its values on every access
            matrix, log_base = matrix_of(cells, layer, name, is_generated=name not in REAL)
            matrix = to_csr(matrix, name) if sp.issparse(matrix) else matrix
            read_rows, names = partial(_rows_of, matrix), cells.obs_names
        labels = None if groupby is None else labels_of(cells, groupby, name=name)
        values = lambda rows: to_csr(read_rows(rows), name)[:, columns]
        return cls(name, names, labels, values, log_base, scale or log_normalise)

    def __len__(self) -> int:
        return len(self.obs_names)

    def read(self, rows: NDArray) -> Expression:
        """Return the cells at given positions on their scale, in the given order."""
        values = self.values(rows)
        if self.scale is None:
            return Expression(values, None)
        return on_scale(values, self.log_base, name=self.name, scale=self.scale)

    def chunks(self, rows: NDArray) -> Iterator[Expression]:
        """Read cells in chunks, which bounds the memory needed."""
        for start in range(0, max(len(rows), 1), CHUNK):
            yield self.read(rows[start : start + CHUNK])

    def count_empty(self) -> int:
        """Return the number of cells without any count."""
        return sum(int((chunk.values.sum(axis=1) == 0).sum()) for chunk in self.chunks(np.arange(len(self))))


def _rows_of(matrix: sp.spmatrix | NDArray | CSRDataset, rows: NDArray) -> sp.spmatrix | NDArray:
    """Return some rows, in the given order. Files need ascending rows."""
    ascending = np.argsort(rows, kind="stable")
    return matrix[rows[ascending]][np.argsort(ascending, kind="stable")]


def check_for_empty_cells(sources: Mapping[str, Source]) -> None:
    """Raise if many generated cells, and few real ones, have no counts in the genes that are compared."""
    real = sources["real_test"]
    most = real.count_empty() / max(len(real), 1) + MANY_EMPTY
    for source in (source for name, source in sources.items() if name not in REAL):
        if (n_empty := source.count_empty()) > most * len(source):
            found = f"`{source.name}` has {n_empty:,} of {len(source):,} cells without any count in the genes compared."
            msg = f"{found} `anndata.concat(join='outer')` leaves a layer empty that generated cells lack."
            raise ValueError(msg)


def check_for_training_cells(real: Source, train: Source) -> None:
    """Raise if most cells of the same name have the same values, among the first names that each set has once."""
    sets = real, train
    once = [source.obs_names[~source.obs_names.duplicated(keep=False)] for source in sets]
    shared = once[0].intersection(once[1])[:N_SHARED_CHECKED]
    if not len(shared):
        return
    values = [source.read(source.obs_names.get_indexer_for(shared)).values for source in sets]
    if ((values[0] != values[1]).getnnz(axis=1) == 0).mean() > 0.5:
        msg = "`real_test` has cells of `train`: the same `obs_names` with the same values."
        raise ValueError(msg)


def labels_of(adata: AnnData, groupby: str | Sequence[str], *, name: str = "adata") -> NDArray[np.str_]:
    """Return one label per cell as text, `(cells,)`: a column of `obs`, or several joined.

    Raises
    ------
    KeyError
        If a column does not exist.
    ValueError
        If `groupby` is empty, a cell has no label, or `obs` has several columns of this name.
    """
    keys = as_list(groupby)
    if not keys:
        msg = "`groupby` is empty; name one or more columns of `obs`."
        raise ValueError(msg)
    for key in keys:
        if n_missing := int(obs_column(adata, key, name).isna().sum()):
            msg = f"`{name}.obs[{key!r}]` has no label for {n_missing} of {adata.n_obs} cells; remove these cells."
            raise ValueError(msg)
    return join_labels(adata.obs, keys)


def text_labels(labels: ArrayLike, name: str) -> NDArray[np.str_]:
    """Return labels as text (:func:`as_labels`); raise if one is missing."""
    labels = pd.Series(labels)
    if labels.isna().any():
        msg = f"`{name}` has no label for {labels.isna().sum()} of {len(labels)} cells; remove these cells."
        raise ValueError(msg)
    return np.array(as_labels(labels), dtype=str)


def as_points(**given: ArrayLike) -> list[NDArray]:
    """Return several sets of cells, given by name, as dense points `(cells, features)` each.

    Raises
    ------
    ValueError
        If there are no cells or features, or a value is infinite or missing.
    """
    return [
        check_array(cells.toarray() if sp.issparse(cells) else cells, dtype=[np.float64, np.float32], input_name=name)
        for name, cells in given.items()
    ]


def pair_of_expressions(
    real: Cells | Expression,
    synthetic: Cells | Expression,
    layer: str | None,
    names: tuple[str, str] = ("real", "synthetic"),
) -> tuple[Expression, Expression]:
    """Return both sets with the genes of the first, in its order.

    Raises
    ------
    ValueError
        If the genes differ. For arrays and :class:`Expression`, only their number is checked.
    """
    if isinstance(real, AnnData) and isinstance(synthetic, AnnData):
        synthetic = align_genes(synthetic, real.var_names, name=names[1])
    first = expression_of(real, layer=layer, name=names[0])
    second = expression_of(synthetic, layer=layer, name=names[1])
    check_same_number_of_genes(first.values.shape[1], second.values.shape[1], names)
    return first, second


def check_same_number_of_genes(n_first: int, n_second: int, names: tuple[str, str] = ("real", "synthetic")) -> None:
    """Raise unless both sets have the same number of genes."""
    if n_first != n_second:
        msg = f"`{names[0]}` has {n_first} genes and `{names[1]}` {n_second}; both must have the same."
        raise ValueError(msg)
