"""Can synthetic cells be told from real ones? Classifiers that try, and how well both mix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from ._representation import USE_REP, Points, two_representations

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sklearn.base import ClassifierMixin

Classifier: TypeAlias = Literal["boosting", "quick_boosting", "logistic", "neighbours"]

N_FOLDS = 5
N_NEIGHBOURS = 15
N_BISECTIONS = 50


class Scores(NamedTuple):
    """One number per cell of both sets.

    Attributes
    ----------
    real, synthetic
        `(cells,)`.
    """

    real: NDArray[np.float64]
    synthetic: NDArray[np.float64]


def classifier_auc(
    real: Points, synthetic: Points, *, classifier: Classifier = "boosting", seed: int = 0, use_rep: str = USE_REP
) -> float:
    """Return the cross-validated area under the ROC curve with which a classifier tells synthetic from real cells.

    0.5 where it cannot, 1 where it always can. Neighbours fall below 0.5 where each cell is surrounded by the other set more than by its own, as copies are. A
    line falls below 0.5 where the means of both sets are nearer than chance would have them (such as with equal shares of labels): what it learns of four
    folds is then the opposite of what the fifth one shows. It sees whatever the classifier can learn, and names no cause. The more cells, the smaller the differences that are found: compare figures of equally many cells.

    Parameters
    ----------
    real, synthetic
        Points `(cells, features)`, five or more, or AnnData.
    classifier
        ``"boosting"``: gradient boosted trees, the sharpest in most cases. ``"quick_boosting"``: smaller trees, each of whose splits chooses
        among 30 % of the features; for thousands of genes, where it is as sharp in a third of the time. ``"logistic"``: a linear boundary between standardised features, which sees shifts only;
        quick. ``"neighbours"``: 15 nearest neighbours, which see local differences in few dimensions.
    seed
        Decides the five folds.
    use_rep
        Entry of `obsm`, for AnnData.

    References
    ----------
    Lopez-Paz and Oquab 2017, Revisiting classifier two-sample tests.
    """
    return auc_of_scores(*classifier_scores(real, synthetic, classifier=classifier, seed=seed, use_rep=use_rep))


def classifier_scores(
    real: Points, synthetic: Points, *, classifier: Classifier = "boosting", seed: int = 0, use_rep: str = USE_REP
) -> Scores:
    """Return every cell's probability to be synthetic, from the fold that did not see it; arguments as in :func:`classifier_auc`."""
    x, y = two_representations(real, synthetic, use_rep)
    if min(len(x), len(y)) < N_FOLDS:
        msg = f"`real` has {len(x)} cells and `synthetic` {len(y)}; there must be {N_FOLDS} or more of each."
        raise ValueError(msg)
    values, is_synthetic = np.concatenate([x, y]), np.repeat([0, 1], [len(x), len(y)])
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    model = _classifier(classifier, n_cells=len(values), seed=seed)
    # Boosting so few cells is thousands of tiny parallel regions: a second thread gains little, and on a busy machine costs tenfold.
    with threadpool_limits(1, user_api="openmp"):
        probability = cross_val_predict(model, values, is_synthetic, cv=folds, method="predict_proba")[:, 1]
    return Scores(probability[: len(x)], probability[len(x) :])


def auc_of_scores(real: NDArray, synthetic: NDArray) -> float:
    """Return the probability that a synthetic cell's score exceeds a real one's, ties counted half."""
    is_synthetic = np.repeat([0, 1], [len(real), len(synthetic)])
    return float(roc_auc_score(is_synthetic, np.concatenate([real, synthetic])))


