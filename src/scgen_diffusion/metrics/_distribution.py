"""Distances between two sets of points, and how far each covers the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import ot
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from ._representation import USE_REP, Points, representation, two_representations

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Kernel widths as multiples of the median squared distance.
BANDWIDTH_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


class MMDTest(NamedTuple):
    """A squared maximum mean discrepancy, and how often chance alone gives one as large.

    Parameters
    ----------
    value
        The unbiased estimate, about 0 for equal distributions.
    p_value
        Share of permutations with a value at least as large, the data counted as one of them.
    """

    value: float
    p_value: float


class Neighbourhoods(NamedTuple):
    """How two sets lie in each other's nearest-neighbour balls.

    Parameters
    ----------
    precision
        Share of synthetic cells within some real cell's ball.
    recall
        Share of real cells within some synthetic cell's ball.
    density
        Number of real balls that a synthetic cell lies in, over `k`; 1 on average for equal distributions, more for crowding.
    coverage
        Share of real cells whose ball holds a synthetic cell.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def wasserstein_2(
    real: Points, synthetic: Points, *, max_cells: int = 5_000, seed: int = 0, use_rep: str = USE_REP
) -> float:
    r"""Return the exact 2-Wasserstein distance between two sets of equally weighted points.

    .. math:: W_2 = \left( \min_\pi \sum_{ij} \pi_{ij} \lVert x_i - y_j \rVert^2 \right)^{1/2}

    over the couplings :math:`\pi` of both sets, in the unit of the values, 0 for equal sets. It sees shifts, dropped and invented populations and
    wrong proportions. Its expectation for equal distributions is far above 0 and falls slowly with the number of cells
    (as :math:`n^{-1/d}`): compare only figures of equally many cells, beside their floor. In many dimensions cells that are too smooth score below the floor, since the
    centre is near everything: read it beside recall.

    Parameters
    ----------
    real, synthetic
        Points `(cells, features)`, or AnnData.
    max_cells
        Of a larger set, this many cells are drawn: time grows with the cube of it, memory with the square.
    seed
        Decides which cells are drawn.
    use_rep
        Entry of `obsm`, for AnnData.

    References
    ----------
    Flamary et al. 2021, POT: Python Optimal Transport.

    Examples
    --------
    >>> wasserstein_2([[0.0, 0.0], [1.0, 0.0]], [[4.0, 4.0], [3.0, 4.0]])
    5.0
    """
    x, y = two_representations(real, synthetic, use_rep)
    rng = np.random.default_rng(seed)
    x, y = _at_most(x, max_cells, rng), _at_most(y, max_cells, rng)
    return float(np.sqrt(ot.emd2([], [], squared_distances(x, y), numItermax=1_000_000)))


def sliced_wasserstein_2(
    real: Points, synthetic: Points, *, n_projections: int = 200, seed: int = 0, use_rep: str = USE_REP
) -> float:
    r"""Return the 2-Wasserstein distance of projections on lines, averaged over random lines: for large sets.

    .. math:: SW_2 = \left( \frac{1}{L} \sum_{l=1}^{L} W_2^2(\theta_l^\top x, \theta_l^\top y) \right)^{1/2}, \quad \lVert \theta_l \rVert = 1

    In the unit of the values, 0 for equal sets; two sets that differ by a shift :math:`v` in :math:`d` dimensions have
    :math:`\lVert v \rVert / \sqrt d`. It takes `n log n` and depends less on the number of cells than :func:`wasserstein_2`, but is blunt where sets
    differ in few of many directions. Lines are drawn in orthonormal sets, which spreads them evenly.

    Parameters
    ----------
    real, synthetic
        Points `(cells, features)`, or AnnData.
    n_projections
        Number of lines.
    seed
        Decides the lines.
    use_rep
        Entry of `obsm`, for AnnData.
    """
    x, y = two_representations(real, synthetic, use_rep)
    directions = _orthonormal_directions(x.shape[1], n_projections, np.random.default_rng(seed))
    x, y = x.astype(np.float64), y.astype(np.float64)
    return float(ot.sliced_wasserstein_distance(x, y, projections=directions, p=2))


def median_squared_distance(values: Points, *, use_rep: str = USE_REP) -> float:
    """Return the median squared distance between different points: the unit of the kernel widths of :func:`squared_mmd`."""
    values = representation(values, use_rep, "values")
    squared = pairwise_distances(values.astype(np.float64), metric="sqeuclidean")
    return float(np.median(squared[np.triu_indices(len(values), 1)]))


