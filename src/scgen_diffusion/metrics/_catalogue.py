"""The metrics of the table, one entry each, and the comparison of two samples of cells that each measures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import numpy as np
import pandas as pd

from ._distribution import (
    Classifier,
    Scores,
    auc_of_scores,
    classifier_scores,
    frechet_distance,
    ilisi,
    mmd_test,
    precision_recall_density_coverage,
    sliced_wasserstein_2,
    squared_mmd,
    wasserstein_2,
)
from ._genes import (
    compare_markers,
    gene_correlation_similarity,
    gene_profile_errors,
    group_differences,
    library_size_ks,
    mean_variance_error,
)
from ._safety import copied_cells, duplicate_share, fingerprints_of, membership_inference, memorisation
from ._use import label_fidelity, transfer_f1

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from ._cells import Expression

T = TypeVar("T")

N_CORRELATED_GENES = 100


@dataclass(frozen=True)
class Sample:
    """Cells of one side.

    Attributes
    ----------
    expression
        All genes on the common scale, with total counts where the cells came as counts.
    pcs
        Principal components, `(cells, components)`.
    labels
        Groups, `(cells,)`; None without ``groupby``.
    """

    expression: Expression
    pcs: NDArray[np.float32]
    labels: NDArray[np.str_] | None

    def __len__(self) -> int:
        return len(self.pcs)

    def __getitem__(self, rows: NDArray) -> Sample:
        """Return some of the cells, by position or mask."""
        return Sample(self.expression[rows], self.pcs[rows], None if self.labels is None else self.labels[rows])


@dataclass(frozen=True)
class Training:
    """All cells that a model has learned from, as far as memorisation is concerned.

    Attributes
    ----------
    pcs
        Principal components, `(cells, components)`.
    members
        Principal components of those cells that the components were not chosen on. The others lie further out than cells that a PCA has not
        seen, which would tell them from held-out cells without any synthetic one.
    fingerprints
        Hashes of the cells' counts.
    """

    pcs: NDArray[np.float32]
    members: NDArray[np.float32]
    fingerprints: frozenset[bytes]


@dataclass(frozen=True)
class Comparison:
    """Real and synthetic cells, or what plays the synthetic ones.

    Attributes
    ----------
    real, synthetic
        The two sides: samples, or what the metrics of perturbations and of pairs of modalities look at.
    genes
        Positions of the space's genes, by mean expression in the cells that the space was fitted to, highest first.
    squared_scale
        Unit of kernel widths, the same for value, floor and shuffled cells.
    training
        What synthetic cells may have been copied from; None without ``train``.
    control
        Unperturbed cells, where the sides are perturbed ones.
    seed
        For metrics that draw.
    """

    real: Sample
    synthetic: Sample
    genes: NDArray[np.intp] | None = None
    squared_scale: float = float("nan")
    training: Training | None = None
    control: Sample | None = None
    seed: int = 0
    _results: dict[Callable, object] = field(default_factory=dict, repr=False, compare=False)

    def once(self, function: Callable[[Comparison], T]) -> T:
        """Return what a function says of this comparison, computed once for all metrics that share it."""
        if function not in self._results:
            self._results[function] = function(self)
        return self._results[function]

    def at(self, real_rows: NDArray, synthetic_rows: NDArray) -> Comparison:
        """Return the comparison of some of the cells."""
        return replace(self, real=self.real[real_rows], synthetic=self.synthetic[synthetic_rows], _results={})

    def gene_values(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return log-normalised values of the space's genes on both sides, dense, `(cells, genes)`."""
        genes = np.sort(self.genes)
        return self.real.expression.values[:, genes].toarray(), self.synthetic.expression.values[:, genes].toarray()

    def correlated_values(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return those of the 100 most expressed of the space's genes."""
        genes = self.genes[:N_CORRELATED_GENES]
        return self.real.expression.values[:, genes].toarray(), self.synthetic.expression.values[:, genes].toarray()


#: Which values are good: small ones, large ones, or those near the floor.
Better: TypeAlias = Literal["lower", "higher", "floor"]
#: What a metric cannot do without: training cells, labels, total counts.
Need: TypeAlias = Literal["train", "groups", "counts"]

SHARE = (0.0, 1.0)
POSITIVE = (0.0, np.inf)
REAL = (-np.inf, np.inf)
PERPLEXITY = 30


@dataclass(frozen=True)
class Metric:
    """An entry of the catalogue.

    Parameters
    ----------
    name
        Its name in the table.
    better
        Which values are good.
    measure
        The figure of a comparison.
    needs
        What must be given, else the metric is left out.
    per_group
        Measured in every group alone, too.
    by_group
        The figure of every group from a comparison of all cells, for metrics that need the other groups as well; instead of `per_group`.
    scores, summary
        Where a figure is a summary of one number per cell: the intervals come from drawing these numbers, and nothing is fitted again.
    bounds
        Smallest and largest possible value.
    has_interval
        Whether an interval makes sense.
    slow
        The floor comes from one draw instead of several.
    equal_cells
        Depends on the number of cells, so that all players must have equally many.
    """

    name: str
    better: Better
    measure: Callable[[Comparison], float]
    needs: tuple[Need, ...] = ()
    per_group: bool = False
    by_group: Callable[[Comparison], Mapping[str, float]] | None = None
    scores: Callable[[Comparison], Scores] | None = None
    summary: Callable[[NDArray, NDArray], float] | None = None
    bounds: tuple[float, float] = POSITIVE
    has_interval: bool = True
    slow: bool = False
    equal_cells: bool = False

    @property
    def against_training(self) -> bool:
        """Whether synthetic cells meet training cells, so that the floor needs cells that are none."""
        return "train" in self.needs


def _on_pcs(function: Callable[..., float]) -> Callable[[Comparison], float]:
    return lambda comparison: float(function(comparison.real.pcs, comparison.synthetic.pcs))


def _on_expression(function: Callable[..., float]) -> Callable[[Comparison], float]:
    return lambda comparison: float(function(comparison.real.expression, comparison.synthetic.expression))


def _part(function: Callable[[Comparison], object], name: str) -> Callable[[Comparison], float]:
    """Take one figure of a function that returns several, in a dictionary or a named tuple."""

    def measure(comparison: Comparison) -> float:
        figures = comparison.once(function)
        return float(figures[name] if isinstance(figures, dict) else getattr(figures, name))

    return measure


# --- what entries measure where a lambda is too short ----------------------------------------------------------------


def _neighbourhoods(comparison: Comparison) -> object:
    return precision_recall_density_coverage(comparison.real.pcs, comparison.synthetic.pcs)


def _squared_mmd(comparison: Comparison) -> float:
    return squared_mmd(comparison.real.pcs, comparison.synthetic.pcs, squared_scale=comparison.squared_scale)


def _mmd_p_value(comparison: Comparison) -> float:
    scale, seed = comparison.squared_scale, comparison.seed
    return mmd_test(comparison.real.pcs, comparison.synthetic.pcs, squared_scale=scale, seed=seed).p_value


def _ilisi(comparison: Comparison) -> float:
    n_cells = len(comparison.real) + len(comparison.synthetic)
    return ilisi(comparison.real.pcs, comparison.synthetic.pcs, perplexity=min(PERPLEXITY, (n_cells - 1) // 3))


def _scores_in_pcs(classifier: Classifier, comparison: Comparison) -> Scores:
    return classifier_scores(comparison.real.pcs, comparison.synthetic.pcs, classifier=classifier, seed=comparison.seed)


def _scores_in_genes(comparison: Comparison) -> Scores:
    return classifier_scores(*comparison.gene_values(), classifier="quick_boosting", seed=comparison.seed)


def _profile_errors(comparison: Comparison) -> object:
    return gene_profile_errors(comparison.real.expression, comparison.synthetic.expression)


def _correlation_similarity(comparison: Comparison) -> float:
    real, synthetic = comparison.correlated_values()
    return gene_correlation_similarity(real, synthetic, comparison.real.labels, comparison.synthetic.labels)


def _marker_table(comparison: Comparison) -> pd.DataFrame:
    sides = comparison.real, comparison.synthetic
    return compare_markers(*(group_differences(side.expression, side.labels) for side in sides))


def _marker_mean(column: str, comparison: Comparison) -> float:
    return float(comparison.once(_marker_table)[column].mean())


def _marker_by_group(column: str, comparison: Comparison) -> Mapping[str, float]:
    return comparison.once(_marker_table)[column].to_dict()


def _share_differences(comparison: Comparison) -> Mapping[str, float]:
    sides = comparison.real.labels, comparison.synthetic.labels
    real, synthetic = (pd.Series(labels).value_counts(normalize=True) for labels in sides)
    return real.sub(synthetic, fill_value=0).abs().to_dict()


def _total_variation(comparison: Comparison) -> float:
    return sum(comparison.once(_share_differences).values()) / 2


def _transfer_f1(comparison: Comparison) -> float:
    real, synthetic = comparison.real, comparison.synthetic
    return transfer_f1(synthetic.pcs, synthetic.labels, real.pcs, real.labels)


def _label_fidelity(comparison: Comparison) -> float:
    real, synthetic = comparison.real, comparison.synthetic
    return label_fidelity(real.pcs, real.labels, synthetic.pcs, synthetic.labels)


def _memorisation(comparison: Comparison) -> object:
    return memorisation(comparison.synthetic.pcs, comparison.real.pcs, comparison.training.pcs)


def _copied_cells(comparison: Comparison) -> float:
    known = comparison.training.fingerprints
    found = [print_ in known for print_ in fingerprints_of(comparison.synthetic.expression)]
    return float(np.mean(found)) if found else float("nan")


def _copied_test_cells(comparison: Comparison) -> float:
    return copied_cells(comparison.synthetic.expression, comparison.real.expression)


def _membership_auc(comparison: Comparison) -> float:
    sets = comparison.synthetic.pcs, comparison.real.pcs, comparison.training.members
    return membership_inference(*sets, seed=comparison.seed).auc


# --- the entries ------------------------------------------------------------------------------------------------------


def _classifier_metric(name: str, scores: Callable[[Comparison], Scores], **options: bool) -> Metric:
    measure = lambda comparison: auc_of_scores(*comparison.once(scores))
    return Metric(name, "lower", measure, scores=scores, summary=auc_of_scores, bounds=SHARE, **options)


def _neighbourhood_metric(name: str, better: Better, bounds: tuple[float, float] = SHARE) -> Metric:
    return Metric(name, better, _part(_neighbourhoods, name), per_group=True, bounds=bounds)


def _gene_metric(name: str, bounds: tuple[float, float] = POSITIVE) -> Metric:
    return Metric(name, "lower", _part(_profile_errors, name), per_group=True, bounds=bounds)


def _marker_metric(name: str, column: str, better: Better, bounds: tuple[float, float]) -> Metric:
    by_group = partial(_marker_by_group, column)
    return Metric(name, better, partial(_marker_mean, column), ("groups",), by_group=by_group, bounds=bounds)


_ENTRIES = (
    # distribution
    Metric("w2", "lower", _on_pcs(wasserstein_2), per_group=True),
    Metric("sliced_w2", "lower", _on_pcs(sliced_wasserstein_2), per_group=True),
    Metric("mmd2", "lower", _squared_mmd, per_group=True, bounds=REAL),
    Metric("mmd_p_value", "higher", _mmd_p_value, per_group=True, bounds=SHARE, has_interval=False),
    Metric("frechet", "lower", _on_pcs(frechet_distance), per_group=True),
    _neighbourhood_metric("precision", "higher"),
    _neighbourhood_metric("recall", "higher"),
    _neighbourhood_metric("density", "floor", POSITIVE),
    _neighbourhood_metric("coverage", "higher"),
    # classifiers that tell synthetic from real cells
    _classifier_metric("auc_boosting", partial(_scores_in_pcs, "boosting"), slow=True),
    _classifier_metric("auc_logistic", partial(_scores_in_pcs, "logistic"), per_group=True),
    _classifier_metric("auc_neighbours", partial(_scores_in_pcs, "neighbours"), per_group=True),
    _classifier_metric("auc_genes", _scores_in_genes, slow=True),
    Metric("ilisi", "higher", _ilisi, per_group=True, bounds=SHARE),
    # genes
    _gene_metric("gene_mean_error"),
    _gene_metric("gene_variance_error"),
    _gene_metric("gene_zero_error", SHARE),
    Metric("mean_variance_error", "lower", _on_expression(mean_variance_error), per_group=True),
    Metric("within_label_correlation", "higher", _correlation_similarity, per_group=True, bounds=(-1.0, 1.0)),
    Metric("library_size_ks", "lower", _on_expression(library_size_ks), ("counts",), per_group=True, bounds=SHARE),
    # labels
    Metric("group_share_difference", "lower", _total_variation, ("groups",), by_group=_share_differences, bounds=SHARE),
    _marker_metric("marker_overlap", "overlap", "higher", SHARE),
    _marker_metric("marker_slope", "slope", "floor", REAL),
    Metric("transfer_f1", "higher", _transfer_f1, ("groups",), bounds=SHARE),
    Metric("label_fidelity", "higher", _label_fidelity, ("groups",), bounds=SHARE),
    # memorisation
    Metric("nearest_train_ratio", "floor", _part(_memorisation, "nearest_train_ratio"), ("train",)),
    Metric("nearer_than_held_out", "lower", _part(_memorisation, "nearer_than_held_out"), ("train",), bounds=SHARE),
    Metric("copied_cells", "lower", _copied_cells, ("train", "counts"), bounds=SHARE),
    Metric(
        "duplicate_share",
        "lower",
        lambda comparison: duplicate_share(comparison.synthetic.expression),
        ("counts",),
        bounds=SHARE,
    ),
    Metric("membership_auc", "lower", _membership_auc, ("train",), bounds=SHARE),
    Metric("copied_test_cells", "lower", _copied_test_cells, bounds=SHARE),
)

#: All metrics by name, in the order of the table.
CATALOGUE: dict[str, Metric] = {metric.name: metric for metric in _ENTRIES}
