"""The effect of a perturbation on the genes: moments of cells, their change against control, and which genes are differential."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np
from scipy.special import stdtr
from scipy.stats import false_discovery_control

from ._pairs import pair_of_expressions
from ._space import means, variances

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._expression import Cells, Expression

Ranking = Literal["welch", "change"]

FDR = 0.05


@dataclass(frozen=True)
class GeneMoments:
    """Mean and variance of every gene in some cells.

    Attributes
    ----------
    mean, variance
        Of log-normalised values, `(genes,)`; the variance is the unbiased one.
    n_cells
        Number of cells.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    n_cells: int

    @classmethod
    def of(cls, cells: Expression) -> Self:
        """Take the moments of some cells."""
        n_cells = len(cells)
        return cls(means(cells.values), variances(cells.values) * n_cells / max(n_cells - 1, 1), n_cells)

    @property
    def squared_error(self) -> NDArray[np.float64]:
        """Squared standard error of the mean, `(genes,)`.

        It is at least that of a gene which one of the cells expresses, with a value of 1. Cells that are moved as a whole, or predicted without spread, have
        genes with no variance at all, and the slightest change of these would be infinitely many standard errors.
        """
        return np.maximum(self.variance, 1 / self.n_cells) / self.n_cells


@dataclass(frozen=True)
class Effect:
    """How the genes of some cells differ from those of control cells.

    Attributes
    ----------
    cells, control
        Moments of both.
    """

    cells: GeneMoments
    control: GeneMoments

    @cached_property
    def change(self) -> NDArray[np.float64]:
        """Difference of the means, `(genes,)`."""
        return self.cells.mean - self.control.mean

    @cached_property
    def welch_t(self) -> NDArray[np.float64]:
        """Welch's *t* of every gene, `(genes,)`."""
        return self.change / np.sqrt(self._squared_error)

    @cached_property
    def is_significant(self) -> NDArray[np.bool_]:
        """Whether a gene is differential: Welch's test, both sides, false discovery rate 5 % (Benjamini and Hochberg), `(genes,)`."""
        p_values = 2 * stdtr(self._degrees_of_freedom, -np.abs(self.welch_t))
        return false_discovery_control(p_values) <= FDR

    def top_genes(self, n_top: int, ranking: Ranking = "welch") -> NDArray[np.intp]:
        """Return the positions of the genes that change most, most changed first, `(n_top,)`."""
        if ranking not in get_args(Ranking):
            msg = f"`ranking` must be one of {get_args(Ranking)}, but is {ranking!r}."
            raise ValueError(msg)
        if n_top < 2:
            msg = f"`n_top` must be at least 2 genes, so that they have a correlation, but is {n_top}."
            raise ValueError(msg)
        score = self.welch_t if ranking == "welch" else self.change
        return np.argsort(-np.abs(score), kind="stable")[:n_top]

    @cached_property
    def _squared_error(self) -> NDArray[np.float64]:
        return self.cells.squared_error + self.control.squared_error

    @property
    def _degrees_of_freedom(self) -> NDArray[np.float64]:
        """Degrees of freedom by Welch and Satterthwaite, `(genes,)`."""
        parts = [side.squared_error**2 / max(side.n_cells - 1, 1) for side in (self.cells, self.control)]
        return self._squared_error**2 / sum(parts)


def real_and_predicted_effect(
    real: Cells, predicted: Cells, control: Cells, layer: str | None = None
) -> tuple[Effect, Effect]:
    """Return the effect in real and in predicted cells, against the same control."""
    of_real, of_predicted = pair_of_expressions(real, predicted, layer, ("real", "predicted"))
    of_control = pair_of_expressions(real, control, layer, ("real", "control"))[1]
    real_moments, predicted_moments, control_moments = map(GeneMoments.of, (of_real, of_predicted, of_control))
    return Effect(real_moments, control_moments), predicted_effect(predicted_moments, real_moments, control_moments)


def predicted_effect(predicted: GeneMoments, real: GeneMoments, control: GeneMoments) -> Effect:
    """Return the effect in predicted cells, tested as if there were as many of them as real ones.

    More cells give smaller p-values: without this, a model would have more differential genes the more cells it generates.
    """
    return Effect(replace(predicted, n_cells=real.n_cells), control)
