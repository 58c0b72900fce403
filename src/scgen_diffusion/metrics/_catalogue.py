"""The metrics of the table: one function each. The first lines of its docstring say what it measures and misses."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import _distribution, _genes, _perturbation, _safety, _use
from ._comparison import MIN_CELLS_PER_LABEL, N_CORRELATED_GENES, UNLIKELY, CellComparison, Limits, Metric, Share
from ._distribution import auc_of_scores, classifier_scores, squared_mmd

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from numpy.typing import NDArray

    from ._comparison import AllCells, Better, Comparison, Need, Scope, Whole
    from ._distribution import Classifier
    from ._perturbation import Prediction

#: All metrics by name, in the order of the table.
CATALOGUE: dict[str, Metric] = {}

SHARE = (0.0, 1.0)
SIGNED = (-np.inf, np.inf)
CORRELATION = (-1.0, 1.0)

GROUPS: tuple[Scope, ...] = ("all", "group")
JOINT: tuple[Scope, ...] = ("all", "joint")
GROUPS_JOINT: tuple[Scope, ...] = ("all", "group", "joint")

GUESSING = 0.5  # AUC of a classifier that guesses
#: With fewer features, 50 markers are nearly all of them, and variances show no trend along the means.
FEW_FEATURES = 100
#: So few held-out cells in `train` harm nobody: nearness is judged by the 1 % of them that lie nearest.
FEW_LEAKED = 0.005
#: Shares of labels that differ by more than this are a note, and metrics that pool the labels of each side fail.
OTHER_SHARES = 0.10


def excess_over_real(metric: str, better: Better, value: float, real: float) -> float:
    """Return by how much a figure of the table is worse than its real value; negative if it is better.

    Parameters
    ----------
    metric, better, value, real
        From a row of the table of :func:`evaluate`. A real value of an AUC below 0.5 counts as 0.5, which is guessing.
        ``within_label_slope``, whose real value is noisy, is worse the farther it is from 1 than its real value.

    Examples
    --------
    >>> round(excess_over_real("recall", "higher", 0.7, 0.9), 2)
    0.2
    """
    ideal = CATALOGUE[metric].ideal if metric in CATALOGUE else None
    if better == "real":
        return abs(value - real) if ideal is None else abs(value - ideal) - abs(real - ideal)
    if better == "higher":
        return real - value
    return value - (real if ideal is None else max(real, ideal))  # NaN stays NaN


def _metric(topic: str, better: Better, **options: Any) -> Callable[[Callable], Callable]:
    """Add a function to the catalogue under its name."""

    def add(measure: Callable[[Any], float]) -> Callable[[Any], float]:
        CATALOGUE[measure.__name__] = Metric(measure.__name__, better, measure, topic, **options)
        return measure

    return add


def _of_expression(function: Callable[..., float]) -> Callable[[CellComparison], float]:
    """Return a function of the expression of two sets of cells as one of a comparison, of the same name."""

    @wraps(function)
    def measure(comparison: CellComparison) -> float:
        return function(comparison.real.expression, comparison.synthetic.expression)

    return measure


# --- distribution -----------------------------------------------------------------------------------------------------


# The distance between two samples of real cells is large, so that a small excess means much.
@_metric("Distribution", "lower", scopes=GROUPS_JOINT, limits=Limits(0.06, 0.15, of="real"))
def w2(comparison: CellComparison) -> float:
    """How far cells must move to turn one set into the other (``wasserstein_2``). Misses cells that are too smooth."""
    return _distribution.wasserstein_2(comparison.real.pcs, comparison.synthetic.pcs)


@_metric("Distribution", "lower", scopes=GROUPS_JOINT, bounds=SIGNED)
def mmd2(comparison: CellComparison) -> float:
    """How much smoothed densities of cells differ (``squared_mmd``). Misses small populations."""
    real, synthetic = comparison.real, comparison.synthetic
    return squared_mmd(real.pcs, synthetic.pcs, squared_scale=comparison.squared_scale)


def _neighbourhoods(comparison: CellComparison) -> Mapping[str, float]:
    return _distribution.precision_recall_density_coverage(comparison.real.pcs, comparison.synthetic.pcs)


# One cell in 15, or one in 7, where the other side does not go. In a group there are few cells: only half or a quarter.
_OF_CELLS = {"limits": Limits(0.07, 0.15), "scopes": GROUPS_JOINT}


@_metric("Distribution", "higher", bounds=SHARE, limits_in_group=Limits(0.25, 0.50), **_OF_CELLS)
def precision(comparison: CellComparison) -> float:
    """Share of synthetic cells that lie among real ones (``precision_recall_density_coverage``). Misses lost types."""
    return comparison.once(_neighbourhoods)["precision"]


@_metric("Distribution", "higher", bounds=SHARE, limits_in_group=Limits(0.25, 0.50), **_OF_CELLS)
def recall(comparison: CellComparison) -> float:
    """Share of real cells that lie among synthetic ones. Misses cells that spread too far."""
    return comparison.once(_neighbourhoods)["recall"]


@_metric("Distribution", "real", scopes=GROUPS_JOINT)
def density(comparison: CellComparison) -> float:
    """How closely real cells surround synthetic ones. Misses lost types."""
    return comparison.once(_neighbourhoods)["density"]


@_metric("Distribution", "higher", bounds=SHARE, **_OF_CELLS)
def coverage(comparison: CellComparison) -> float:
    """Share of real cells with a synthetic cell nearby. Misses scattered cells."""
    return comparison.once(_neighbourhoods)["coverage"]


_OF_CLASSIFIERS = {
    "bounds": SHARE,
    "ideal": GUESSING,
    # An AUC of 0.6 is hardly better than guessing; at 0.75 three of four pairs of cells are ordered right.
    "limits": Limits(0.10, 0.25),
    # Half-samples keep the scores of classifiers that saw all cells. Trained on other cells they would score otherwise,
    # so the standard deviation of the AUC between draws of cells is larger. Measured on simulated cells, 60 draws of
    # 200 cells on each side: 1.3 (neighbours) to 1.7 times (logistic), for a perfect and for a bad generator.
    "widening": 1.6,
}


def _told_apart(comparison: CellComparison, classifier: Classifier) -> tuple[NDArray, NDArray]:
    sides = comparison.real.pcs, comparison.synthetic.pcs
    if classifier == "quick_boosting":
        sides = comparison.gene_values()
    return classifier_scores(*sides, classifier=classifier, seed=comparison.seed)


@_metric("Distribution", "lower", scopes=JOINT, slow=True, **_OF_CLASSIFIERS)
def auc_boosting(comparison: CellComparison) -> float:
    """How well boosted trees tell synthetic from real cells (``classifier_auc``); 0.5 is perfect. Misses the cause."""
    return auc_of_scores(*comparison.scores(_told_apart, "boosting"))


@_metric("Distribution", "lower", scopes=GROUPS, **_OF_CLASSIFIERS)
def auc_logistic(comparison: CellComparison) -> float:
    """How well a linear classifier does. Misses spread and shape."""
    return auc_of_scores(*comparison.scores(_told_apart, "logistic"))


@_metric("Distribution", "lower", scopes=GROUPS_JOINT, **_OF_CLASSIFIERS)
def auc_neighbours(comparison: CellComparison) -> float:
    """How well nearest neighbours do; well below 0.5 suggests copies. Misses small shifts."""
    return auc_of_scores(*comparison.scores(_told_apart, "neighbours"))


@_metric("Distribution", "lower", slow=True, **_OF_CLASSIFIERS)
def auc_genes(comparison: CellComparison) -> float:
    """How well boosted trees do that see single genes: the hardest test. Misses what takes many genes to see."""
    return auc_of_scores(*comparison.scores(_told_apart, "quick_boosting"))


# --- genes ------------------------------------------------------------------------------------------------------------


def _profile_errors(comparison: CellComparison) -> Mapping[str, float]:
    return _genes.gene_profile_errors(comparison.real.expression, comparison.synthetic.expression)


# Sampling alone gives the real value: a quarter more is visible, at 75 % more the model's own error is as large.
_OF_PROFILES = {"scopes": GROUPS, "limits": Limits(0.25, 0.75, of="real")}


@_metric("Genes", "lower", **_OF_PROFILES)
def gene_mean_error(comparison: CellComparison) -> float:
    """Difference of a gene's mean, averaged over genes (``gene_profile_errors``). Misses relations between genes."""
    return comparison.once(_profile_errors)["gene_mean_error"]


