"""How well is the effect of a perturbation predicted: distances between cells, and correlation of mean changes against control.

Names elsewhere: ``pearson_delta`` of cell-eval is :func:`mean_change_correlation` on all genes, its ``mae`` the mean absolute difference of
means; its ``pearson_edistance`` correlates distances *from control* over perturbations, which is another question than how far predicted
cells are from real ones. The ``edistance`` of pertpy and cell-eval counts each cell's distance of 0 to itself, so that it is larger than
:func:`energy_distance`, the more so the fewer cells there are; pertpy's ``pearson_distance`` is 1 minus the correlation of *means*, which
is near 0 whatever the change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np
from sklearn.metrics import pairwise_distances

from ._genes import correlation
from ._pairs import pair_of_expressions
from ._representation import USE_REP, Points, two_representations
from ._space import means, variances

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._expression import Cells, Expression

Ranking = Literal["welch", "change"]

#: Smallest variance of a difference of means, so that a gene which does not vary ranks by its change and not by a division by zero.
TINY_VARIANCE = 1e-12


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


def energy_distance(real: Points, synthetic: Points, *, use_rep: str = USE_REP) -> float:
    r"""Return the energy distance between two sets of cells, estimated without bias.

    .. math:: \frac{2}{mn} \sum_{ij} \lVert x_i - y_j \rVert
        - \frac{1}{m (m - 1)} \sum_{i \ne j} \lVert x_i - x_j \rVert - \frac{1}{n (n - 1)} \sum_{i \ne j} \lVert y_i - y_j \rVert

    It is 0 in expectation exactly if both sets are drawn from the same distribution, and may be slightly negative then; the very same
    cells on both sides give a negative value. Lower is better. Unit: that of the distance between cells.

    *Catches* differences of mean, spread and shape. *Misses* little in a few dimensions; in many, a difference of the means
    dominates.

    Parameters
    ----------
    real, synthetic
        Values, `(cells, features)`, or AnnData; at least two cells each. Best in few dimensions, such as principal components.
    use_rep
        Entry of `obsm`, for AnnData.

    References
    ----------
    Székely and Rizzo 2013, Energy statistics: a class of statistics based on distances. J Stat Plan Inference 143:1249.
    Peidli et al. 2024, scPerturb. Nat Methods 21:531.

    Examples
    --------
    >>> import numpy as np
    >>> energy_distance(np.array([[0.0], [1.0]]), np.array([[2.0], [4.0]]))
    2.0
    """
    real, synthetic = two_representations(real, synthetic, use_rep)
    for name, values in (("real", real), ("synthetic", synthetic)):
        if len(values) < 2:
            msg = f"`{name}` must have at least two cells, but its shape is {values.shape}."
            raise ValueError(msg)
    between = pairwise_distances(real.astype(np.float64), synthetic.astype(np.float64)).mean()
    return float(2 * between - _mean_distance_within(real) - _mean_distance_within(synthetic))


def mean_change_correlation(
    real: Cells,
    predicted: Cells,
    control: Cells,
    *,
    n_top: int | None = None,
    ranking: Ranking = "welch",
    layer: str | None = None,
) -> float:
    r"""Correlate real and predicted mean changes against control over genes (Pearson).

    .. math:: \operatorname{corr}_g \left( \bar x^{\text{real}}_g - \bar x^{\text{control}}_g,\;
        \bar x^{\text{predicted}}_g - \bar x^{\text{control}}_g \right)

    From -1 to 1; 1 is best, and 0 is returned where one side does not change at all. It does not see the size of the change, nor anything but
    means; and since both sides subtract the same control cells, the sampling noise of these alone gives a positive value where control
    cells are few. Read it beside the baselines (:func:`evaluate_perturbation`).

    Parameters
    ----------
    real, predicted, control
        Counts, or AnnData with counts or `log1p` values, the same genes.
    n_top
        Use only this many genes, those that change most between the real perturbed cells and control; all genes if None.
    ranking
        What "most" means: the absolute Welch *t* statistic, or the absolute change of the mean.
    layer
        Layer with the counts.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> rate = np.full(50, 5.0)
    >>> changed = np.where(np.arange(50) < 10, 15.0, 5.0)
    >>> control, real, predicted = (rng.poisson(r, (200, 50)) for r in (rate, changed, changed))
    >>> round(mean_change_correlation(real, predicted, control), 1)
    1.0
    """
    of_real, of_predicted = pair_of_expressions(real, predicted, layer, ("real", "predicted"))
    of_control = pair_of_expressions(real, control, layer, ("real", "control"))[1]
    real_moments, predicted_moments, control_moments = map(GeneMoments.of, (of_real, of_predicted, of_control))
    genes = slice(None) if n_top is None else top_changed_genes(real_moments, control_moments, n_top, ranking)
    real_change = (real_moments.mean - control_moments.mean)[genes]
    return correlation(real_change, (predicted_moments.mean - control_moments.mean)[genes])


def top_changed_genes(
    real: GeneMoments, control: GeneMoments, n_top: int, ranking: Ranking = "welch"
) -> NDArray[np.intp]:
    """Return the positions of the genes that change most in real cells, most changed first, `(n_top,)`."""
    if ranking not in get_args(Ranking):
        msg = f"`ranking` must be one of {get_args(Ranking)}, but is {ranking!r}."
        raise ValueError(msg)
    if n_top < 2:
        msg = f"`n_top` must be at least 2 genes, so that they have a correlation, but is {n_top}."
        raise ValueError(msg)
    change = np.abs(real.mean - control.mean)
    if ranking == "welch":
        change = change / np.sqrt(real.variance / real.n_cells + control.variance / control.n_cells + TINY_VARIANCE)
    return np.argsort(-change, kind="stable")[:n_top]


def _mean_distance_within(values: NDArray) -> float:
    n_cells = len(values)
    return pairwise_distances(values.astype(np.float64)).sum() / (n_cells * (n_cells - 1))
