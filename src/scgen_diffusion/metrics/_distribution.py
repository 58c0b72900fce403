"""Distances between two sets of points, how well each covers the other, and whether a classifier can separate them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import ot
from scipy.spatial.distance import cdist, pdist
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from ._cells import as_points

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

#: Squared kernel widths, as multiples of the median squared distance.
BANDWIDTH_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)

#: Balls are larger by this share, so that rounding leaves no cell just outside.
ROUNDING = 1e-9


def wasserstein_2(real: ArrayLike, synthetic: ArrayLike) -> float:
    r"""Measure the distance between real and synthetic cells by optimal transport (exact 2-Wasserstein distance).

    .. math:: W_2 = \left( \min_\pi \sum_{ij} \pi_{ij} \lVert x_i - y_j \rVert^2 \right)^{1/2}

    over the couplings :math:`\pi` of the two sets. From 0 (identical sets) upwards, in the unit of the values; lower is
    better.

    *Catches* shifts, lost or invented populations and wrong proportions. *Misses* cells that are too smooth: in many
    dimensions they score below the real value, because the centre is close to everything. Read it together with recall.

    Even for equal distributions the value is far above 0, and it falls slowly with the number of cells (as
    :math:`n^{-1/d}`). Compare only figures for equal numbers of cells, next to their real value.

    Parameters
    ----------
    real, synthetic
        Points `(cells, features)`. Time grows with the cube of their number, memory with the square.

    References
    ----------
    Flamary et al. 2021, POT: Python Optimal Transport.

    Examples
    --------
    >>> wasserstein_2([[0.0, 0.0], [1.0, 0.0]], [[4.0, 4.0], [3.0, 4.0]])
    5.0
    """
    x, y = as_points(real=real, synthetic=synthetic)
    return float(np.sqrt(ot.emd2([], [], cdist(x, y, "sqeuclidean"), numItermax=1_000_000)))


def median_squared_distance(values: ArrayLike) -> float:
    """Return the median squared distance between different points: the unit of kernel widths in :func:`squared_mmd`.

    If more than half of the distances are zero, only the others count; 1 if all are.
    """
    squared = pdist(*as_points(values=values), "sqeuclidean")
    return float(np.median(squared) or (np.median(squared[squared > 0]) if squared.any() else 1.0))


def squared_mmd(real: ArrayLike, synthetic: ArrayLike, *, squared_scale: float | None = None) -> float:
    r"""Measure how much two sets of cells differ, with Gaussian kernels (unbiased squared maximum mean discrepancy).

    .. math:: \frac{\sum_{i \ne j} k(x_i, x_j)}{m (m - 1)} + \frac{\sum_{i \ne j} k(y_i, y_j)}{n (n - 1)}
        - \frac{2}{mn} \sum_{ij} k(x_i, y_j),
       \quad k(x, y) = \operatorname{mean}_c \exp \frac{-\lVert x - y \rVert^2}{c s},\ c \in \{1/4, 1/2, 1, 2, 4\}

    At most 2; about 0 for equal distributions, as often below as above; lower is better. Its expectation does not
    depend on the number of cells. *Catches* shifts and wrong proportions. *Misses* small populations and structure
    finer than the kernels.

    Parameters
    ----------
    real, synthetic
        Points `(cells, features)`, two or more.
    squared_scale
        Unit `s` of the kernel widths, a squared distance; by default the median between real points. Use the same value
        for all figures that you compare.

    References
    ----------
    Gretton et al. 2012, A kernel two-sample test.
    """
    x, y = as_points(real=real, synthetic=synthetic)
    scale = median_squared_distance(x) if squared_scale is None else squared_scale
    within_x, within_y = (_mean_off_diagonal(_kernel(values, values, scale)) for values in (x, y))
    return float(within_x + within_y - 2 * _kernel(x, y, scale).mean())


def energy_distance(real: ArrayLike, synthetic: ArrayLike) -> float:
    r"""How far predicted and real cells are apart: mean, spread and shape. In many dimensions, means dominate.

    .. math:: \frac{2}{mn} \sum_{ij} \lVert x_i - y_j \rVert
        - \frac{1}{m (m - 1)} \sum_{i \ne j} \lVert x_i - x_j \rVert
        - \frac{1}{n (n - 1)} \sum_{i \ne j} \lVert y_i - y_j \rVert

    Lower is better, in the unit of the values. Its expectation is 0 exactly when both sets come from the same
    distribution, so it can be slightly negative then. Identical sets give a negative value. The `edist` of scPerturb
    uses squared Euclidean distances by default, so its figures cannot be compared with these.

    *Catches* differences of mean, spread and shape. In many dimensions, a difference of the means dominates.

    Parameters
    ----------
    real, synthetic
        Points `(cells, features)`, two or more. Use few dimensions, such as principal components.

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
    x, y = (values.astype(np.float64) for values in as_points(real=real, synthetic=synthetic))
    within_x, within_y = (_mean_off_diagonal(pairwise_distances(values)) for values in (x, y))
    return float(2 * pairwise_distances(x, y).mean() - within_x - within_y)