@_metric("Genes", "lower", **_OF_PROFILES)
def gene_variance_error(comparison: CellComparison) -> float:
    """Difference of a gene's variance, averaged over genes. Misses relations between genes."""
    return comparison.once(_profile_errors)["gene_variance_error"]


@_metric("Genes", "lower", bounds=SHARE, **_OF_PROFILES)
def gene_zero_error(comparison: CellComparison) -> float:
    """Difference of a gene's share of zeros, averaged over genes. Misses relations between genes."""
    return comparison.once(_profile_errors)["gene_zero_error"]


# In powers of ten: the variance of a typical gene, which is a sparse one, is off by 7 % or by 15 % more than by chance.
_metric("Genes", "lower", scopes=GROUPS, min_features=FEW_FEATURES, limits=Limits(0.03, 0.06))(
    _of_expression(_genes.mean_variance_error)
)


def _on_correlated_genes(function: Callable[..., float], comparison: CellComparison) -> float:
    values = comparison.once(CellComparison.gene_values, N_CORRELATED_GENES)
    if values[0].shape[1] < 2:  # a modality of one feature
        return np.nan
    return function(*values, comparison.real.labels, comparison.synthetic.labels)


_WITHIN_LABELS = {"scopes": GROUPS, "most_share_difference": OTHER_SHARES}


