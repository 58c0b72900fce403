"""The metrics of the table, one entry each."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._comparison import MIN_CELLS_PER_LABEL, UNLIKELY, Metric, Share
from ._distribution import (
    Classifier,
    Scores,
    auc_of_scores,
    classifier_scores,
    ilisi,
    precision_recall_density_coverage,
    squared_mmd,
    wasserstein_2,
)
from ._genes import (
    compare_markers,
    correlation,
    count_labels,
    gene_correlation_similarity,
    gene_correlation_slope,
    gene_profile_errors,
    group_differences,
    library_size_ks,
    mean_variance_error,
)
from ._perturbation import (
    Effect,
    de_direction,
    de_jaccard,
    de_overlap,
    mean_change_correlation,
    mean_change_debiased_error,
    mean_change_error,
    mean_change_slope,
    predicted_effect,
    variance_error,
)
from ._safety import (
    EMPTY,
    copied_cells,
    duplicate_share,
    expected_share_of_near_copies,
    expected_share_of_twins,
    fingerprints_of,
    have_twins,
    nearest_distances,
    nearest_ratio,
    nearness,
    relative_nearness,
    share_of_copies,
    share_of_near_copies,
    share_of_nearer,
    share_of_twins,
)
from ._use import label_fidelity, transfer_f1

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from ._comparison import AllCells, Better, Comparison, Need, Scope

SHARE = (0.0, 1.0)
POSITIVE = (0.0, np.inf)
SIGNED = (-np.inf, np.inf)
CORRELATION = (-1.0, 1.0)

GROUPS: tuple[Scope, ...] = ("all", "group")
JOINT: tuple[Scope, ...] = ("all", "joint")
GROUPS_JOINT: tuple[Scope, ...] = ("all", "group", "joint")

PERPLEXITY = 30
N_CORRELATED_GENES = 100
#: With fewer features, 50 markers are nearly all of them, and variances show no trend along the means.
FEW_FEATURES = 100
N_TOP = (20, 100)
#: Half-samples keep the scores of classifiers that saw all cells. Trained on other cells they would score otherwise, so
#: the standard deviation of the AUC between draws of cells is larger. Measured on simulated cells, 60 draws of 200
#: cells on each side: 1.3 (neighbours) to 1.7 times (logistic), for a perfect and for a bad generator.
WIDENING_OF_CLASSIFIERS = 1.6
#: So few held-out cells in `train` harm nobody: nearness is judged by the 1 % of them that lie nearest.
FEW_LEAKED = 0.005


# --- measures that do not fit into a lambda ---------------------------------------------------------------------------


def _energy_distance(comparison: Comparison) -> float:
    """Return :func:`energy_distance`; many comparisons share a side, whose spread is computed once."""
    real, synthetic = comparison.real, comparison.synthetic
    return 2 * real.distance(synthetic) - real.spread - synthetic.spread


def _wasserstein_2(comparison: Comparison) -> float:
    sides = comparison.real.pcs, comparison.synthetic.pcs
    return wasserstein_2(*sides, max_cells=len(sides[0]))  # as many as are compared by other metrics


def _on_expression(function: Callable[..., float]) -> Callable[[Comparison], float]:
    return lambda comparison: function(comparison.real.expression, comparison.synthetic.expression)


def _neighbourhoods(comparison: Comparison) -> Mapping[str, float]:
    return precision_recall_density_coverage(comparison.real.pcs, comparison.synthetic.pcs)._asdict()


def _ilisi(comparison: Comparison) -> float:
    n_cells = len(comparison.real) + len(comparison.synthetic)
    return ilisi(comparison.real.pcs, comparison.synthetic.pcs, perplexity=min(PERPLEXITY, (n_cells - 1) // 3))


def _scores_in_pcs(classifier: Classifier, comparison: Comparison) -> Scores:
    return classifier_scores(comparison.real.pcs, comparison.synthetic.pcs, classifier=classifier, seed=comparison.seed)


def _scores_in_genes(comparison: Comparison) -> Scores:
    return classifier_scores(*comparison.gene_values(), classifier="quick_boosting", seed=comparison.seed)


def _profile_errors(comparison: Comparison) -> Mapping[str, float]:
    return gene_profile_errors(comparison.real.expression, comparison.synthetic.expression)


def _correlated_values(comparison: Comparison) -> list[NDArray[np.float32]]:
    return comparison.gene_values(N_CORRELATED_GENES)


def _on_correlated_genes(function: Callable[..., float]) -> Callable[[Comparison], float]:
    def measure(comparison: Comparison) -> float:
        values = comparison.once(_correlated_values)
        return function(*values, comparison.real.labels, comparison.synthetic.labels)

    return measure


def _label_sizes(comparison: Comparison) -> list[pd.Series]:
    """Return the number of cells of each label on both sides."""
    return [count_labels(side.with_rare().labels) for side in (comparison.real, comparison.synthetic)]


def _marker_table(comparison: Comparison) -> pd.DataFrame:
    sizes_of_sides = (comparison.whole or comparison).once(_label_sizes)
    sides = []
    for side, sizes in zip((comparison.real, comparison.synthetic), sizes_of_sides, strict=True):
        cells = side.with_rare()
        sides.append(group_differences(cells.expression, cells.labels, sizes=sizes, n_of_all=len(side)))
    return compare_markers(*sides)


def _mean_over_labels(table: pd.DataFrame, column: str) -> float:
    """Return the mean over labels; NaN if it is unknown for a label that is missing: the rest would look perfect."""
    is_unknown = table.loc[table["n_synthetic"] == 0, column].isna().any()
    return float("nan") if is_unknown else float(table[column].mean())


def _share_differences(comparison: Comparison) -> Mapping[str, float]:
    shares = []
    for side in (comparison.real, comparison.synthetic):
        sizes = pd.Series(side.labels).value_counts()
        sizes = sizes if side.further is None else sizes.add(side.further.sizes, fill_value=0)
        shares.append(sizes / sizes.sum())
    return shares[0].sub(shares[1], fill_value=0).abs().to_dict()


def _total_variation(comparison: Comparison) -> float:
    return sum(comparison.once(_share_differences).values()) / 2


def _transfer_f1(comparison: Comparison) -> float:
    real, synthetic = comparison.real, comparison.synthetic
    return transfer_f1(synthetic.pcs, synthetic.labels, real.pcs, real.labels)


def _label_fidelity(comparison: Comparison) -> float:
    real, synthetic = comparison.real, comparison.synthetic
    return label_fidelity(real.pcs, real.labels, synthetic.pcs, synthetic.labels)


def _mmd_per_label(comparison: Comparison) -> float:
    real, synthetic = comparison.real.with_rare(), comparison.synthetic.with_rare()
    sizes, _ = (comparison.whole or comparison).once(_label_sizes)
    pairs = [
        (real.pcs[real.labels == name], synthetic.pcs[synthetic.labels == name])
        for name in sizes.index[sizes >= MIN_CELLS_PER_LABEL]
    ]
    if not pairs or min(len(side) for pair in pairs for side in pair) < 2:  # a mean of the rest would look perfect
        return float("nan")
    return float(np.mean([squared_mmd(*sides) for sides in pairs]))


def _distances_to_training(comparison: Comparison) -> Scores:
    train = comparison.training.pcs
    return Scores(*(nearest_distances(side.pcs, train) for side in (comparison.real, comparison.synthetic)))


def _copied_cells(comparison: Comparison) -> float:
    return share_of_copies(fingerprints_of(comparison.synthetic.expression), comparison.training.fingerprints)


def _copies(cells: NDArray[np.uint64], known: NDArray[np.uint64]) -> Share:
    return Share(share_of_copies(cells, known), np.count_nonzero(cells != EMPTY))


def _twins(cells: NDArray[np.uint64]) -> Share:
    # an equal pair counts twice, so that the share is as certain as one of half the cells
    return Share(share_of_twins(cells), len(cells) / 2)


def _explained(cells: AllCells, is_equal: NDArray[np.bool_], n_others: int) -> Share:
    """Return which share of equal synthetic cells chance can explain at most: cells of few counts."""
    expected = cells.chance * len(cells.synthetic) * n_others
    return Share(float((is_equal & (expected > UNLIKELY)).mean()), np.inf)


def leaked_share(cells: AllCells) -> float:
    """Return which share of the held-out cells equal training cells beyond what chance explains; 0 for few."""
    expected = cells.chance_of_real * len(cells.real) * len(cells.train)
    share = float((np.isin(cells.real, cells.train) & (expected <= UNLIKELY)).mean())
    return share if share > FEW_LEAKED else 0.0


def _copied_of_all(cells: AllCells) -> tuple[Share, list[Share]]:
    if not cells.are_comparable:
        return Share(np.nan, 1), [Share(np.nan, 1)]
    # where few cells are held out, the training cells themselves tell how seldom two real cells are equal
    usual = [_copies(cells.real, cells.train), _twins(cells.train[cells.train != EMPTY])]
    usual.append(_explained(cells, np.isin(cells.synthetic, cells.train), len(cells.train)))
    return _copies(cells.synthetic, cells.train), usual


def _near_copies_of_all(cells: AllCells) -> tuple[Share, list[Share]]:
    nearness = cells.nearness()
    synthetic, real = (Share(share_of_near_copies(own), len(own)) for own in (nearness.synthetic, nearness.real))
    if real.value > 0:
        return synthetic, [real]
    expected, n_cells = expected_share_of_near_copies(nearness.usual), len(nearness.synthetic)
    is_unlikely = expected * n_cells <= UNLIKELY
    return synthetic, [real, Share(expected, np.inf if is_unlikely else n_cells)]


def _twins_of_all(cells: AllCells) -> tuple[Share, list[Share]]:
    others, n_cells = cells.real if cells.train is None else cells.train, len(cells.synthetic)
    # twins grow with the number of cells, which makes the share of few real cells less certain
    floor = Share(expected_share_of_twins(others, n_cells), len(others) ** 2 / (2 * n_cells))
    more = max(n_cells / len(others), 1.0)
    equal_to_real = Share(min(more * float(np.isin(cells.synthetic, others).mean()), 1.0), n_cells / more)
    explained = _explained(cells, have_twins(cells.synthetic), n_cells)
    return _twins(cells.synthetic), [floor, equal_to_real, explained]


def _copied_test_of_all(cells: AllCells) -> tuple[Share, list[Share]]:
    if not cells.are_comparable:
        return Share(np.nan, 1), [Share(np.nan, 1)]
    # without training cells, each real cell against all other ones
    usual = _twins(cells.real[cells.real != EMPTY]) if cells.train is None else _copies(cells.train, cells.real)
    explained = _explained(cells, np.isin(cells.synthetic, cells.real), len(cells.real))
    return _copies(cells.synthetic, cells.real), [usual, explained]


def _nearness(comparison: Comparison) -> Scores:
    """Return how near held-out cells ("real") and training cells ("synthetic") are to the cells released."""
    released = comparison.synthetic.pcs if comparison.released is None else comparison.released
    return Scores(*nearness(released, comparison.real.pcs, comparison.training.members, seed=comparison.seed))


def _effects(comparison: Comparison) -> tuple[Effect, Effect]:
    real, predicted, control = (side.moments for side in (comparison.real, comparison.synthetic, comparison.control))
    return Effect(real, control), predicted_effect(predicted, real, control)


def _specific_change_correlation(comparison: Comparison) -> float:
    if comparison.mean_response is None:  # no training perturbation has control cells
        return float("nan")
    reference = comparison.mean_response.moments.mean
    return correlation(*(side.moments.mean - reference for side in (comparison.real, comparison.synthetic)))


def _cross_correlations(comparison: Comparison) -> list[NDArray[np.float64]]:
    return [side.correlations().ravel() for side in (comparison.real, comparison.synthetic)]


# --- the entries ------------------------------------------------------------------------------------------------------


def _neighbourhood_metric(name: str, better: Better, bounds: tuple[float, float] = SHARE) -> Metric:
    return Metric(name, better, lambda c: c.once(_neighbourhoods)[name], scopes=GROUPS_JOINT, bounds=bounds)


def _score_metric(
    name: str,
    better: Better,
    scores: Callable[[Comparison], Scores],
    summary: Callable[[NDArray, NDArray], float],
    **options: object,
) -> Metric:
    return Metric(name, better, lambda comparison: summary(*comparison.scores(scores)), **options)


def _auc_metric(name: str, scores: Callable[[Comparison], Scores], **options: object) -> Metric:
    return _score_metric(name, "lower", scores, auc_of_scores, bounds=SHARE, **options)


def _classifier_metric(name: str, scores: Callable[[Comparison], Scores], **options: object) -> Metric:
    return _auc_metric(name, scores, widening=WIDENING_OF_CLASSIFIERS, **options)


def _gene_metric(name: str, bounds: tuple[float, float] = POSITIVE) -> Metric:
    return Metric(name, "lower", lambda c: c.once(_profile_errors)[name], scopes=GROUPS, bounds=bounds)


def _marker_metric(name: str, column: str, better: Better, **options: object) -> Metric:
    measure = lambda comparison: _mean_over_labels(comparison.once(_marker_table), column)
    by_group = lambda comparison: comparison.once(_marker_table)[column].to_dict()
    return Metric(name, better, measure, ("groups",), by_group=by_group, **options)


def _effect_metric(
    name: str,
    better: Better,
    function: Callable[..., float],
    n_top: int | None = None,
    bounds: tuple[float, float] = POSITIVE,
) -> Metric:
    options = {} if n_top is None else {"n_top": n_top}
    measure = lambda comparison: function(*comparison.once(_effects), **options)
    name = name if n_top is None else f"{name}_top_{n_top}"
    # with fewer genes, the top ones are most of all genes, and overlap whatever the cells are
    scopes: tuple[Scope, ...] = ("perturbation",)
    return Metric(name, better, measure, ("control",), scopes, bounds=bounds, min_features=2 * (n_top or 0))


def _cross_metric(
    name: str, better: Better, function: Callable[[NDArray, NDArray], float], bounds: tuple[float, float] = POSITIVE
) -> Metric:
    measure = lambda comparison: function(*comparison.once(_cross_correlations))
    return Metric(name, better, measure, ("modalities",), scopes=("pair",), bounds=bounds)


TRAIN: tuple[Need, ...] = ("train",)

_ENTRIES = (
    # distribution
    Metric("energy_distance", "lower", _energy_distance, ("control",), scopes=("perturbation",), bounds=SIGNED),
    Metric("w2", "lower", _wasserstein_2, scopes=GROUPS_JOINT),
    Metric(
        "mmd2",
        "lower",
        lambda c: squared_mmd(c.real.pcs, c.synthetic.pcs, squared_scale=c.squared_scale),
        scopes=GROUPS_JOINT,
        bounds=SIGNED,
    ),
    _neighbourhood_metric("precision", "higher"),
    _neighbourhood_metric("recall", "higher"),
    _neighbourhood_metric("density", "floor", POSITIVE),
    _neighbourhood_metric("coverage", "higher"),
    # classifiers that separate synthetic from real cells
    _classifier_metric("auc_boosting", partial(_scores_in_pcs, "boosting"), scopes=JOINT, slow=True),
    _classifier_metric("auc_logistic", partial(_scores_in_pcs, "logistic"), scopes=GROUPS),
    _classifier_metric("auc_neighbours", partial(_scores_in_pcs, "neighbours"), scopes=GROUPS_JOINT),
    _classifier_metric("auc_genes", _scores_in_genes, slow=True),
    Metric("ilisi", "higher", _ilisi, scopes=GROUPS, bounds=SHARE),
    # genes
    _gene_metric("gene_mean_error"),
    _gene_metric("gene_variance_error"),
    _gene_metric("gene_zero_error", SHARE),
    Metric(
        "mean_variance_error", "lower", _on_expression(mean_variance_error), scopes=GROUPS, min_features=FEW_FEATURES
    ),
    Metric(
        "within_label_correlation",
        "higher",
        _on_correlated_genes(gene_correlation_similarity),
        scopes=GROUPS,
        bounds=CORRELATION,
    ),
    Metric("within_label_slope", "floor", _on_correlated_genes(gene_correlation_slope), scopes=GROUPS, bounds=SIGNED),
    Metric("library_size_ks", "lower", _on_expression(library_size_ks), ("counts",), scopes=GROUPS, bounds=SHARE),
    # labels
    Metric(
        "group_share_difference",
        "lower",
        _total_variation,
        ("groups",),
        by_group=_share_differences,
        absent=0.0,
        bounds=SHARE,
    ),
    _marker_metric("marker_overlap", "overlap", "higher", bounds=SHARE, min_features=FEW_FEATURES),
    _marker_metric("marker_slope", "slope", "floor", bounds=SIGNED),
    Metric("mmd_per_label", "lower", _mmd_per_label, ("groups",), scopes=JOINT, bounds=SIGNED),
    Metric("transfer_f1", "higher", _transfer_f1, ("groups",), scopes=JOINT, bounds=SHARE),
    Metric("label_fidelity", "higher", _label_fidelity, ("groups",), scopes=JOINT, bounds=SHARE),
    # memorisation
    _score_metric("nearest_train_ratio", "floor", _distances_to_training, nearest_ratio, needs=TRAIN, scopes=JOINT),
    _score_metric(
        "nearer_than_held_out",
        "lower",
        _distances_to_training,
        share_of_nearer,
        needs=TRAIN,
        scopes=JOINT,
        bounds=SHARE,
    ),
    Metric(
        "near_copies",
        "lower",
        lambda c: share_of_near_copies(relative_nearness(c.synthetic.pcs, c.training.pcs)),
        TRAIN,
        of_all=_near_copies_of_all,
        bounds=SHARE,
    ),
    Metric("copied_cells", "lower", _copied_cells, TRAIN, of_all=_copied_of_all, bounds=SHARE),
    Metric(
        "duplicate_share",
        "lower",
        lambda c: duplicate_share(c.synthetic.expression),
        of_all=_twins_of_all,
        bounds=SHARE,
    ),
    _auc_metric("membership_auc", _nearness, needs=TRAIN, scopes=JOINT),
    Metric(
        "copied_test_cells",
        "lower",
        lambda c: copied_cells(c.synthetic.expression, c.real.expression),
        of_all=_copied_test_of_all,
        bounds=SHARE,
    ),
    # perturbations
    _effect_metric("mean_change_error", "lower", mean_change_error),
    _effect_metric("mean_change_debiased_error", "lower", mean_change_debiased_error, bounds=SIGNED),
    _effect_metric("mean_change_slope", "floor", mean_change_slope, bounds=SIGNED),
    *(
        _effect_metric("mean_change_correlation", "higher", mean_change_correlation, n, bounds=CORRELATION)
        for n in (None, *N_TOP)
    ),
    Metric(
        "specific_change_correlation",
        "higher",
        _specific_change_correlation,
        ("control", "mean_response"),
        scopes=("perturbation",),
        bounds=CORRELATION,
    ),
    Metric(
        "perturbation_discrimination",
        "higher",
        lambda c: c.panel.score(c.synthetic.moments.mean - c.control.moments.mean),
        ("control", "perturbations"),
        scopes=("perturbation",),
        bounds=SHARE,
    ),
    *(_effect_metric("de_overlap", "higher", de_overlap, n, bounds=SHARE) for n in N_TOP),
    _effect_metric("de_jaccard", "higher", de_jaccard, bounds=SHARE),
    _effect_metric("de_direction", "higher", de_direction, bounds=SHARE),
    *(_effect_metric("variance_error", "lower", variance_error, n) for n in (None, *N_TOP)),
    # across modalities
    _cross_metric("cross_correlation_similarity", "higher", correlation, CORRELATION),
    _cross_metric("cross_correlation_error", "lower", lambda real, other: float(np.abs(real - other).mean())),
)

#: Values of perfect cells, for metrics whose floor is often far off by chance. They are judged by their distance to
#: this value, less that of the floor.
IDEALS = {"within_label_slope": 1.0}
#: AUC of a classifier that guesses. A floor below it is chance.
GUESSING = 0.5
_AUCS = {metric.name for metric in _ENTRIES if "auc" in metric.name.split("_")}


def excess_over_floor(metric: str, better: Better, value: float, floor: float) -> float:
    """Return by how much a figure of the table is worse than its floor; negative if it is better.

    Parameters
    ----------
    metric, better, value, floor
        From a row of the table of :func:`evaluate`. A floor of an AUC below 0.5 counts as 0.5, which is guessing.
        ``within_label_slope``, whose floor is noisy, is worse the farther it is from 1 than its floor.

    Examples
    --------
    >>> round(excess_over_floor("recall", "higher", 0.7, 0.9), 2)
    0.2
    """
    if metric in IDEALS:
        return abs(value - IDEALS[metric]) - abs(floor - IDEALS[metric])
    if better == "floor":
        return abs(value - floor)
    if metric in _AUCS:
        floor = max(floor, GUESSING)  # NaN stays NaN
    return value - floor if better == "lower" else floor - value


#: All metrics by name, in the order of the table.
CATALOGUE: dict[str, Metric] = {metric.name: metric for metric in _ENTRIES}
