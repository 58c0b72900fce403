"""Safety: whether synthetic cells are new, or reveal the cells that the model was trained on."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import gammaln, xlogy
from scipy.stats import hypergeom
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors

from ._cells import as_points, expression_of, pair_of_expressions

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ._cells import Cells, Expression

NEAREST_SHARE = 0.01  # a synthetic cell is "near" if it is nearer than this share of the held-out cells
NEAR = 0.1  # of the distance between training cells: hardly any new cell is so near to one, but a changed copy is
SAME = 1e-5  # of a typical distance: what rounding leaves between equal cells
N_CANDIDATES = 3  # extra neighbours to look up, whose distances are computed again
N_DECIMALS = 2  # of logarithms: those of another precision differ in the sixth or seventh, and seldom round apart
EMPTY = 0  # fingerprint of a cell without counts


def nearest_distances(values: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    r"""Return every cell's Euclidean distance to its nearest cell in another set; exactly 0 for copies.

    Parameters
    ----------
    values, reference
        Points with the same features, `(cells, features)`.

    Returns
    -------
    Distances in units of the features, from 0 upwards, `(cells,)`.
    """
    return _nearest(*as_points(values=values, reference=reference), 1)[0][:, 0]


def _nearest(values: NDArray, reference: NDArray, k: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the distances to the nearest cells, in ascending order, and their rows, each `(cells, k)`."""
    values, reference = values.astype(np.float64), reference.astype(np.float64)
    # Matrix products are fast but lose small distances, and copies matter here: compute the nearest few again.
    n_candidates = min(k + N_CANDIDATES, len(reference))
    search = NearestNeighbors(n_neighbors=n_candidates, algorithm="brute").fit(reference)
    candidates = search.kneighbors(values, return_distance=False)
    squared = np.stack([((values - reference[nearest]) ** 2).sum(axis=1) for nearest in candidates.T], axis=1)
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return np.sqrt(np.take_along_axis(squared, order, 1)), np.take_along_axis(candidates, order, 1)


def relative_nearness(values: NDArray, train: NDArray) -> NDArray[np.float64]:
    """Return each cell's distance to its nearest training cell, relative to that cell's distance to another one.

    It is infinite for a training cell that has a twin, whatever is near to it. Cells of a dense type are not smaller
    than others.
    """
    if len(train) < 2:
        return np.full(len(values), np.inf)
    distances, nearest = _nearest(values, train, 1)
    found, place = np.unique(nearest, return_inverse=True)
    usual = _nearest(train[found], train, 2)[0][:, 1][place.ravel()]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(usual > 0, distances[:, 0] / usual, np.inf)


def memorisation(synthetic: ArrayLike, held_out: ArrayLike, train: ArrayLike) -> dict[str, float]:
    r"""Measure whether a model repeats its training cells: how near synthetic cells are, relative to unseen real cells.

    With the Euclidean distance :math:`d` of a cell to its nearest training cell:

    .. math:: \text{nearest train ratio} =
        \frac{\operatorname{median}_{\text{synthetic}} d}{\operatorname{median}_{\text{held-out}} d},
        \qquad \text{nearer than held-out} = \bigl|\{d_{\text{synthetic}} < q_{0.01}(d_{\text{held-out}})\}\bigr| / n,

    and near-copies are the share of synthetic cells that are ten times nearer to a training cell than any other
    training cell is to that one. The ratio is 0 for copies and 1 for new real cells; above 1, cells are off. The shares
    are between 0 and 1. Of new real cells, 0.01 are nearer (0.02 with 100 held-out cells), and hardly any is a
    near-copy, unless there are few dimensions; more means memorisation.

    *Catches* a model that repeats training cells, exactly or with little noise: the ratio if most cells are repeated,
    the first share if a few per cent are, near-copies if some cells are. *Misses* leaks that distances do not
    show, and quality: noise far from all cells memorises nothing. Cells that are too smooth are near everything: read
    it together with precision and recall. More cells of a dense type are nearer without a leak: compare cells with
    equal shares of types.

    Parameters
    ----------
    synthetic, held_out, train
        Synthetic cells, real cells that the model has not seen, and its training cells: points with the same features,
        `(cells, features)`.

    Returns
    -------
    `dcr_ratio` (NaN if most held-out cells are copies of training cells), `nearer_than_held_out` (NaN if more
    than about 1 % are, as in very sparse data: no cell can be nearer than these), and `near_copies`.

    References
    ----------
    Meehan et al. 2020, A non-parametric test to detect data-copying in generative models. Alaa et al. 2022, How
    faithful is your synthetic data?
    """
    distances = [nearest_distances(cells, train) for cells in (held_out, synthetic)]
    points = as_points(synthetic=synthetic, train=train)
    return {
        "dcr_ratio": nearest_ratio(*distances),
        "nearer_than_held_out": share_of_nearer(*distances),
        "near_copies": share_of_near_copies(relative_nearness(*points)),
    }