# A quarter, or half, of what the correlations of real cells are above those of shuffled genes.
@_metric("Genes", "higher", bounds=CORRELATION, limits=Limits(0.25, 0.50, of="structure"), **_WITHIN_LABELS)
def within_label_correlation(comparison: CellComparison) -> float:
    """How similar correlations of expressed genes are (``gene_correlation_similarity``). Misses their strength."""
    return _on_correlated_genes(_genes.gene_correlation_similarity, comparison)


# Changes, or correlations, a seventh or a third too small or too large.
@_metric("Genes", "real", bounds=SIGNED, ideal=1.0, limits=Limits(0.15, 0.35), **_WITHIN_LABELS)
def within_label_slope(comparison: CellComparison) -> float:
    """Strength of correlations; 1 is right (``gene_correlation_slope``). Misses which genes vary together."""
    return _on_correlated_genes(_genes.gene_correlation_slope, comparison)


# Totals 5 % off give about 0.1 in homogeneous cells, a third off 0.4.
_metric("Genes", "lower", needs=("counts",), scopes=GROUPS, bounds=SHARE, limits=Limits(0.08, 0.20))(
    _of_expression(_genes.library_size_ks)
)


# --- labels -----------------------------------------------------------------------------------------------------------


def _share_differences(comparison: CellComparison) -> Mapping[str, float]:
    shares = []
    for side in (comparison.real, comparison.synthetic):
        sizes = pd.Series(side.labels).value_counts()
        sizes = sizes if side.n_further is None else sizes.add(side.n_further, fill_value=0)
        shares.append(sizes / sizes.sum())
    return shares[0].sub(shares[1], fill_value=0).abs().to_dict()


# One cell in ten carries another label, often on purpose: never a warning. In simulations, real cells get a note in 1 %
# of evaluations, and a share of 25 % instead of 5 % of 100 cells in 90 % (with three deviations: 60 %).
@_metric(
    "Labels",
    "lower",
    needs=("groupby",),
    bounds=SHARE,
    by_group=_share_differences,
    absent=0.0,
    limits=Limits(OTHER_SHARES, np.inf, n_deviations=2.0),
    limits_in_group=Limits(0.02, np.inf, n_deviations=2.0),
)
def group_share_difference(comparison: CellComparison) -> float:
    """Share of cells that need another label to match the real shares. Misses whether labels are right."""
    return sum(comparison.once(_share_differences).values()) / 2