def precision_recall_density_coverage(real: ArrayLike, synthetic: ArrayLike, *, k: int = 5) -> dict[str, float]:
    """Measure whether synthetic cells look real (precision, density) and cover all real cells (recall, coverage).

    Each cell has a ball that reaches to its `k`-th nearest neighbour in its own set. Precision, recall and coverage run
    from 0 to 1; higher is better. Density is best near its real value. For equal distributions, precision, recall and
    coverage are below 1: the real value depends on the number of cells and features.

    *Catches* cells far from real ones (precision falls), lost populations (recall and coverage fall), scattered cells
    (density falls) and crowded cells (density rises). *Misses* proportions: one cell covers a ball as well as ten.
    Outliers have large balls, which makes precision and recall too high.

    Parameters
    ----------
    real, synthetic
        Points `(cells, features)`, more than `k`.
    k
        Number of neighbours, without the cell itself.

    Returns
    -------
    `precision`, the share of synthetic cells inside the ball of some real cell; `recall`, the share of real cells
    inside the ball of some synthetic cell; `density`, the number of real balls that contain a synthetic cell, divided
    by `k`, averaged over synthetic cells (1 on average for equal distributions, and higher where cells crowd); and
    `coverage`, the share of real cells whose ball contains a synthetic cell.

    References
    ----------
    Kynkäänniemi et al. 2019, Improved precision and recall metric for assessing generative
    models; Naeem et al. 2020, Reliable fidelity and diversity metrics for generative models.

    Examples
    --------
    >>> line = np.arange(10.0)[:, None]
    >>> precision_recall_density_coverage(line, line[:5] + 0.25, k=1)
    {'precision': 1.0, 'recall': 0.6, 'density': 2.0, 'coverage': 0.6}
    """
    x, y = as_points(real=real, synthetic=synthetic)
    of_real, of_synthetic = (_squared_radii(values, k) for values in (x, y))
    between = cdist(x, y, "sqeuclidean")
    in_real_ball, in_synthetic_ball = between <= of_real[:, None], between <= of_synthetic
    return {
        "precision": float(in_real_ball.any(axis=0).mean()),
        "recall": float(in_synthetic_ball.any(axis=1).mean()),
        "density": float(in_real_ball.sum() / (k * len(y))),
        "coverage": float(in_real_ball.any(axis=1).mean()),
    }


def _kernel(x: NDArray, y: NDArray, squared_scale: float) -> NDArray[np.float64]:
    """Return the mean over Gaussian kernels, each of which is the square of the next wider one."""
    kernel = np.exp(cdist(x, y, "sqeuclidean") / (-max(BANDWIDTH_FACTORS) * squared_scale))
    total = kernel.copy()
    for _ in BANDWIDTH_FACTORS[1:]:
        kernel *= kernel
        total += kernel
    return total / len(BANDWIDTH_FACTORS)