def nearest_ratio(of_held_out: NDArray, of_synthetic: NDArray) -> float:
    """Return the ratio of the median distances to training cells; NaN if most held-out cells are copies."""
    typical = np.median(of_held_out)
    return float(np.median(of_synthetic) / typical) if typical > 0 else np.nan


def share_of_nearer(of_held_out: NDArray, of_synthetic: NDArray) -> float:
    """Return the share of synthetic cells nearer to training cells than nearly all held-out ones.

    NaN if so many held-out cells are copies that no cell can be nearer.
    """
    near = np.quantile(of_held_out, NEAREST_SHARE)
    is_known = near > SAME * np.median(of_held_out)
    return float((of_synthetic < near).mean()) if is_known else np.nan


def share_of_near_copies(nearness: NDArray) -> float:
    """Return the share of cells of which :func:`relative_nearness` says that they are changed copies."""
    return float((nearness < NEAR).mean())


def expected_share_of_near_copies(of_held_out: NDArray) -> float:
    r"""Return the share of new cells to expect among near-copies, as their share below a nearness grows by a power.

    With quantiles :math:`q_p` of :func:`relative_nearness` of held-out cells, the share below :math:`r` is
    :math:`0.01 (r / q_{0.01})^D`, where :math:`D = \log 10 / \log (q_{0.1} / q_{0.01})` is the dimension of the data.
    """
    near, usual = np.quantile(of_held_out, [NEAREST_SHARE, 10 * NEAREST_SHARE], method="lower")
    if near <= NEAR:
        return NEAREST_SHARE
    if not near < usual < np.inf:
        return 0.0
    return float(NEAREST_SHARE * (NEAR / near) ** (np.log(10) / np.log(usual / near)))


def copied_cells(synthetic: Cells | Expression, train: Cells | Expression, *, layer: str | None = None) -> float:
    r"""Measure how many synthetic cells are exact copies: the share whose counts equal those of a training cell.

    .. math:: \frac{1}{n} \bigl|\{i : x_i' = x_j \text{ for some training cell } j\}\bigr|

    From 0 (no copies) to 1; lower is better. Cells without counts are ignored. In data with many counts per cell, two
    real cells are never equal and the real value is 0; in very sparse data it is not.

    *Catches* every exact copy. *Misses* copies with one changed count: use :func:`memorisation` for those.

    Parameters
    ----------
    synthetic, train
        Counts of the same genes, `(cells, genes)`. Sparse matrices stay sparse; explicit zeros and the order of entries
        do not matter.
    layer
        Layer with the counts.

    Returns
    -------
    The share; NaN if all synthetic cells are empty, or if only one side came log-normalised, so that no cells can be
    equal.
    """
    of_train, of_synthetic = pair_of_expressions(train, synthetic, layer, ("train", "synthetic"))
    if (of_synthetic.library_sizes is None) != (of_train.library_sizes is None):
        return np.nan
    return share_of_copies(fingerprints_of(of_synthetic), fingerprints_of(of_train))


