"""Read cells as expression on a common scale, labels or points, from AnnData or arrays, and check and align them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset

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
    read_columns,
    to_csr,
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
N_CELLS_AT_ONCE = 8_192
N_SHARED_CHECKED = 500
N_LAYER_CHECKED = 100


@dataclass(frozen=True)
class Expression:
    """Expression of some cells on the common scale of all metrics.

    Attributes
    ----------
    values
        `log1p` of values that sum to 10 000 per cell, CSR, float32, `(cells, genes)`. Cells without counts stay zero.
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


def expression_of(
    cells: Cells | Expression, *, layer: str | None = None, name: str = "cells", scale: Scale | None = None
) -> Expression:
    """Return cells on the common scale: `log1p` of values that sum to 10 000 per cell over the given genes.

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
    scale
        Another scale for the counts, such as one for proteins: a function of a CSR matrix.

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
    if name in GENERATED and isinstance(cells, AnnData):
        layer = layer_of(cells, layer)
        _check_counts_of_generated(cells, layer, name)
    matrix, log_base = matrix_of(cells, layer, name)
    if isinstance(matrix, (CSRDataset, CSCDataset)):  # from an AnnData in backed mode
        matrix = matrix.to_memory()
    return on_scale(matrix, log_base, name=name, scale=scale)


def on_scale(
    matrix: sp.spmatrix | NDArray, log_base: float | None, *, name: str, scale: Scale | None = None
) -> Expression:
    """Return values on a scale, given the base of their logarithms from :func:`matrix_of`."""
    matrix = to_csr(matrix, name).astype(np.float64, copy=False)
    _check_values(matrix, log_base, name)
    scale = log_normalise if scale is None else scale
    if log_base is not None:
        return Expression(scale((matrix * np.log(log_base)).expm1()), None)
    return Expression(scale(matrix), np.asarray(matrix.sum(axis=1)).ravel())


def scale_to_target(values: sp.spmatrix | NDArray) -> sp.csr_matrix:
    """Return a copy in which every cell sums to 10 000 (CSR, float64); cells without counts stay zero."""
    values = sp.csr_matrix(values, dtype=np.float64, copy=True)
    totals = np.asarray(values.sum(axis=1)).ravel()
    values.data *= np.repeat(TARGET_SUM / np.where(totals > 0, totals, 1), np.diff(values.indptr))
    return values


def log_normalise(values: sp.spmatrix | NDArray) -> sp.csr_matrix:
    """Scale every cell to 10 000 and take `log1p` (CSR, float32); cells without counts stay zero.

    Raises
    ------
    ValueError
        If values are negative, infinite or missing.
    TypeError
        If they are AnnData.
    """
    if isinstance(values, AnnData):
        msg = "`values` must be the counts, such as adata.layers['counts'], but is AnnData."
        raise TypeError(msg)
    values = to_csr(values, "values")
    _check_finite(values, "values", "Give counts.")
    return scale_to_target(values).log1p().astype(np.float32)


def means(values: sp.csr_matrix, *, power: int = 1) -> NDArray[np.float64]:
    """Return every gene's mean of a power of its values, `(genes,)`, where zeros stay zero."""
    total = np.zeros(values.shape[1])
    for start in range(0, values.shape[0], N_CELLS_AT_ONCE):
        first, last = values.indptr[[start, min(start + N_CELLS_AT_ONCE, values.shape[0])]]
        genes, found = values.indices[first:last], values.data[first:last].astype(np.float64)
        total += np.bincount(genes, np.where(found > 0, found**power, 0), minlength=len(total))
    return total / values.shape[0]


def variances(values: sp.csr_matrix) -> NDArray[np.float64]:
    """Return every gene's variance, `(genes,)`."""
    return np.maximum(means(values, power=2) - means(values) ** 2, 0)


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
    missing = genes.difference(found)
    if len(missing):
        msg = f"`{name}` lacks {len(missing)} of the {len(genes)} genes of the real cells, such as {list(missing[:3])}."
        if len(missing) == len(genes):
            msg = f"`{name}` and the real cells have no gene in common: {list(found[:3])} and {list(genes[:3])}."
        raise ValueError(msg)
    if not (found.is_unique and genes.is_unique):
        msg = f"`{name}` and the real cells have other orders of genes, whose names must then be unique."
        raise ValueError(msg)