def _label_sizes(comparison: CellComparison) -> list[pd.Series]:
    """Return the number of cells of each label on both sides."""
    return [_genes.count_labels(side.with_rare().labels) for side in (comparison.real, comparison.synthetic)]


def _marker_table(comparison: CellComparison) -> pd.DataFrame:
    sizes_of_sides = (comparison.whole or comparison).once(_label_sizes)
    sides = []
    for side, sizes in zip((comparison.real, comparison.synthetic), sizes_of_sides, strict=True):
        cells = side.with_rare()
        sides.append(_genes.group_differences(cells.expression, cells.labels, sizes=sizes, n_of_all=len(side)))
    return _genes.compare_markers(*sides)


def _mean_over_labels(table: pd.DataFrame, column: str) -> float:
    """Return the mean over labels; NaN if it is unknown for a label that is missing: the rest would look perfect."""
    is_unknown = table.loc[table["n_synthetic"] == 0, column].isna().any()
    return np.nan if is_unknown else float(table[column].mean())


_OF_LABELS = {"needs": ("groupby",), "most_share_difference": OTHER_SHARES}


@_metric(
    "Labels",
    "higher",
    bounds=SHARE,
    by_group=lambda comparison: comparison.once(_marker_table)["overlap"],
    min_features=FEW_FEATURES,
    limits=Limits(0.15, 0.35, of="real"),
    **_OF_LABELS,
)
def marker_overlap(comparison: CellComparison) -> float:
    """Share of a label's 50 top markers found again (``marker_agreement``). Misses differences within a label."""
    return _mean_over_labels(comparison.once(_marker_table), "overlap")


# Real cells of rare labels differ from their real value by up to 1.9 times what intervals say.
@_metric(
    "Labels",
    "real",
    bounds=SIGNED,
    by_group=lambda comparison: comparison.once(_marker_table)["slope"],
    limits=Limits(0.15, 0.35, n_deviations=5.0),
    **_OF_LABELS,
)
def marker_slope(comparison: CellComparison) -> float:
    """Fold changes of markers beside real ones; above the real value is too much. Misses differences within a label."""
    return _mean_over_labels(comparison.once(_marker_table), "slope")


@_metric("Labels", "lower", needs=("groupby",), scopes=JOINT, bounds=SIGNED)
def mmd_per_label(comparison: CellComparison) -> float:
    """``mmd2`` within labels, averaged over those of 20 or more real cells; NaN if one is missing."""
    real, synthetic = comparison.real.with_rare(), comparison.synthetic.with_rare()
    sizes, _ = (comparison.whole or comparison).once(_label_sizes)
    pairs = [
        (real.pcs[real.labels == name], synthetic.pcs[synthetic.labels == name])
        for name in sizes.index[sizes >= MIN_CELLS_PER_LABEL]
    ]
    if not pairs or min(len(side) for pair in pairs for side in pair) < 2:  # a mean of the rest would look perfect
        return np.nan
    return float(np.mean([squared_mmd(*sides) for sides in pairs]))


# Share of what real cells of another sample reach. Those of rare labels differ by up to 1.3 times what intervals say.
@_metric("Labels", "higher", scopes=JOINT, bounds=SHARE, limits=Limits(0.05, 0.15, "real", 4.0), **_OF_LABELS)
def tstr_f1(comparison: CellComparison) -> float:
    """How well a classifier trained on synthetic cells labels real ones. Misses too little spread, and copies."""
    real, synthetic = comparison.real, comparison.synthetic
    return _use.tstr_f1(synthetic.pcs, synthetic.labels, real.pcs, real.labels)