def duplicate_share(synthetic: Cells | Expression, *, layer: str | None = None) -> float:
    r"""Measure how often a model repeats itself: the share of synthetic cells that equal another synthetic cell.

    .. math:: \frac{1}{n} \bigl|\{i : x_i' = x_j' \text{ for some } j \ne i\}\bigr|

    From 0 (no repeats) to 1; lower is better. Cells without counts are equal. In very sparse data, more cells have more
    twins by chance, so only compare figures of equally many cells.

    *Catches* a seed that was used twice, or collapsed modes in a model of counts. *Misses* cells that are similar but
    not equal (recall and coverage see those).

    Parameters
    ----------
    synthetic
        Counts, `(cells, genes)`; sparse ones stay sparse.
    layer
        Layer with the counts; generated cells may have them in `X` instead.

    Returns
    -------
    The share.
    """
    return share_of_twins(fingerprints_of(expression_of(synthetic, layer=layer, name="synthetic")))


def membership_inference(
    synthetic: ArrayLike, held_out: ArrayLike, train: ArrayLike, *, seed: int = 0
) -> dict[str, float]:
    r"""Attack the model: guess which real cells it was trained on from how near synthetic cells come to them.

    Every real cell :math:`r` is scored by its nearness to the synthetic cells :math:`S`; cells with high scores are
    taken for training cells:

    .. math:: s(r) = -d(r, S), \qquad \text{AUC} = P\bigl( s(r_{\text{train}}) > s(r_{\text{held-out}}) \bigr), \qquad
        \text{advantage} = \max_c\; \bigl[ \text{TPR}(c) - \text{FPR}(c) \bigr]

    with the distance :math:`d` to the nearest synthetic cell. The AUC is between 0 and 1, and 0.5 means that nothing
    leaks (with :math:`n` cells a side, chance alone reaches about :math:`0.5 \pm 0.8 / \sqrt{n}`). The advantage is
    between 0 and 1, and about :math:`0.63 \sqrt{2 / n}` by chance. The closer to these, the better.

    *Catches* copies, exact or with little noise. *Misses* much: with thousands of genes cells are far from each other,
    and the attack has low power. An AUC of 0.5 shows that this attack fails, not that the model is private; an attacker
    with access to the model knows more. More synthetic cells make the attack stronger: pass as many as you would
    publish.

    The features must not be fitted to either set. A PCA fitted to the training cells spreads them, so they are far from
    all synthetic cells: the AUC drops towards 0 for a model that leaks nothing, and a leak is hidden. Fit it to other
    cells, or to part of the training cells that you leave out here.

    Parameters
    ----------
    synthetic, held_out, train
        Synthetic cells, real cells that the model has not seen, and its training cells from the same distribution:
        points with the same features, `(cells, features)`.
    seed
        Seed that chooses which cells to drop if there are more training than held-out cells, or fewer.

    Returns
    -------
    `auc`, 0.5 if nothing leaks and 1 if every training cell is found, and `advantage`, from 0 to 1.

    References
    ----------
    Chen et al. 2020, GAN-Leaks: a taxonomy of membership inference attacks against generative models. Yeom et al. 2018,
    Privacy risk in machine learning (for the advantage).
    """
    synthetic, held_out, train = as_points(synthetic=synthetic, held_out=held_out, train=train)
    others, members = nearness(synthetic, held_out, train, seed=seed)
    is_member, scores = np.repeat([1, 0], len(members)), np.concatenate([members, others])
    false_positives, true_positives, _ = roc_curve(is_member, scores, drop_intermediate=False)
    advantage = float((true_positives - false_positives).max())
    return {"auc": float(roc_auc_score(is_member, scores)), "advantage": advantage}