def matrix_of(cells: Cells, layer: str | None, name: str) -> tuple[sp.spmatrix | NDArray, float | None]:
    """Return the values, and the base of their logarithms (None for counts)."""
    if not isinstance(cells, AnnData):
        if layer is not None:
            msg = f"`layer` is {layer!r}, but `{name}` is an array, which has no layers."
            raise ValueError(msg)
        return cells, None
    if layer is None:
        layer = COUNTS_LAYER if COUNTS_LAYER in cells.layers else None
    elif layer not in cells.layers:
        msg = f"`{name}` has no layer {layer!r}; its layers are {layer_names(cells)}."
        raise KeyError(msg)
    matrix = cells.X if layer is None else cells.layers[layer]
    if matrix is None:
        msg = f"`{name}` has no `X` and no layer {COUNTS_LAYER!r}; its layers are {layer_names(cells)}."
        raise ValueError(msg)
    check_structure(matrix, f"`{name}`")
    if layer is not None:
        return matrix, None
    return matrix, _log_base(cells.uns["log1p"], matrix, name) if "log1p" in cells.uns else None


def _check_counts_of_generated(cells: AnnData, layer: str | None, name: str) -> None:
    """Warn if predictions were written to `X` of a copy of other cells, whose counts would be read from the layer.

    Where counts are zero, `X` is positive neither as counts or logarithms nor after scaling.
    """
    if layer is not None or COUNTS_LAYER not in cells.layers or cells.X is None:
        return
    for matrix in (cells.X, cells.layers[COUNTS_LAYER]):
        check_structure(matrix, f"`{name}`")
    x, counts = (to_csr(matrix[:N_LAYER_CHECKED], name) for matrix in (cells.X, cells.layers[COUNTS_LAYER]))
    are_positive = x > 0
    if are_positive.multiply(counts != 0).count_nonzero() < are_positive.count_nonzero():
        msg = (
            f"`{name}` has values in `X` that do not come from its layers[{COUNTS_LAYER!r}]: some are positive where "
            f"the counts are zero. The layer is compared. If `X` is right, `del {name}.layers[{COUNTS_LAYER!r}]`; if "
            f"the layer is, `{name}.X = {name}.layers[{COUNTS_LAYER!r}]` ends this warning."
        )
        warn_user(msg)


def _log_base(entry: object, matrix: object, name: str) -> float | None:
    """Return the base of the logarithms in `X` by ``uns["log1p"]``; None for whole numbers, which are counts."""
    if are_whole_numbers(matrix):
        warn_user(f"`{name}.uns['log1p']` says that `X` holds logarithms, but its whole numbers are read as counts.")
        return None
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
    _check_finite(matrix, name, "If it was scaled (scanpy.pp.scale), set `layer` to the layer with counts.")
    if log_base is not None and (largest := matrix.data.max(initial=0)) * np.log(log_base) > LARGEST_LOG1P:
        msg = f"`{name}.uns['log1p']` says that `X` holds logarithms, but {largest:.4g} is too large; set `layer`."
        raise ValueError(msg)
    if log_base is None and (matrix.data % 1).any():
        found = matrix.data[matrix.data % 1 > 0][0]
        msg = f"`{name}` must hold counts, or logarithms with uns['log1p'], but has {found:.4g}; set `layer`."
        raise ValueError(msg)


def _check_finite(matrix: sp.csr_matrix, name: str, advice: str) -> None:
    if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
        msg = f"`{name}` must not hold negative, infinite or missing values. {advice}"
        raise ValueError(msg)