@_metric("Labels", "higher", needs=("groupby",), scopes=JOINT, bounds=SHARE, limits=Limits(0.05, 0.15, of="real"))
def trts_accuracy(comparison: CellComparison) -> float:
    """How often a classifier trained on real cells finds the requested label. Misses a lack of variety."""
    real, synthetic = comparison.real, comparison.synthetic
    return _use.trts_accuracy(real.pcs, real.labels, synthetic.pcs, synthetic.labels)


# --- memorisation -----------------------------------------------------------------------------------------------------


_OF_TRAINING = {"needs": ("train",), "scopes": JOINT}


def _distances_to_training(comparison: CellComparison) -> tuple[NDArray, NDArray]:
    sides = comparison.real.pcs, comparison.synthetic.pcs
    return tuple(_safety.nearest_distances(side, comparison.all_cells.train.pcs) for side in sides)


# Where a dense and a loose label have half of the cells each, the median distance jumps from one to the other.
@_metric("Memorisation", "real", limits=Limits(0.10, 0.25), most_share_difference=0.04, **_OF_TRAINING)
def dcr_ratio(comparison: CellComparison) -> float:
    """Median distance to training cells beside that of held-out cells (``memorisation``). Misses a few copies."""
    return _safety.nearest_ratio(*comparison.scores(_distances_to_training))


# If cells are right within labels, the share that lies near differs by no more than the shares of labels do.
@_metric("Memorisation", "lower", bounds=SHARE, limits=Limits(0.02, 0.05), most_share_difference=0.02, **_OF_TRAINING)
def nearer_than_held_out(comparison: CellComparison) -> float:
    """Share of synthetic cells closer to a training cell than all but 1 % of held-out cells. Misses single copies."""
    return _safety.share_of_nearer(*comparison.scores(_distances_to_training))


_OF_ALL = {"bounds": SHARE, "of_all": True}


def _copies(cells: Whole, known: Whole) -> Share:
    n_with_counts = np.count_nonzero(cells.fingerprints != _safety.EMPTY)
    return Share(_safety.share_of_copies(cells.fingerprints, known.fingerprints), n_with_counts)


def _twins(cells: NDArray[np.uint64]) -> Share:
    # an equal pair counts twice, so that the share is as certain as one of half the cells
    return Share(_safety.share_of_twins(cells), len(cells) / 2)


def _beyond_chance(cells: Whole, is_equal: NDArray[np.bool_], n_others: int) -> tuple[float, Share]:
    """Return which share of equal cells chance cannot explain, and which it can at most: cells of few counts."""
    is_chance = cells.chance * len(is_equal) * n_others > UNLIKELY
    return float((is_equal & ~is_chance).mean()), Share(float((is_equal & is_chance).mean()), np.inf)


def leaked_share(cells: AllCells) -> float:
    """Return which share of the held-out cells equal training cells beyond what chance explains; 0 for few."""
    if cells.train is None:
        return 0.0
    is_equal = np.isin(cells.real.fingerprints, cells.train.fingerprints)
    share, _ = _beyond_chance(cells.real, is_equal, len(cells.train.fingerprints))
    return share if share > FEW_LEAKED else 0.0


# Any copies of training cells count, if they are more than unseen real cells are by chance (in very sparse data).
@_metric("Memorisation", "lower", needs=("train",), limits=Limits(0.0, 0.0), **_OF_ALL)
def near_copies(cells: AllCells) -> tuple[Share, list[Share]]:
    """Share of synthetic cells ten times closer to a training cell than any other is. Misses much changed copies."""
    *told, of_usual = cells.nearness()
    real, synthetic = (Share(_safety.share_of_near_copies(own), len(own)) for own in told)
    if real.value > 0:
        return synthetic, [real]
    expected = _safety.expected_share_of_near_copies(of_usual)
    is_unlikely = expected * synthetic.n_cells <= UNLIKELY
    return synthetic, [real, Share(expected, np.inf if is_unlikely else synthetic.n_cells)]