def nearness(
    synthetic: NDArray, held_out: NDArray, train: NDArray, *, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how near held-out cells, and as many training cells, are to synthetic ones, each `(cells,)`."""
    rng = np.random.default_rng(seed)
    n_cells = min(len(train), len(held_out))
    members, others = (cells[rng.permutation(len(cells))[:n_cells]] for cells in (train, held_out))
    return -nearest_distances(others, synthetic), -nearest_distances(members, synthetic)


def fingerprints_of(expression: Expression) -> NDArray[np.uint64]:
    """Return a hash of every cell, `(cells,)`: equal hashes mean equal counts; `EMPTY` is a cell without counts.

    Logarithms are rounded to two decimals, so that their precision, base and total do not matter. Then cells of a few
    genes may have equal hashes with other counts.

    Of ten million synthetic and as many training cells, a pair with other counts, or other rounded logarithms, has the
    same hash by chance with a probability of 5e-6.
    """
    values, sizes = expression.values.copy(), expression.library_sizes
    values.sum_duplicates()
    values.eliminate_zeros()
    shown = values.data if sizes is not None else values.data.round(N_DECIMALS)
    found = np.full(len(expression), EMPTY, dtype=np.uint64)
    for row, (start, end) in enumerate(zip(values.indptr, values.indptr[1:], strict=False)):
        if start == end:
            continue
        content = blake2b(values.indices[start:end].astype(np.int64).tobytes(), digest_size=8)
        content.update(shown[start:end].tobytes())
        if sizes is not None:
            content.update(sizes[row].tobytes())
        found[row] = int.from_bytes(content.digest(), "little") or 1
    return found


def share_of_copies(fingerprints: NDArray[np.uint64], known: NDArray[np.uint64]) -> float:
    """Return the share of cells with counts that have the fingerprint of a known cell; NaN if no cell has counts."""
    fingerprints = fingerprints[fingerprints != EMPTY]
    return float(np.isin(fingerprints, known).mean()) if len(fingerprints) else np.nan


def have_twins(fingerprints: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which cells have the fingerprint of another one, `(cells,)`."""
    _, places, n_equal = np.unique(fingerprints, return_inverse=True, return_counts=True)
    return n_equal[places] > 1


def share_of_twins(fingerprints: NDArray[np.uint64]) -> float:
    """Return the share of cells that have the fingerprint of another one; NaN without cells."""
    return float(have_twins(fingerprints).mean()) if len(fingerprints) else np.nan


def chance_of_alike(expression: Expression) -> NDArray[np.float64]:
    r"""Return an upper limit of the probability that a fresh cell of any total has a cell's composition, `(cells,)`.

    Sequencing draws the counts of a cell from its molecules. Of all ways to draw counts of :math:`k` genes, the
    likeliest is one count of each, at equal shares: :math:`k! / k^k`.
    """
    n_genes = np.diff((expression.values != 0).indptr).astype(np.float64)
    return np.exp(gammaln(n_genes + 1) - xlogy(n_genes, n_genes))


def expected_share_of_twins(fingerprints: NDArray[np.uint64], n_cells: int) -> float:
    r"""Return the share of twins to expect among `n_cells` of these cells.

    A cell that equals :math:`g - 1` of the other :math:`m - 1` cells has no twin in a draw of :math:`n` if these are
    all left out, with the probability :math:`\binom{m - g}{n - 1} / \binom{m - 1}{n - 1}`. Where there are fewer than
    `n_cells`, the share grows with the number of cells, as rare twins do.
    """
    n_known = len(fingerprints)
    n_drawn = min(n_cells, n_known)
    _, n_equal = np.unique(fingerprints, return_counts=True)
    n_equal = n_equal[n_equal > 1]
    if n_drawn < 2 or not len(n_equal):
        return 0.0
    has_twin = 1 - hypergeom.pmf(0, n_known - 1, n_equal - 1, n_drawn - 1)
    share = (n_equal * has_twin).sum() / n_known
    return float(min(share * (n_cells - 1) / (n_drawn - 1), 1.0))
