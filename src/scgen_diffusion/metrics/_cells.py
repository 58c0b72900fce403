"""Read cells as expression on a common scale, principal components, labels or points, and check and align them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from sklearn.decomposition import PCA
from sklearn.utils import check_array

from scgen_diffusion._arguments import as_list, warn_user
from scgen_diffusion.data import (
    LARGEST_LOG1P,
    CellFiles,
    are_whole_numbers,
    as_labels,
    check_layer,
    check_structure,
    check_values,
    join_labels,
    layer_names,
    layer_of,
    make_indexable,
    obs_column,
    read_rows,
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
CHUNK = 2_000
N_LAYER_CHECKED = 100
N_GENES = 2_000
N_COMPONENTS = 30
MAX_FITTED_CELLS = 10_000


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
    if log_base is None:
        if matrix.nnz:
            check_values(matrix, f"`{name}`", "counts", "Set `layer`.")
        return Expression(scale(matrix), np.asarray(matrix.sum(axis=1)).ravel())
    natural = matrix * np.log(log_base)
    if not 0 <= natural.data.min(initial=0) <= natural.data.max(initial=0) <= LARGEST_LOG1P:  # NaN neither
        msg = f"`{name}` has `uns['log1p']`, but `X` has values that are negative, missing or too large; set `layer`."
        raise ValueError(msg)
    return Expression(scale(natural.expm1()), None)


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
    if len(missing := genes.difference(found)):
        msg = f"`{name}` lacks {len(missing)} of the {len(genes)} genes of the real cells, such as {missing[0]!r}."
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
    check_layer(cells, layer, name)
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
    """Return the base of the logarithms in the first file, None for counts."""
    first = cells.files[0]
    if cells.layer is not None or "log1p" not in first.keys("uns"):
        return np.e if cells.values == "log1p" else None
    return _log_base(first.read("uns", "log1p"), first.matrix(None), name)


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
    matrix, columns
        Values as they are, in memory or in files, and the columns of the genes.
    log_base
        Base of the logarithms; None for counts.
    scale
        Scale to compare the values on; None if they are on it.
    """

    name: str
    obs_names: pd.Index
    labels: NDArray[np.str_] | None
    matrix: Any
    columns: slice | NDArray[np.intp]
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
        scale: Scale = log_normalise,
    ) -> Source:
        """Check genes and labels, and prepare to read these genes. Real cells must have the layer."""
        found = cells.var.index
        check_genes(found, genes, name)
        columns = slice(None) if found.equals(genes) else found.get_indexer(genes)
        names = cells.obs_names
        if isinstance(cells, CellFiles):
            matrix, log_base = cells.matrix, _log_base_of_files(cells, name)
            cells = AnnData(obs=cells.read_columns(as_list(groupby)).set_axis(names))
        else:
            # read once, because a view of an AnnData copies its values on every access
            matrix, log_base = matrix_of(cells, layer, name, is_generated=name not in REAL)
            matrix = to_csr(matrix, name) if sp.issparse(matrix) else matrix
        labels = labels_of(cells, groupby, name=name) if groupby else None
        return cls(name, names, labels, matrix, columns, log_base, scale)

    def __len__(self) -> int:
        return len(self.obs_names)

    def read(self, rows: NDArray) -> Expression:
        """Return the cells at given positions on their scale, in the given order."""
        values = to_csr(read_rows(self.matrix, rows), self.name)[:, self.columns]
        if self.scale is None:
            return Expression(values, None)
        return on_scale(values, self.log_base, name=self.name, scale=self.scale)

    def chunks(self, rows: NDArray) -> Iterator[Expression]:
        """Read cells in chunks, which bounds the memory needed."""
        for start in range(0, max(len(rows), 1), CHUNK):
            yield self.read(rows[start : start + CHUNK])