def _copied(cells: AllCells, known: Whole, usual: list[Share]) -> tuple[Share, list[Share]]:
    """Return the share of synthetic cells that equal known ones, and ``usual`` shares with what chance explains."""
    if not cells.are_comparable:
        return Share(np.nan, 1), [Share(np.nan, 1)]
    is_equal = np.isin(cells.synthetic.fingerprints, known.fingerprints)
    _, by_chance = _beyond_chance(cells.synthetic, is_equal, len(known.fingerprints))
    return _copies(cells.synthetic, known), [*usual, by_chance]


@_metric("Memorisation", "lower", needs=("train",), limits=Limits(0.0, 0.0), **_OF_ALL)
def copied_cells(cells: AllCells) -> tuple[Share, list[Share]]:
    """Share of synthetic cells with exactly the counts of a training cell. Misses copies with one count changed."""
    # where few cells are held out, the training cells themselves tell how seldom two real cells are equal
    train = cells.train.fingerprints
    return _copied(cells, cells.train, [_copies(cells.real, cells.train), _twins(train[train != _safety.EMPTY])])


# A twin here and there harms nobody; more than half a per cent is no accident.
@_metric("Memorisation", "lower", limits=Limits(0.0, 0.005), **_OF_ALL)
def duplicate_share(cells: AllCells) -> tuple[Share, list[Share]]:
    """Share of synthetic cells with exactly the counts of another one. Misses cells that are similar, not equal."""
    synthetic, others = cells.synthetic.fingerprints, (cells.train or cells.real).fingerprints
    n_cells = len(synthetic)
    # twins grow with the number of cells, which makes the share of few real cells less certain
    usual = Share(_safety.expected_share_of_twins(others, n_cells), len(others) ** 2 / (2 * n_cells))
    more = max(n_cells / len(others), 1.0)
    equal_to_real = Share(min(more * float(np.isin(synthetic, others).mean()), 1.0), n_cells / more)
    _, by_chance = _beyond_chance(cells.synthetic, _safety.have_twins(synthetic), n_cells)
    return _twins(synthetic), [usual, equal_to_real, by_chance]


def _attack(comparison: CellComparison) -> tuple[NDArray, NDArray]:
    """Return how near held-out cells and training cells are to the cells released."""
    released = comparison.synthetic.pcs if comparison.released is None else comparison.released
    return _safety.nearness(released, comparison.real.pcs, comparison.all_cells.members, seed=comparison.seed)


@_metric("Memorisation", "lower", bounds=SHARE, ideal=GUESSING, limits=Limits(0.03, 0.08), **_OF_TRAINING)
def membership_auc(comparison: CellComparison) -> float:
    """How well an attacker finds training cells; 0.5 is perfect (``membership_inference``). Misses stronger attacks."""
    return auc_of_scores(*comparison.scores(_attack))


# No model has seen the held-out cells: copies of these are a mistake in the files.
@_metric("Memorisation", "lower", limits=Limits(0.001, 0.01), **_OF_ALL)
def copied_test_cells(cells: AllCells) -> tuple[Share, list[Share]]:
    """Share of synthetic cells with exactly the counts of a held-out cell: a mix-up of files. Misses changed copies."""
    # without training cells, each real cell against all other ones
    real = cells.real.fingerprints
    usual = _copies(cells.train, cells.real) if cells.train else _twins(real[real != _safety.EMPTY])
    return _copied(cells, cells.real, [usual])


# --- perturbations ----------------------------------------------------------------------------------------------------


@_metric("Perturbations", "lower", needs=("control",), scopes=("perturbation",), bounds=SIGNED)
def energy_distance(comparison: Prediction) -> float:
    """How far predicted and real cells are apart: mean, spread and shape. In many dimensions, means dominate."""
    return _distribution.energy_distance(comparison.real.cells.pcs, comparison.synthetic.cells.pcs)


