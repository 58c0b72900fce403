"""The space in which cells are compared: a scale for the features of each modality, then genes and principal components of real training cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, get_args

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import PCA

from scgen_diffusion._arguments import known_names

from ._cells import TARGET_SUM, USE_REP, Cells, Expression, expression_of, log_normalise, matrix_of, variances

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

#: What turns counts `(cells, features)` into values that are compared; zeros stay zeros.
Scale: TypeAlias = "Callable[[sp.csr_matrix], sp.csr_matrix]"

ScaleName: TypeAlias = Literal["log_normalised", "log1p", "tf_idf"]

#: Below so many features, one of them is a large part of a cell's total, and dividing by the total would let its rise be the fall of all others.
FEW_FEATURES = 500


def tf_idf(reference: sp.csr_matrix) -> Scale:
    r"""Return term frequency, inverse document frequency: the scale of open chromatin.

    .. math:: y_{if} = \log\Bigl(1 + 10^4\, \frac{x_{if}}{\sum_h x_{ih}} \cdot \frac{n}{n_f}\Bigr)

    with the number :math:`n_f` of the :math:`n` reference cells that have feature :math:`f`, at least 1.

    References
    ----------
    Stuart et al. 2021, Single-cell chromatin state analysis with Signac. Nat Methods 18:1333 (`RunTFIDF`, its first method).
    """
    n_found = np.asarray((reference != 0).sum(axis=0)).ravel()
    inverse_frequencies = reference.shape[0] / np.maximum(n_found, 1)

    def scale(counts: sp.csr_matrix) -> sp.csr_matrix:
        counts = sp.csr_matrix(counts, dtype=np.float64, copy=True)
        totals = np.asarray(counts.sum(axis=1)).ravel()
        counts.data *= np.repeat(TARGET_SUM / np.where(totals > 0, totals, 1), np.diff(counts.indptr))
        counts.data *= inverse_frequencies[counts.indices]
        return counts.log1p().astype(np.float32)

    return scale


def log1p_of_counts(counts: sp.csr_matrix) -> sp.csr_matrix:
    """Take `log1p` of counts as they are: the scale of a panel of proteins. CSR, float32."""
    return sp.csr_matrix(counts, dtype=np.float64).log1p().astype(np.float32)


def choose_scales(
    real: Mapping[str, AnnData], scales: Mapping[str, ScaleName] | None, layers: Mapping[str, str]
) -> dict[str, ScaleName]:
    """Return the name of each modality's scale: the one given, or the one that suits the real cells, by their values and the number of features."""
    chosen = dict(scales or {})
    for modality in [*chosen, *layers]:
        if modality not in real:
            msg = f"`scales` and layers are named by modality, but there is no {modality!r}. {known_names(modality, list(real))}"
            raise KeyError(msg)
    for modality, cells in real.items():
        if modality not in chosen:
            matrix, log_base = matrix_of(cells, layers.get(modality), modality)
            values = sp.csr_matrix(matrix[:]).data
            is_binary = log_base is None and len(values) > 0 and values.max() <= 1
            few_or_many = "log1p" if cells.n_vars < FEW_FEATURES else "log_normalised"
            chosen[modality] = "tf_idf" if is_binary else few_or_many
    return {modality: chosen[modality] for modality in real}


def make_scale(name: ScaleName, reference: AnnData, layer: str | None) -> Scale:
    """Return a scale, fitted to reference cells where it needs some."""
    if name == "log_normalised":
        return log_normalise
    if name == "log1p":
        return log1p_of_counts
    if name == "tf_idf":
        return tf_idf(sp.csr_matrix(matrix_of(reference, layer, "train")[0][:]))
    msg = f"`scales` names {name!r}; a scale must be one of {list(get_args(ScaleName))}."
    raise ValueError(msg)


N_GENES = 2_000
N_COMPONENTS = 30
MAX_CELLS = 10_000


@dataclass(frozen=True)
class ComparisonSpace:
    """Genes and principal components chosen on real training cells, the same for every model that is judged.

    A PCA separates the very cells that it was fitted to from any others: fit it on cells that are not compared.

    Parameters
    ----------
    genes
        Positions of the genes that vary most, ascending, `(genes,)`.
    pca
        Principal components of their log-normalised values.

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
            Real cells, none of which is compared later.
        n_genes
            Genes kept, by the variance of log-normalised values.
        n_components
            Principal components; fewer where there are fewer cells or genes.
        layer
            Layer with the counts.
        seed
            Decides the randomised decomposition, and which 10 000 cells it sees where there are more.
        """
        expression = expression_of(train, layer=layer, name="train")
        of_genes = variances(expression.values)
        if len(expression) < 2 or len(of_genes) < 2 or not of_genes.any():
            msg = (
                f"Principal components need cells that differ, two or more, in two genes or more, but `train` has {len(expression)} cells and "
                f"{len(of_genes)} genes{'' if of_genes.any() else ', none of which varies'}."
            )
            raise ValueError(msg)
        genes = np.sort(np.argsort(-of_genes, kind="stable")[:n_genes])
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.permutation(len(expression))[:MAX_CELLS])
        values = expression.values[rows][:, genes].toarray()
        n_components = min(n_components, min(values.shape) - 1)
        return cls(genes, PCA(n_components, svd_solver="randomized", random_state=seed).fit(values))

    def project(self, cells: Cells | Expression, *, layer: str | None = None) -> NDArray[np.float32]:
        """Return the cells in principal components, `(cells, components)`."""
        expression = expression_of(cells, layer=layer)
        if (n_genes := expression.values.shape[1]) <= self.genes.max():
            msg = f"The cells have {n_genes} genes, but the space was fitted to cells with more. They must have the same genes in the same order."
            raise ValueError(msg)
        return self.pca.transform(expression.values[:, self.genes].toarray())

    def write(self, *adatas: AnnData, key: str = USE_REP, layer: str | None = None) -> None:
        """Put the principal components of every AnnData into its `obsm`, where the metrics of points look for them.

        Parameters
        ----------
        adatas
            Cells with the genes that the space was fitted to, in the same order.
        key
            Name in `obsm`.
        layer
            Layer with the counts.
        """
        for adata in adatas:
            adata.obsm[key] = self.project(adata, layer=layer)