def squared_mmd(
    real: Points, synthetic: Points, *, squared_scale: float | None = None, use_rep: str = USE_REP
) -> float:
    r"""Return the unbiased squared maximum mean discrepancy, averaged over five Gaussian kernels.

    .. math:: \frac{\sum_{i \ne j} k(x_i, x_j)}{m (m - 1)} + \frac{\sum_{i \ne j} k(y_i, y_j)}{n (n - 1)} - \frac{2}{mn} \sum_{ij} k(x_i, y_j),
       \quad k(x, y) = \operatorname{mean}_c \exp \frac{-\lVert x - y \rVert^2}{c s},\ c \in \{1/4, 1/2, 1, 2, 4\}

    About 0, and as often below as above, for equal distributions, at most 2. Its expectation does not depend on the number of cells. It sees
    shifts and wrong proportions; of small populations and of fine structure well below the kernels' width it sees little.

    Parameters
    ----------
    real, synthetic
        Points `(cells, features)`, two or more, or AnnData.
    squared_scale
        Unit `s` of the kernel widths, a squared distance; the median one between real points if None. Take the same one for every comparison that
        will be set side by side.
    use_rep
        Entry of `obsm`, for AnnData.

    References
    ----------
    Gretton et al. 2012, A kernel two-sample test.
    """
    x, y = two_representations(real, synthetic, use_rep)
    _check_at_least(2, real=x, synthetic=y)
    scale = median_squared_distance(x) if squared_scale is None else squared_scale
    within_x, within_y = (_mean_off_diagonal(_kernel(values, values, scale)) for values in (x, y))
    return float(within_x + within_y - 2 * _kernel(x, y, scale).mean())


def mmd_test(
    real: Points,
    synthetic: Points,
    *,
    n_permutations: int = 200,
    squared_scale: float | None = None,
    seed: int = 0,
    use_rep: str = USE_REP,
) -> MMDTest:
    r"""Test whether two sets come from one distribution, by permuting which cell is synthetic.

    The p-value is `(1 + number of permutations with a value at least as large) / (1 + n_permutations)`: uniform for equal distributions, never below
    `1 / (1 + n_permutations)`. A small one says that a difference is there, not that it matters; it falls with the number of cells.

    Parameters
    ----------
    real, synthetic
        Points `(cells, features)`, two or more, or AnnData. Memory grows with the square of their number.
    n_permutations
        Number of permutations.
    squared_scale
        As in :func:`squared_mmd`.
    seed
        Decides the permutations.
    use_rep
        Entry of `obsm`, for AnnData.

    Returns
    -------
    :func:`squared_mmd` and its p-value.
    """
    x, y = two_representations(real, synthetic, use_rep)
    _check_at_least(2, real=x, synthetic=y)
    scale = median_squared_distance(x) if squared_scale is None else squared_scale
    pooled = np.concatenate([x, y])
    kernel = _kernel(pooled, pooled, scale)
    np.fill_diagonal(kernel, 0)
    rng = np.random.default_rng(seed)
    is_real = np.repeat([1.0, 0.0], [len(x), len(y)])
    assignments = np.stack([is_real, *(rng.permutation(is_real) for _ in range(n_permutations))], axis=1)
    values = _mmd_of_assignments(kernel, assignments)
    n_as_large = int((values[1:] >= values[0]).sum())
    return MMDTest(float(values[0]), (1 + n_as_large) / (1 + n_permutations))


def frechet_distance(real: Points, synthetic: Points, *, use_rep: str = USE_REP) -> float:
    r"""Return the 2-Wasserstein distance between Gaussians with both sets' means and covariances.

    .. math:: \left( \lVert \mu_x - \mu_y \rVert^2 + \operatorname{tr}\left( \Sigma_x + \Sigma_y - 2 (\Sigma_x^{1/2} \Sigma_y \Sigma_x^{1/2})^{1/2} \right) \right)^{1/2}

    In the unit of the values, 0 for equal moments; the Fréchet distances of images (FID) are its square. It never exceeds :func:`wasserstein_2` by
    more than sampling noise. It sees means, spreads and correlations; whatever leaves the two moments as they are (shuffled cell types, filled gaps between
    clusters) it misses. Overestimated for fewer cells than features.

    Parameters
    ----------
    real, synthetic
        Points `(cells, features)`, two or more, or AnnData.
    use_rep
        Entry of `obsm`, for AnnData.

    References
    ----------
    Dowson and Landau 1982, The Fréchet distance between multivariate normal distributions.
    """
    x, y = two_representations(real, synthetic, use_rep)
    _check_at_least(2, real=x, synthetic=y)
    x, y = x.astype(np.float64), y.astype(np.float64)
    covariance_x, covariance_y = (np.atleast_2d(np.cov(values, rowvar=False)) for values in (x, y))
    root = _symmetric_root(covariance_x)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance_y @ root), 0)).sum()
    shift = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    return float(np.sqrt(max(shift + np.trace(covariance_x) + np.trace(covariance_y) - 2 * cross, 0)))


