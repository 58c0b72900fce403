"""How well is the effect of a perturbation predicted: distances between cells, and correlation of mean changes against control.

Names elsewhere: ``pearson_delta`` of cell-eval is :func:`mean_change_correlation` on all genes, its ``mae`` the mean absolute difference of
means; its ``pearson_edistance`` correlates distances *from control* over perturbations, which is another question than how far predicted
cells are from real ones. The ``edistance`` of pertpy and cell-eval counts each cell's distance of 0 to itself, so that it is larger than
:func:`energy_distance`, the more so the fewer cells there are; pertpy's ``pearson_distance`` is 1 minus the correlation of *means*, which
is near 0 whatever the change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import pairwise_distances

from ._genes import correlation
from ._pairs import pair_of_expressions
from ._perturbation_effects import Effect, GeneMoments, Ranking, real_and_predicted_effect
from ._representation import USE_REP, Points, two_representations

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._expression import Cells


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
    effects = real_and_predicted_effect(real, predicted, control, layer)
    return correlation_of_changes(*effects, n_top=n_top, ranking=ranking)


def variance_error(
    real: Cells,
    predicted: Cells,
    *,
    control: Cells | None = None,
    n_top: int | None = None,
    ranking: Ranking = "welch",
    layer: str | None = None,
) -> float:
    r"""Return how far the genes' variances in predicted cells are from those in real cells.

    .. math:: \frac{1}{G} \sum_g \bigl| s^2_g(\text{real}) - s^2_g(\text{predicted}) \bigr|

    with unbiased variances of log-normalised values. From 0 upwards; lower is better. The plain difference is taken because a correlation of variances does not see
    that all of them are too small, and logarithms drown in the noise of genes that few cells have. (CD14 monocytes of `kang_ifnb`, half of the real cells
    0.022; with cells averaged in fives 0.080, control cells 0.055: the correlations of the log variances over genes are 0.93, 0.92 and 0.87.)

    *Catches* cells without their spread (predicted means), noise added, and control cells moved as they are, whose spread is that of control:
    most clearly in the genes that change most. *Misses* means, and everything between genes.

    Parameters
    ----------
    real, predicted
        Counts, or AnnData with counts or `log1p` values, the same genes.
    control
        Control cells, needed with `n_top` only.
    n_top
        Use only this many genes, those that change most between the real perturbed cells and control; all genes if None.
    ranking
        What "most" means, as in :func:`mean_change_correlation`.
    layer
        Layer with the counts.

    Raises
    ------
    ValueError
        If `n_top` is given without `control`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> real, predicted = rng.poisson(50.0, (200, 50)), rng.poisson(50.0, (200, 50))
    >>> smooth = np.full((200, 50), 50)
    >>> variance_error(real, predicted) < variance_error(real, smooth) / 3
    True
    """
    if n_top is None:
        of_both = map(GeneMoments.of, pair_of_expressions(real, predicted, layer, ("real", "predicted")))
        return error_of_variances(*of_both)
    if control is None:
        msg = "`n_top` needs `control`, against which genes change."
        raise ValueError(msg)
    effect, predicted_effect = real_and_predicted_effect(real, predicted, control, layer)
    return error_of_variances(effect.cells, predicted_effect.cells, effect.top_genes(n_top, ranking))


def correlation_of_changes(
    real: Effect, predicted: Effect, *, n_top: int | None = None, ranking: Ranking = "welch"
) -> float:
    """Return :func:`mean_change_correlation` of two effects against the same control."""
    genes = slice(None) if n_top is None else real.top_genes(n_top, ranking)
    return correlation(real.change[genes], predicted.change[genes])


def error_of_variances(real: GeneMoments, predicted: GeneMoments, genes: NDArray | slice = slice(None)) -> float:
    """Return :func:`variance_error` of two sets of cells."""
    return float(np.abs(real.variance - predicted.variance)[genes].mean())


def _mean_distance_within(values: NDArray) -> float:
    n_cells = len(values)
    return pairwise_distances(values.astype(np.float64)).sum() / (n_cells * (n_cells - 1))
