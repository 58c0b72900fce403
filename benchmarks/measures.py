"""How two sets of cells differ: pure functions on arrays, each with one definition.

Arrays called ``counts`` are raw counts ``(cells, genes)``, ``values`` are log-normalised or projected, ``(cells, features)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import ot
import scipy.sparse as sp
from scipy.stats import ks_2samp
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, pairwise_distances, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Kernel widths as multiples of the median squared distance.
BANDWIDTH_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def to_dense(counts: NDArray | sp.spmatrix | sp.sparray) -> NDArray:
    """Return a dense array."""
    return counts.toarray() if sp.issparse(counts) else np.asarray(counts)


def log_normalise(counts: NDArray | sp.spmatrix | sp.sparray, target_sum: float = 1e4) -> NDArray[np.float32]:
    """Scale every cell to ``target_sum`` counts and take ``log1p``; a cell without counts stays zero."""
    dense = to_dense(counts).astype(np.float64)
    totals = np.maximum(dense.sum(axis=1, keepdims=True), 1)
    return np.log1p(dense / totals * target_sum).astype(np.float32)


def wasserstein_2(a: NDArray, b: NDArray) -> float:
    """Return the exact 2-Wasserstein distance between two point clouds with uniform weights."""
    cost = pairwise_distances(a.astype(np.float64), b.astype(np.float64), "sqeuclidean")
    return float(np.sqrt(ot.emd2([], [], cost, numItermax=1_000_000)))


def median_squared_distance(values: NDArray) -> float:
    """Return the median squared distance between different rows: the unit of the kernel widths."""
    squared = pairwise_distances(values.astype(np.float64), metric="sqeuclidean")
    return float(np.median(squared[np.triu_indices(len(values), 1)]))


def squared_mmd(a: NDArray, b: NDArray, squared_scale: float) -> float:
    r"""Return the unbiased squared maximum mean discrepancy, averaged over RBF kernels.

    .. math:: \frac{\sum_{i \ne j} k(a_i, a_j)}{m (m - 1)} + \frac{\sum_{i \ne j} k(b_i, b_j)}{n (n - 1)} - \frac{2}{mn} \sum_{ij} k(a_i, b_j)

    Parameters
    ----------
    a, b
        Values, ``(cells, features)``.
    squared_scale
        Unit of the kernel widths, a squared distance. Take the same one for every comparison that will be set side by side.
    """
    within_a, within_b = (
        _mean_kernel(a, a, squared_scale, skip_self=True),
        _mean_kernel(b, b, squared_scale, skip_self=True),
    )
    return float(within_a + within_b - 2 * _mean_kernel(a, b, squared_scale, skip_self=False))


def _mean_kernel(a: NDArray, b: NDArray, squared_scale: float, *, skip_self: bool) -> float:
    squared = pairwise_distances(a.astype(np.float64), b.astype(np.float64), "sqeuclidean")
    kernel = np.mean([np.exp(-squared / (factor * squared_scale)) for factor in BANDWIDTH_FACTORS], axis=0)
    if not skip_self:
        return float(kernel.mean())
    return float((kernel.sum() - np.trace(kernel)) / (len(a) * (len(a) - 1)))


def two_sample_auc(a: NDArray, b: NDArray, seed: int = 0) -> float:
    """Return the cross-validated AUC with which gradient boosting tells ``b`` from ``a`` (0.5: it cannot)."""
    values, is_b = np.vstack([a, b]), np.repeat([0, 1], [len(a), len(b)])
    classifier = HistGradientBoostingClassifier(max_iter=100, max_leaf_nodes=15, random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    # boosting so few cells is thousands of tiny parallel regions: a second thread gains little, and on a busy machine costs tenfold
    with threadpool_limits(1, user_api="openmp"):
        probability = cross_val_predict(classifier, values, is_b, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(is_b, probability))


def precision_recall(real: NDArray, synthetic: NDArray, k: int = 5) -> tuple[float, float]:
    """Return the share of each set that lies in the ``k``-nearest-neighbour balls of the other.

    References
    ----------
    Kynkäänniemi et al. 2019, Improved precision and recall metric for assessing generative models.
    """
    between = pairwise_distances(real, synthetic)
    precision = (between <= _ball_radius(real, k)[:, None]).any(axis=0).mean()
    recall = (between <= _ball_radius(synthetic, k)[None, :]).any(axis=1).mean()
    return float(precision), float(recall)


def _ball_radius(values: NDArray, k: int) -> NDArray:
    distances, _ = NearestNeighbors(n_neighbors=k).fit(values).kneighbors()  # without the point itself
    return distances[:, -1]


def gene_profile_errors(real_counts: NDArray, synthetic_counts: NDArray) -> dict[str, float]:
    """Return mean absolute errors over genes: mean and variance of log-normalised values, share of zeros."""
    real, synthetic = log_normalise(real_counts), log_normalise(synthetic_counts)
    return {
        "gene_mean_error": float(np.abs(real.mean(0) - synthetic.mean(0)).mean()),
        "gene_variance_error": float(np.abs(real.var(0) - synthetic.var(0)).mean()),
        "gene_zero_error": float(np.abs((real_counts == 0).mean(0) - (synthetic_counts == 0).mean(0)).mean()),
    }


def library_size_ks(real_counts: NDArray, synthetic_counts: NDArray) -> float:
    """Return the Kolmogorov-Smirnov statistic between total counts."""
    return float(ks_2samp(real_counts.sum(1), synthetic_counts.sum(1)).statistic)


def within_label_correlations(values: NDArray, labels: NDArray) -> NDArray:
    """Return the gene-gene correlations left when every label's mean is taken away, ``(genes * (genes - 1) / 2,)``.

    A gene that does not vary has correlation 0 with every other.
    """
    residuals = values.astype(np.float64)
    for label in np.unique(labels):
        residuals[labels == label] -= residuals[labels == label].mean(axis=0)
    norms = np.linalg.norm(residuals, axis=0)
    residuals /= np.where(norms > 1e-8, norms, np.inf)
    return (residuals.T @ residuals)[np.triu_indices(values.shape[1], 1)]


def correlation(a: NDArray, b: NDArray) -> float:
    """Return Pearson's correlation, 0 where one side is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def per_label_mmd(
    real: NDArray, real_labels: NDArray, synthetic: NDArray, synthetic_labels: NDArray, min_cells: int = 30
) -> float:
    """Return the mean of :func:`squared_mmd` over labels with at least ``min_cells`` real cells.

    The kernel's scale is that of the label's real cells. A label with fewer than two synthetic cells is left out.
    """
    names, sizes = np.unique(real_labels, return_counts=True)
    distances = []
    for label in names[sizes >= min_cells]:
        a, b = real[real_labels == label], synthetic[synthetic_labels == label]
        if len(b) >= 2:
            distances.append(squared_mmd(a, b, median_squared_distance(a)))
    return float(np.mean(distances)) if distances else float("nan")