def precision_recall_density_coverage(
    real: Points, synthetic: Points, *, k: int = 5, use_rep: str = USE_REP
) -> Neighbourhoods:
    """Return how two sets lie in the balls that reach from each cell to its `k`-th nearest neighbour in its own set.

    Precision falls where cells lie outside the real ones, recall and coverage where real populations are left out, density where cells are
    scattered, and it rises where they crowd. All are about as large for equal distributions as their floor, which is below 1 and depends on the number
    of cells and features. They see neither proportions (one cell covers a ball as well as ten) nor, recall and precision, single outliers in the reference, whose
    balls are large.

    Parameters
    ----------
    real, synthetic
        Points `(cells, features)`, more than `k`, or AnnData.
    k
        Number of neighbours, the point itself not counted.
    use_rep
        Entry of `obsm`, for AnnData.

    References
    ----------
    Kynkäänniemi et al. 2019, Improved precision and recall metric for assessing generative models; Naeem et al. 2020, Reliable
    fidelity and diversity metrics for generative models.

    Examples
    --------
    >>> line = np.arange(10.0)[:, None]
    >>> precision_recall_density_coverage(line, line[:5] + 0.25, k=1)
    Neighbourhoods(precision=1.0, recall=0.6, density=2.0, coverage=0.6)
    """
    x, y = two_representations(real, synthetic, use_rep)
    _check_at_least(k + 1, real=x, synthetic=y)
    between = pairwise_distances(x, y)
    in_real_ball = between <= _ball_radius(x, k)[:, None]
    in_synthetic_ball = between <= _ball_radius(y, k)[None, :]
    return Neighbourhoods(
        precision=float(in_real_ball.any(axis=0).mean()),
        recall=float(in_synthetic_ball.any(axis=1).mean()),
        density=float(in_real_ball.sum() / (k * len(y))),
        coverage=float(in_real_ball.any(axis=1).mean()),
    )


def squared_distances(x: NDArray, y: NDArray) -> NDArray[np.float64]:
    """Return the squared Euclidean distances, `(cells of x, cells of y)`."""
    return pairwise_distances(x.astype(np.float64), y.astype(np.float64), "sqeuclidean")


def _at_most(values: NDArray, max_cells: int, rng: np.random.Generator) -> NDArray:
    return values if len(values) <= max_cells else values[np.sort(rng.choice(len(values), max_cells, replace=False))]


def _orthonormal_directions(n_features: int, n_directions: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw unit vectors `(features, directions)`, each run of `n_features` of them orthonormal."""
    n_sets = -(-n_directions // n_features)
    rotations = np.linalg.qr(rng.standard_normal((n_sets, n_features, n_features)))[0]
    return np.concatenate(list(rotations), axis=1)[:, :n_directions]


def _kernel(x: NDArray, y: NDArray, squared_scale: float) -> NDArray[np.float64]:
    """Return the mean over Gaussian kernels; each width is half the next one, so that the narrower kernels are squares of the wider ones."""
    kernel = np.exp(squared_distances(x, y) / (-max(BANDWIDTH_FACTORS) * squared_scale))
    total = kernel.copy()
    for _ in BANDWIDTH_FACTORS[1:]:
        kernel *= kernel
        total += kernel
    return total / len(BANDWIDTH_FACTORS)


def _mean_off_diagonal(kernel: NDArray) -> float:
    return float((kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)))


def _mmd_of_assignments(kernel: NDArray, is_real: NDArray) -> NDArray[np.float64]:
    """Return the squared MMD for every column of 0/1 assignments `(cells, assignments)`; the kernel's diagonal is zero."""
    m = is_real[:, 0].sum()
    n = len(is_real) - m
    of_real = kernel @ is_real
    within_real = (of_real * is_real).sum(axis=0)
    between = of_real.sum(axis=0) - within_real
    within_synthetic = kernel.sum() - within_real - 2 * between
    return within_real / (m * (m - 1)) + within_synthetic / (n * (n - 1)) - 2 * between / (m * n)


def _symmetric_root(matrix: NDArray) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _ball_radius(values: NDArray, k: int) -> NDArray:
    distances, _ = NearestNeighbors(n_neighbors=k).fit(values).kneighbors()  # without the point itself
    return distances[:, -1]


def _check_at_least(n_cells: int, **sets: NDArray) -> None:
    for name, values in sets.items():
        if len(values) < n_cells:
            msg = f"`{name}` has {len(values)} cells; there must be {n_cells} or more."
            raise ValueError(msg)