def labels_of(adata: AnnData, groupby: str | Sequence[str], *, name: str = "adata") -> NDArray[np.str_]:
    """Return one label per cell as text, `(cells,)`: a column of `obs`, or several joined.

    Raises
    ------
    KeyError
        If a column does not exist.
    ValueError
        If a cell has no label, or `obs` has several columns of this name.
    """
    keys = as_list(groupby)
    for key in keys:
        text_labels(obs_column(adata, key, name), f"{name}.obs[{key!r}]")  # raises where one is missing
    return join_labels(adata.obs, keys)


def text_labels(labels: ArrayLike, name: str) -> NDArray[np.str_]:
    """Return labels as text (:func:`as_labels`); raise if one is missing."""
    labels = pd.Series(labels)
    if n_missing := int(labels.isna().sum()):
        msg = f"`{name}` has no label for {n_missing} of {len(labels)} cells; remove these cells."
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


def check_same_number_of_genes(n_first: int, n_second: int, names: tuple[str, str]) -> None:
    """Raise unless both sets have the same number of genes."""
    if n_first != n_second:
        msg = f"`{names[0]}` has {n_first} genes and `{names[1]}` {n_second}; both must have the same."
        raise ValueError(msg)


@dataclass(frozen=True)
class ComparisonSpace:
    """Genes and principal components of real training cells, in which every model is judged.

    A PCA separates the cells that it was fitted to from all others, so fit it to cells that you do not compare.

    Parameters
    ----------
    genes
        Positions of the most variable genes, ascending, `(genes,)`.
    pca
        Principal components of their log-normalised values.
    panel_size
        Number of genes of the cells; those that are projected must have the same genes in the same order.
    names
        Their names, if the cells were an AnnData.

    Examples
    --------
    >>> import numpy as np
    >>> counts = np.random.default_rng(0).poisson(2.0, (300, 50))
    >>> space = ComparisonSpace.fit(counts[:200], n_components=5)
    >>> space.project(counts[200:]).shape
    (100, 5)
    """

    genes: NDArray[np.intp]
    pca: PCA
    panel_size: int
    names: NDArray[Any] | None = None

    @classmethod
    def fit(
        cls,
        train: Cells | Expression,
        *,
        n_genes: int = N_GENES,
        n_components: int = N_COMPONENTS,
        layer: str | None = None,
        seed: int = 0,
    ) -> Self:
        """Choose genes and components.

        Parameters
        ----------
        train
            Real cells, none of which you compare later.
        n_genes
            Number of genes to keep: those whose log-normalised values vary most.
        n_components
            Number of principal components; fewer if there are fewer cells or genes.
        layer
            Layer with the counts.
        seed
            Seed of the randomised decomposition, and of the 10,000 cells that it uses if there are more.
        """
        expression = expression_of(train, layer=layer, name="train")
        of_genes = variances(expression.values)
        genes = np.sort(np.argsort(-of_genes, kind="stable")[:n_genes])
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.permutation(len(expression))[:MAX_FITTED_CELLS])
        values = expression.values[rows][:, genes].toarray()
        n_components = max(min(n_components, min(values.shape) - 1), 1)
        pca = PCA(n_components, svd_solver="randomized", random_state=seed).fit(values)
        return cls(genes, pca, len(of_genes), np.asarray(train.var_names) if isinstance(train, AnnData) else None)

    def project(self, cells: Cells | Expression, *, layer: str | None = None) -> NDArray[np.float32]:
        """Return the principal components of the cells, `(cells, components)`."""
        expression = expression_of(cells, layer=layer)
        self.check_genes(expression.values.shape[1], cells.var_names if isinstance(cells, AnnData) else None)
        return self.pca.transform(expression.values[:, self.genes].toarray())

    def check_genes(self, n_genes: int, names: pd.Index | None = None) -> None:
        """Raise unless cells with so many genes, and with these names if they have names, can be projected."""
        is_known = self.names is None or names is None or np.array_equal(names, self.names)
        if n_genes != self.panel_size or not is_known:
            msg = f"The cells have {n_genes} genes, but the space is of {self.panel_size} others, or in another order."
            raise ValueError(msg)
