"""One comparison of two samples of cells: what every entry of the catalogue measures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ._expression import Expression

T = TypeVar("T")

N_CORRELATED_GENES = 100


@dataclass(frozen=True)
class Sample:
    """Cells of one side.

    Attributes
    ----------
    expression
        All genes on the common scale, with total counts where the cells came as counts.
    pcs
        Principal components, `(cells, components)`.
    labels
        Groups, `(cells,)`; None without ``groupby``.
    """

    expression: Expression
    pcs: NDArray[np.float32]
    labels: NDArray[np.str_] | None

    def __len__(self) -> int:
        return len(self.pcs)

    def __getitem__(self, rows: NDArray) -> Sample:
        """Return some of the cells, by position or mask."""
        return Sample(self.expression[rows], self.pcs[rows], None if self.labels is None else self.labels[rows])


@dataclass(frozen=True)
class Training:
    """All cells that a model has learned from, as far as memorisation is concerned.

    Attributes
    ----------
    pcs
        Principal components, `(cells, components)`.
    members
        Principal components of those cells that the components were not chosen on. The others lie further out than cells that a PCA has not
        seen, which would tell them from held-out cells without any synthetic one.
    fingerprints
        Hashes of the cells' counts.
    """

    pcs: NDArray[np.float32]
    members: NDArray[np.float32]
    fingerprints: frozenset[bytes]


@dataclass(frozen=True)
class Comparison:
    """Equally many real and synthetic cells, or real cells that play the synthetic ones.

    Attributes
    ----------
    real, synthetic
        The two sides.
    genes
        Positions of the space's genes, by mean expression in the cells that the space was fitted to, highest first.
    squared_scale
        Unit of kernel widths, the same for value, floor and shuffled cells.
    training
        What synthetic cells may have been copied from; None without ``train``.
    seed
        For metrics that draw.
    """

    real: Sample
    synthetic: Sample
    genes: NDArray[np.intp]
    squared_scale: float
    training: Training | None
    seed: int
    _results: dict[Callable, object] = field(default_factory=dict, repr=False, compare=False)

    def once(self, function: Callable[[Comparison], T]) -> T:
        """Return what a function says of this comparison, computed once for all metrics that share it."""
        if function not in self._results:
            self._results[function] = function(self)
        return self._results[function]

    def at(self, real_rows: NDArray, synthetic_rows: NDArray) -> Comparison:
        """Return the comparison of some of the cells."""
        return replace(self, real=self.real[real_rows], synthetic=self.synthetic[synthetic_rows], _results={})

    def gene_values(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return log-normalised values of the space's genes on both sides, dense, `(cells, genes)`."""
        genes = np.sort(self.genes)
        return self.real.expression.values[:, genes].toarray(), self.synthetic.expression.values[:, genes].toarray()

    def correlated_values(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return those of the 100 most expressed of the space's genes."""
        genes = self.genes[:N_CORRELATED_GENES]
        return self.real.expression.values[:, genes].toarray(), self.synthetic.expression.values[:, genes].toarray()
