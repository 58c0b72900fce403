"""Measure how good synthetic cells are: single metrics, and one table of all of them.

Cells are compared on one scale, `log1p` of values that sum to 10,000 per cell. Most metrics use principal components of
real training cells (:class:`ComparisonSpace`), so that you can compare the figures of different models.
"""

from ._catalogue import CATALOGUE, GUESSING, excess_over_real
from ._cells import ComparisonSpace, Expression, align_genes, expression_of
from ._comparison import (
    ALL,
    COLUMNS,
    MIN_CELLS_PER_GROUP,
    QUANTILE,
    Limits,
    Metric,
    check_columns,
    check_one_row_each,
)
from ._distribution import (
    classifier_auc,
    energy_distance,
    precision_recall_density_coverage,
    squared_mmd,
    wasserstein_2,
)
from ._evaluate import evaluate
from ._genes import (
    correlation,
    gene_correlation_similarity,
    gene_correlation_slope,
    gene_correlations,
    gene_differences,
    gene_profile_errors,
    gene_statistics,
    library_size_ks,
    marker_agreement,
    marker_genes,
    mean_variance_error,
)
from ._perturbation import (
    Effect,
    de_direction,
    de_jaccard,
    de_overlap,
    effects,
    gene_changes,
    mean_change_correlation,
    mean_change_debiased_error,
    mean_change_error,
    mean_change_slope,
    variance_error,
)
from ._safety import (
    copied_cells,
    duplicate_share,
    membership_inference,
    memorisation,
)
from ._use import augmentation_gain, trts_accuracy, tstr_f1

__all__ = [
    "CATALOGUE",
    "MIN_CELLS_PER_GROUP",
    "ComparisonSpace",
    "Effect",
    "Expression",
    "Limits",
    "Metric",
    "align_genes",
    "augmentation_gain",
    "classifier_auc",
    "copied_cells",
    "correlation",
    "de_direction",
    "de_jaccard",
    "de_overlap",
    "duplicate_share",
    "effects",
    "energy_distance",
    "evaluate",
    "excess_over_real",
    "expression_of",
    "gene_changes",
    "gene_correlation_similarity",
    "gene_correlation_slope",
    "gene_correlations",
    "gene_differences",
    "gene_profile_errors",
    "gene_statistics",
    "library_size_ks",
    "marker_agreement",
    "marker_genes",
    "mean_change_correlation",
    "mean_change_debiased_error",
    "mean_change_error",
    "mean_change_slope",
    "mean_variance_error",
    "membership_inference",
    "memorisation",
    "precision_recall_density_coverage",
    "squared_mmd",
    "trts_accuracy",
    "tstr_f1",
    "variance_error",
    "wasserstein_2",
]


def __dir__() -> list[str]:
    return sorted(__all__)
