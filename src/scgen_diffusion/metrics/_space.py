"""The space in which cells are compared: a scale for each modality, then genes and principal components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from sklearn.decomposition import PCA

from scgen_diffusion._arguments import known_names
from scgen_diffusion.data import to_csr

from ._cells import Cells, Expression, Scale, expression_of, log_normalise, matrix_of, scale_to_target, variances

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import NDArray

ScaleName: TypeAlias = Literal["log_normalised", "log1p", "tf_idf"]

#: With fewer features, each is a large part of the total: dividing by the total makes all others fall when one rises.
FEW_FEATURES = 500


def tf_idf(reference: sp.csr_matrix) -> Scale:
    r"""Return term frequency, inverse document frequency (TF-IDF), the scale of open chromatin.

    .. math:: y_{if} = \log\Bigl(1 + 10^4\, \frac{x_{if}}{\sum_h x_{ih}} \cdot \frac{n}{n_f}\Bigr)

    where :math:`n_f` of the :math:`n` reference cells have feature :math:`f` (at least 1).

    References
    ----------
    Stuart et al. 2021, Single-cell chromatin state analysis with Signac. Nat Methods 18:1333
    (`RunTFIDF`, its first method).
    """
    n_found = np.asarray((reference != 0).sum(axis=0)).ravel()
    inverse_frequencies = reference.shape[0] / np.maximum(n_found, 1)

    def scale(counts: sp.csr_matrix) -> sp.csr_matrix:
        counts = scale_to_target(counts)
        counts.data *= inverse_frequencies[counts.indices]
        return counts.log1p().astype(np.float32)

    return scale


def log1p_of_counts(counts: sp.csr_matrix) -> sp.csr_matrix:
    """Take `log1p` of the counts as they are (CSR, float32), the scale of a panel of proteins."""
    copied = sp.csr_matrix(counts, dtype=np.float64, copy=True)  # log1p sorts the genes of each cell in place
    return copied.log1p().astype(np.float32)


def choose_scales(
    real: Mapping[str, AnnData], scales: Mapping[str, ScaleName] | None, layers: Mapping[str, str]
) -> dict[str, ScaleName]:
    """Return the name of each modality's scale: the given one, or one that suits its values and number of features."""
    for modality in [*(scales or {}), *layers]:
        if modality not in real:
            msg = f"`scales` and `layer` have no modality {modality!r}. {known_names(modality, list(real))}"
            raise KeyError(msg)
    chosen = {}
    for modality, cells in real.items():
        matrix, log_base = matrix_of(cells, layers.get(modality), modality)
        largest = to_csr(matrix[:], modality).data.max(initial=0)
        few_or_many = "log1p" if cells.n_vars < FEW_FEATURES else "log_normalised"
        chosen[modality] = "tf_idf" if log_base is None and 0 < largest <= 1 else few_or_many
    return chosen | dict(scales or {})


def make_scale(name: ScaleName, reference: AnnData, layer: str | None) -> Scale:
    """Return a scale, fitted to the reference cells if it needs fitting."""
    if name == "tf_idf":
        return tf_idf(to_csr(matrix_of(reference, layer, "train")[0][:], "train"))
    known = {"log_normalised": log_normalise, "log1p": log1p_of_counts}
    if name not in known:
        msg = f"`scales` has {name!r}; a scale must be one of {[*known, 'tf_idf']}."
        raise ValueError(msg)
    return known[name]


N_GENES = 2_000
N_COMPONENTS = 30
MAX_FITTED_CELLS = 10_000


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