def transfer_f1(train: NDArray, train_labels: NDArray, test: NDArray, test_labels: NDArray) -> float:
    """Return macro F1, over the labels of ``test``, of a logistic regression fitted on ``train``."""
    if len(np.unique(train_labels)) < 2:
        return float("nan")
    classifier = LogisticRegression(max_iter=2_000, C=0.1).fit(train.astype(np.float64), train_labels)
    predicted = classifier.predict(test.astype(np.float64))
    return float(f1_score(test_labels, predicted, labels=np.unique(test_labels), average="macro", zero_division=0))


def nearest_distance(values: NDArray, reference: NDArray) -> NDArray:
    """Return every row's distance to the nearest row of ``reference``."""
    # brute force through matrix products loses small distances, and copies are what is looked for
    return NearestNeighbors(n_neighbors=1, algorithm="kd_tree").fit(reference).kneighbors(values)[0].ravel()


def memorisation(synthetic: NDArray, held_out: NDArray, train: NDArray) -> dict[str, float]:
    """Return how near synthetic cells are to training cells, measured by how near unseen real cells are.

    Returns
    -------
    ``nearest_train_ratio``
        Median distance to the nearest training cell, synthetic over held-out: 1 is what new real cells have.
    ``nearer_than_held_out``
        Share of synthetic cells nearer to a training cell than the nearest 1 % of held-out cells are: 0.01 is what new real cells have.
    """
    of_synthetic, of_held_out = nearest_distance(synthetic, train), nearest_distance(held_out, train)
    return {
        "nearest_train_ratio": float(np.median(of_synthetic) / np.median(of_held_out)),
        "nearer_than_held_out": float((of_synthetic < np.quantile(of_held_out, 0.01)).mean()),
    }