def _effect_metric(
    function: Callable[..., float], better: Better, bounds: tuple[float, float] = (0.0, np.inf), n_top: int = 0
) -> None:
    """Add a function of two effects; with ``n_top``, of the genes that change most in real cells."""

    def measure(comparison: Prediction) -> float:
        return function(comparison.real, comparison.synthetic, **({"n_top": n_top} if n_top else {}))

    measure.__name__, measure.__doc__ = function.__name__, function.__doc__
    if n_top:
        measure.__name__ += f"_top_{n_top}"
        measure.__doc__ = f"``{function.__name__}`` of the {n_top} genes that change most."
    # with fewer genes, the top ones are most of all genes, and overlap whatever the cells are
    options = {"needs": ("control",), "scopes": ("perturbation",), "min_features": 2 * n_top}
    _metric("Perturbations", better, bounds=bounds, **options)(measure)


_effect_metric(_perturbation.mean_change_error, "lower")
_effect_metric(_perturbation.mean_change_debiased_error, "lower", SIGNED)
_effect_metric(_perturbation.mean_change_slope, "real", SIGNED)
_effect_metric(_perturbation.mean_change_correlation, "higher", CORRELATION)
_effect_metric(_perturbation.mean_change_correlation, "higher", CORRELATION, n_top=20)
_effect_metric(_perturbation.mean_change_correlation, "higher", CORRELATION, n_top=100)


@_metric("Perturbations", "higher", needs=("control", "train"), scopes=("perturbation",), bounds=CORRELATION)
def specific_change_correlation(comparison: Prediction) -> float:
    """Correlation of changes against the mean response to training perturbations (Systema). Misses their size."""
    if comparison.mean_response is None:  # no training perturbation has control cells
        return np.nan
    reference = comparison.mean_response.mean
    return _genes.correlation(*(side.cells.mean - reference for side in (comparison.real, comparison.synthetic)))


@_metric("Perturbations", "higher", needs=("control", "perturbations"), scopes=("perturbation",), bounds=SHARE)
def perturbation_discrimination(comparison: Prediction) -> float:
    """Whether a predicted change is most like that of its own perturbation; guessing scores 0.5."""
    return comparison.discriminate(comparison.synthetic.change)


_effect_metric(_perturbation.de_overlap, "higher", SHARE, n_top=20)
_effect_metric(_perturbation.de_overlap, "higher", SHARE, n_top=100)
_effect_metric(_perturbation.de_jaccard, "higher", SHARE)
_effect_metric(_perturbation.de_direction, "higher", SHARE)
_effect_metric(_perturbation.variance_error, "lower")
_effect_metric(_perturbation.variance_error, "lower", n_top=20)
_effect_metric(_perturbation.variance_error, "lower", n_top=100)


# --- several modalities -----------------------------------------------------------------------------------------------


@_metric("Several modalities", "lower", needs=("modalities",), scopes=("pair",), limits=Limits(0.25, 0.75, of="real"))
def cross_correlation_error(comparison: Comparison) -> float:
    """Difference of correlations between features of two modalities, averaged over pairs of features."""
    return float(np.abs(comparison.real - comparison.synthetic).mean())


def choose_metrics(
    names: Collection[str] | None, scope: Scope, available: Collection[Need], n_features: float = np.inf
) -> list[Metric]:
    """Return the requested metrics, in the order of the catalogue; without a request, all that apply.

    Raises
    ------
    ValueError
        If a requested metric lacks what it needs, or does not apply here.
    """
    if names is None:
        metrics = [one for one in CATALOGUE.values() if scope in one.scopes and n_features >= one.min_features]
        return [metric for metric in metrics if set(metric.needs) <= set(available)]
    metrics = [metric for name, metric in CATALOGUE.items() if name in names]
    for metric in metrics:
        if scope == "perturbation" and scope not in metric.scopes:
            msg = f"`metrics` asks for {metric.name!r}, which does not apply to perturbations; leave `control` out."
            raise ValueError(msg)
        if missing := [need for need in metric.needs if need not in available]:
            msg = f"`metrics` asks for {metric.name!r}, which needs `{missing[0]}`."
            raise ValueError(msg)
    return metrics