def ilisi(real: Points, synthetic: Points, *, perplexity: float = 30, use_rep: str = USE_REP) -> float:
    r"""Return how well both sets mix locally: the integration score iLISI, scaled to [0, 1].

    Around every cell, neighbours are weighted by a Gaussian whose width gives the weights this perplexity; with :math:`p` the weight of the synthetic ones,
    the effective number of sets is :math:`1 / (p^2 + (1 - p)^2)`, between 1 and 2. The median over cells less 1 is returned: 0 where sets lie apart, nearly 1 where
    they are mixed (chance alone leaves a few percent). It sees sets apart; a few cells out of place, or a population that is missing, it does not. Meant for equally
    many cells of both sets.

    Parameters
    ----------
    real, synthetic
        Points `(cells, features)`, or AnnData.
    perplexity
        Effective number of neighbours; three times as many are looked at.
    use_rep
        Entry of `obsm`, for AnnData.

    References
    ----------
    Korsunsky et al. 2019, Fast, sensitive and accurate integration of single-cell data with Harmony.
    """
    return mixing_of_scores(*mixing_scores(real, synthetic, perplexity=perplexity, use_rep=use_rep))


def mixing_scores(real: Points, synthetic: Points, *, perplexity: float = 30, use_rep: str = USE_REP) -> Scores:
    """Return every cell's effective number of sets around it, less 1; arguments as in :func:`ilisi`."""
    x, y = two_representations(real, synthetic, use_rep)
    n_neighbours = int(3 * perplexity)
    if n_neighbours >= len(x) + len(y):
        msg = f"`perplexity` is {perplexity}, for which there must be more than {n_neighbours} cells, but there are {len(x) + len(y)}."
        raise ValueError(msg)
    distances, neighbours = NearestNeighbors(n_neighbors=n_neighbours).fit(np.concatenate([x, y])).kneighbors()
    weights = _weights_of_perplexity(distances.astype(np.float64) ** 2, perplexity)
    share = (weights * (neighbours >= len(x))).sum(axis=1)
    scores = 1 / (share**2 + (1 - share) ** 2) - 1
    return Scores(scores[: len(x)], scores[len(x) :])


def mixing_of_scores(real: NDArray, synthetic: NDArray) -> float:
    """Return the median over the cells of both sets."""
    return float(np.median(np.concatenate([real, synthetic])))


def _classifier(name: Classifier, *, n_cells: int, seed: int) -> ClassifierMixin:
    if name == "boosting":
        return HistGradientBoostingClassifier(max_iter=100, max_leaf_nodes=15, random_state=seed)
    if name == "quick_boosting":
        # On 2 000 genes of 660 pbmc3k cells a side, AUCs of scVI and WBDIT are 0.821 and 0.727, and 0.820 and 0.727 with "boosting" in 3.5 times the time.
        # Smaller trees that may choose any gene lose power (0.787 and 0.708 with 6 leaves).
        return HistGradientBoostingClassifier(
            max_iter=100, learning_rate=0.15, max_leaf_nodes=8, max_bins=32, max_features=0.3, random_state=seed
        )
    if name == "logistic":
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))
    if name == "neighbours":
        return KNeighborsClassifier(min(N_NEIGHBOURS, n_cells // 2))
    msg = f"`classifier` is {name!r}; it must be one of {list(get_args(Classifier))}."
    raise ValueError(msg)


def _weights_of_perplexity(squared: NDArray[np.float64], perplexity: float) -> NDArray[np.float64]:
    """Return Gaussian weights `(cells, neighbours)` that sum to 1 and have this perplexity, by bisecting the log precision."""
    relative = squared - squared[:, :1]
    relative /= np.maximum(relative.mean(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    low, high = np.full((len(squared), 1), -20.0), np.full((len(squared), 1), 20.0)
    for _ in range(N_BISECTIONS):
        middle = (low + high) / 2
        too_wide = _entropy(_softmax(-np.exp(middle) * relative)) > np.log(perplexity)
        low, high = np.where(too_wide, middle, low), np.where(too_wide, high, middle)
    return _softmax(-np.exp(low) * relative)


def _softmax(logits: NDArray) -> NDArray:
    weights = np.exp(logits)  # the nearest neighbour's logit is 0, the largest
    return weights / weights.sum(axis=1, keepdims=True)


def _entropy(weights: NDArray) -> NDArray:
    return -(weights * np.log(np.maximum(weights, np.finfo(np.float64).tiny))).sum(axis=1, keepdims=True)