def _log_base_of_files(cells: CellFiles, name: str) -> float | None:
    """Return the base of the logarithms, None for counts; raise unless all files have the same one."""
    first_of: dict[float | None, str] = {}  # the first file of each base
    for file in cells.files:
        entry = file.unstructured("log1p") if cells.layer is None else None
        base = np.e if cells.values == "log1p" else None
        first_of.setdefault(base if entry is None else _log_base(entry, file.matrix(None), name), file.name)
    if len(first_of) > 1:
        kinds = {base: "counts" if base is None else f"logarithms to the base {base:.4g}" for base in first_of}
        found = ", and ".join(f"{first_of[base]} holds {kind}" for base, kind in kinds.items())
        msg = f"All files of `{name}` must hold counts, or logarithms to one base, but {found}."
        raise ValueError(msg)
    return next(iter(first_of))


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
    are_counts
        Whether the values are counts, not log-normalised.
    values
        Function that returns the values at given positions as they are, CSR, in the given order.
    read
        Function that returns the cells at given positions on their scale, in the given order.
    """

    name: str
    obs_names: pd.Index
    labels: NDArray[np.str_] | None
    are_counts: bool
    values: Callable[[NDArray], sp.csr_matrix]
    read: Callable[[NDArray], Expression]

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
        columns = None if found.equals(genes) else found.get_indexer(genes)
        if isinstance(cells, CellFiles):
            cells.check()
            read_rows, log_base = cells.read_values, _log_base_of_files(cells, name)
            names = pd.Index(chain.from_iterable(file.all_names() for file in cells.files))
            if groupby is not None:
                cells = AnnData(obs=read_columns(cells.files, as_list(groupby), kind="groupby").set_axis(names))
        else:
            if name not in REAL:
                layer = layer_of(cells, layer)
                _check_counts_of_generated(cells, layer, name)
            # read once, because a view of an AnnData copies its values on every access
            matrix, log_base = matrix_of(cells, layer, name)
            if isinstance(matrix, CSCDataset):  # to read some rows of columns in a file, all of it must be read
                matrix = matrix.to_memory()
            matrix = to_csr(matrix, name) if sp.issparse(matrix) else matrix
            read_rows, names = partial(_rows_of, matrix, name), cells.obs_names
        labels = None if groupby is None else labels_of(cells, groupby, name=name)

        def values(rows: NDArray) -> sp.csr_matrix:
            found = to_csr(read_rows(rows), name)
            return found if columns is None else found[:, columns]

        read = lambda rows: on_scale(values(rows), log_base, name=name, scale=scale)
        return cls(name, names, labels, log_base is None, values, read)

    def __len__(self) -> int:
        return len(self.obs_names)

    def __getitem__(self, kept: NDArray) -> Source:
        """Return the source of some of the cells, by position; nothing is read."""
        values, read = (lambda rows: self.values(kept[rows])), (lambda rows: self.read(kept[rows]))
        labels = None if self.labels is None else self.labels[kept]
        return replace(self, obs_names=self.obs_names[kept], labels=labels, values=values, read=read)

    def chunks(self, rows: NDArray) -> Iterator[Expression]:
        """Read cells in chunks, which bounds the memory needed."""
        for start in range(0, max(len(rows), 1), CHUNK):  # reading no cells raises
            yield self.read(rows[start : start + CHUNK])


def _rows_of(matrix: sp.spmatrix | NDArray | CSRDataset, name: str, rows: NDArray) -> sp.csr_matrix:
    """Return some rows, in the given order. Files read a slice much faster, and need ascending rows otherwise."""
    if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
        return to_csr(matrix[rows[0] : rows[0] + len(rows)], name)
    ascending = np.argsort(rows, kind="stable")
    return to_csr(matrix[rows[ascending]], name)[np.argsort(ascending, kind="stable")]


def check_for_empty_cells(sources: Mapping[str, Source]) -> None:
    """Warn if some generated cells, or many real ones, have no counts.

    Raises
    ------
    ValueError
        If many generated cells have none, and few real ones.
    """
    real = sources["real_test"]
    n_real = _count_empty(real)
    if n_real > MANY_EMPTY * len(real):
        warn_user(f"{_describe_empty(real, n_real)} Leave them out of all sets, unless synthetic ones may be empty.")
    for source in (source for name, source in sources.items() if name not in REAL):
        n_empty = _count_empty(source)
        found = _describe_empty(source, n_empty)
        if n_empty > (n_real / max(len(real), 1) + MANY_EMPTY) * len(source):
            msg = f"{found} `anndata.concat(join='outer')` leaves a layer empty that generated cells lack."
            raise ValueError(msg)
        if n_empty:
            warn_user(f"{found} They take part in the comparison, and count as duplicates of each other.")


def _count_empty(source: Source) -> int:
    rows = np.arange(len(source))
    chunks = (source.values(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK))
    return sum(int((np.asarray(chunk.sum(axis=1)) == 0).sum()) for chunk in chunks)


def _describe_empty(source: Source, n_empty: int) -> str:
    return f"`{source.name}` has {n_empty:,} of {len(source):,} cells without any count in the genes that are compared."


def check_for_training_cells(sources: Mapping[str, Source]) -> None:
    """Raise if ``real_test`` has cells of ``train``."""
    if "train" in sources and _share_of_same_cells(sources["train"], sources["real_test"]) > 0.5:
        msg = "`real_test` has cells of `train`: the same `obs_names` with the same values."
        raise ValueError(msg)


def _share_of_same_cells(first: Source, second: Source) -> float:
    """Return the share of equally named cells with equal values, among the first few names that each has once."""
    once = [source.obs_names[~source.obs_names.duplicated(keep=False)] for source in (first, second)]
    shared = once[0].intersection(once[1])[:N_SHARED_CHECKED]
    if not len(shared):
        return 0.0
    values = [source.read(source.obs_names.get_indexer_for(shared)).values for source in (first, second)]
    n_different = np.asarray((values[0] != values[1]).sum(axis=1)).ravel()
    return float((n_different == 0).mean())


def labels_of(adata: AnnData, groupby: str | Sequence[str], *, name: str = "adata") -> NDArray[np.str_]:
    """Return one label per cell as text, `(cells,)`: a column of `obs`, or several joined.

    Raises
    ------
    TypeError
        If `groupby` is not a column name or a collection of them.
    KeyError
        If a column does not exist.
    ValueError
        If `groupby` is empty, a cell has no label, or `obs` has several columns of this name.
    """
    if not isinstance(groupby, str | Collection):
        msg = f"`groupby` must name one or more columns of `obs`, but is {groupby!r}."
        raise TypeError(msg)
    keys = as_list(groupby)
    if not keys:
        msg = "`groupby` is empty; name one or more columns of `obs`."
        raise ValueError(msg)
    for key in keys:
        if n_missing := int(obs_column(adata, key, name).isna().sum()):
            msg = f"`{name}.obs[{key!r}]` has no label for {n_missing} of {adata.n_obs} cells; remove these cells."
            raise ValueError(msg)
    return join_labels(adata.obs, keys)


def check_labels(labels: ArrayLike, n_cells: int, name: str) -> NDArray[np.str_]:
    """Return the labels as text (:func:`as_label`).

    Raises
    ------
    ValueError
        If there is not exactly one label per cell.
    """
    given, labels = labels, np.asarray(labels, dtype=object)  # as text, a missing value would become "nan"
    if labels.shape != (n_cells,):
        msg = f"`{name}` must have one label for each of {n_cells} cells, but its shape is {labels.shape}."
        raise ValueError(msg)
    if (missing := pd.isna(labels)).any():
        msg = f"`{name}` has no label for {missing.sum()} of {n_cells} cells; remove these cells."
        raise ValueError(msg)
    return np.array(as_labels(pd.Series(given)), dtype=str)


def as_points(**given: ArrayLike) -> list[NDArray]:
    """Return several sets of cells, given by name, as points with the same features, `(cells, features)` each.

    Raises
    ------
    TypeError
        If cells are AnnData.
    ValueError
        If there are no cells or features, numbers of features differ, or a value is infinite or missing.
    """
    points = {}
    for name, cells in given.items():
        if isinstance(cells, AnnData):
            msg = f"`{name}` must be points of shape (cells, features), such as adata.obsm['X_pca'], but is AnnData."
            raise TypeError(msg)
        values = cells.toarray() if sp.issparse(cells) else np.asarray(cells)
        if values.ndim != 2 or 0 in values.shape:
            msg = f"`{name}` must be points of shape (cells, features), but its shape is {values.shape}."
            raise ValueError(msg)
        values = values if np.issubdtype(values.dtype, np.floating) else values.astype(np.float64)
        if not np.isfinite(values).all():
            msg = f"`{name}` must not hold infinite or missing values."
            raise ValueError(msg)
        points[name] = values
    first, *others = points
    for name in others:
        if points[name].shape[1] != points[first].shape[1]:
            n_features = f"{points[first].shape[1]} features and `{name}` {points[name].shape[1]}"
            msg = f"`{first}` has {n_features}; they must have the same."
            raise ValueError(msg)
    return list(points.values())


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