def _mean_off_diagonal(values: NDArray) -> float:
    return float((values.sum() - np.trace(values)) / (len(values) * (len(values) - 1)))


def _squared_radii(values: NDArray, k: int) -> NDArray[np.float64]:
    squared = cdist(values, values, "sqeuclidean")
    squared.partition(k, axis=1)  # the first is the cell itself
    return squared[:, k] * (1 + ROUNDING)


Classifier: TypeAlias = Literal["boosting", "quick_boosting", "logistic", "neighbours"]
CLASSIFIERS = {
    "boosting": HistGradientBoostingClassifier(max_iter=100, max_leaf_nodes=15),
    # On thousands of genes this is about as powerful as "boosting", in a fraction of the time. Smaller trees that
    # choose among all genes lose power.
    "quick_boosting": HistGradientBoostingClassifier(
        max_iter=100, learning_rate=0.15, max_leaf_nodes=8, max_bins=32, max_features=0.3
    ),
    "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000)),
    "neighbours": KNeighborsClassifier(15),
}

N_FOLDS = 5


def classifier_auc(
    real: ArrayLike, synthetic: ArrayLike, *, classifier: Classifier = "boosting", seed: int = 0
) -> float:
    """Measure how well a classifier tells synthetic cells from real ones (cross-validated area under the ROC curve).

    From 0 to 1; 0.5 is perfect (the classifier only guesses), and 1 means that it is always right. Lower is better.

    *Catches* every difference that the classifier can learn. *Misses* the cause: it does not say what is wrong. More
    cells reveal smaller differences, so compare only figures for equal numbers of cells.

    Values below 0.5 are possible. With ``"neighbours"``, cells may be surrounded by cells of the other set, as copies
    are. With ``"logistic"``, the means of both sets may be closer than by chance, for example with equal shares of
    labels. What the classifier learns from four folds is then wrong on the fifth.

    Parameters
    ----------
    real, synthetic
        Points `(cells, features)`, five or more.
    classifier
        - ``"boosting"``: gradient-boosted trees, usually the most powerful.
        - ``"quick_boosting"``: smaller trees whose splits choose among 30 % of the features. Meant for thousands of
          genes.
        - ``"logistic"``: a linear boundary between standardised features. It is fast and sees only shifts.
        - ``"neighbours"``: 15 nearest neighbours, which see local differences in few dimensions.
    seed
        Seed of the five folds and of boosting.

    References
    ----------
    Lopez-Paz and Oquab 2017, Revisiting classifier two-sample tests.
    """
    return auc_of_scores(*classifier_scores(real, synthetic, classifier=classifier, seed=seed))


def classifier_scores(
    real: ArrayLike, synthetic: ArrayLike, *, classifier: Classifier = "boosting", seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the predicted probability of being synthetic of each cell of both sets, from the fold that left it out.

    Arguments as in :func:`classifier_auc`.
    """
    x, y = as_points(real=real, synthetic=synthetic)
    values, is_synthetic = np.concatenate([x, y]), np.repeat([0, 1], [len(x), len(y)])
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    model = clone(CLASSIFIERS[classifier])
    if "random_state" in model.get_params():
        model.set_params(random_state=seed)
    # Boosting so few cells runs thousands of tiny parallel regions: more threads gain little and slow a busy machine.
    with threadpool_limits(1, user_api="openmp"):
        probability = cross_val_predict(model, values, is_synthetic, cv=folds, method="predict_proba")[:, 1]
    return probability[: len(x)], probability[len(x) :]


def auc_of_scores(real: NDArray, synthetic: NDArray) -> float:
    """Return the probability that a synthetic cell scores higher than a real one; ties count half."""
    is_synthetic = np.repeat([0, 1], [len(real), len(synthetic)])
    return float(roc_auc_score(is_synthetic, np.concatenate([real, synthetic])))
