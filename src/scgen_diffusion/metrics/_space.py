"""The space in which cells are compared: genes and principal components of real training cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from sklearn.decomposition import PCA

from ._expression import Cells, Expression, expression_of
from ._representation import USE_REP

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData
    from numpy.typing import NDArray

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
        expression = train if isinstance(train, Expression) else expression_of(train, layer=layer, name="train")
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

    def select(self, cells: Cells | Expression, *, layer: str | None = None) -> NDArray[np.float32]:
        """Return the log-normalised values of the chosen genes, dense, `(cells, genes)`."""
        expression = cells if isinstance(cells, Expression) else expression_of(cells, layer=layer)
        if (n_genes := expression.values.shape[1]) <= self.genes.max():
            msg = f"The cells have {n_genes} genes, but the space was fitted to cells with more. They must have the same genes in the same order."
            raise ValueError(msg)
        return expression.values[:, self.genes].toarray()

    def project(self, cells: Cells | Expression, *, layer: str | None = None) -> NDArray[np.float32]:
        """Return the cells in principal components, `(cells, components)`."""
        return self.pca.transform(self.select(cells, layer=layer))

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


def means(values: sp.csr_matrix) -> NDArray[np.float64]:
    """Return every gene's mean, `(genes,)`."""
    return np.asarray(values.mean(axis=0, dtype=np.float64)).ravel()


def variances(values: sp.csr_matrix) -> NDArray[np.float64]:
    """Return every gene's variance, `(genes,)`."""
    squares = np.asarray(values.multiply(values).mean(axis=0, dtype=np.float64)).ravel()
    return np.maximum(squares - means(values) ** 2, 0)
