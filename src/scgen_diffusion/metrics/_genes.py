"""Genes: means, variances, zeros, correlations between genes, and total counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.ndimage import median_filter
from scipy.stats import ks_2samp

from ._expression import Cells, Expression
from ._labels import check_labels
from ._pairs import as_expression, check_same_number_of_genes, pair_of_expressions

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import ArrayLike, NDArray

MIN_VARIANCE = 1e-8  # stands for none: below what one count in a million cells gives
N_CELLS_AT_ONCE = 8_192
TREND_SHARE = 20  # the trend is a running median over one in so many genes


def gene_statistics(cells: Cells | Expression, *, layer: str | None = None) -> pd.DataFrame:
    r"""Return every gene's mean, variance and share of zeros.

    .. math:: m_g = \frac{1}{n} \sum_i y_{ig}, \qquad v_g = \frac{1}{n} \sum_i (y_{ig} - m_g)^2, \qquad
        z_g = \frac{1}{n} \bigl|\{i : y_{ig} = 0\}\bigr|, \qquad
        y_{ig} = \log\Bigl(1 + 10^4\, \frac{x_{ig}}{\sum_h x_{ih}}\Bigr)

    Parameters
    ----------
    cells
        Counts of all genes, `(cells, genes)`; sparse ones stay sparse.
    layer
        Layer with the counts.

    Returns
    -------
    A row per gene, with the columns `mean` and `variance` of log-normalised values (natural logarithms; their square) and
    `zero_fraction`, from 0 to 1. The index holds the genes' names, or their positions where the cells have no names.
    """
    values = as_expression(cells, layer, "cells").values
    names = cells.var_names if isinstance(cells, AnnData) else pd.RangeIndex(values.shape[1])
    mean, mean_square, expressed = (_sums(values, power) / values.shape[0] for power in (1, 2, 0))
    columns = {"mean": mean, "variance": np.maximum(mean_square - mean**2, 0), "zero_fraction": 1 - expressed}
    return pd.DataFrame(columns, index=names)


def gene_profile_errors(
    real: Cells | Expression, synthetic: Cells | Expression, *, layer: str | None = None
) -> dict[str, float]:
    r"""Return how far the genes' means, variances and shares of zeros are from the real ones.

    .. math:: \frac{1}{G} \sum_g |s_g - s_g'|, \qquad s \in \{m, v, z\}

    with the statistics of :func:`gene_statistics`; from 0, where all genes agree, upwards (at most 1 for zeros). Lower is better.

    *Catches* shifted genes, dropout added or missing, cells without their spread (all like the mean), and wrong scaling of some
    genes against others. *Misses* everything between genes: shuffling each gene over the cells changes none of the three. A wrong
    total count changes the zeros only. Many genes that are hardly expressed make the mean error small.

    Parameters
    ----------
    real, synthetic
        Counts of the same genes, `(cells, genes)`.
    layer
        Layer with the counts.

    Returns
    -------
    `gene_mean_error`, `gene_variance_error`, `gene_zero_error`.
    """
    of_real, of_synthetic = _both_statistics(real, synthetic, layer)
    errors = (of_real - of_synthetic).abs().mean()
    return {
        "gene_mean_error": float(errors["mean"]),
        "gene_variance_error": float(errors["variance"]),
        "gene_zero_error": float(errors["zero_fraction"]),
    }


def mean_variance_error(real: Cells | Expression, synthetic: Cells | Expression, *, layer: str | None = None) -> float:
    r"""Return by how much the genes' variances differ at equal mean, in decimal logarithms.

    .. math:: \operatorname{median}_g \Bigl| \log_{10} \frac{v_g'}{T(m_g')} - \log_{10} \frac{v_g}{T(m_g)} \Bigr|

    with mean :math:`m_g` and variance :math:`v_g` of a gene's log-normalised values in real cells, :math:`m_g'` and :math:`v_g'`
    in synthetic cells, and the trend :math:`T`, a running median of the real genes' variances along their means. Genes that do not
    vary in real cells are left out. From 0 upwards: 0.3 is a factor of two, for half of the genes or more. Lower is better.

    *Catches* noise that does not belong to the expression level: cells too smooth (decoded means instead of draws), too much or
    too little overdispersion. *Misses* shifted means, which it corrects for on purpose, everything between genes, and what happens
    to fewer than half of the genes.

    Parameters
    ----------
    real, synthetic
        Counts of the same genes, `(cells, genes)`.
    layer
        Layer with the counts.

    Returns
    -------
    The error; NaN where no gene varies in real cells.

    References
    ----------
    The relation itself: Brennecke et al. 2013, Accounting for technical noise in single-cell RNA-seq experiments.
    """
    of_real, of_synthetic = _both_statistics(real, synthetic, layer)
    vary = (of_real["variance"] > MIN_VARIANCE).to_numpy()
    if not vary.any():
        return float("nan")
    of_real, of_synthetic = of_real[vary], of_synthetic[vary]
    trend_means, trend = _mean_variance_trend(of_real)
    excess = [
        _log_variances(statistics) - np.interp(statistics["mean"], trend_means, trend)
        for statistics in (of_real, of_synthetic)
    ]
    return float(np.median(np.abs(excess[1] - excess[0])))


def gene_correlations(values: NDArray, labels: ArrayLike | None = None) -> NDArray[np.float64]:
    r"""Return the correlations between genes that are left when every label's mean is taken away.

    .. math:: r_{gh} = \frac{\sum_i e_{ig}\, e_{ih}}{\sqrt{\sum_i e_{ig}^2\, \sum_i e_{ih}^2}}, \qquad
        e_{ig} = y_{ig} - \bar y_{g, \text{label of } i}

    Without labels, differences between cell types make most of the correlations; with labels, what is left is how genes move
    together within a type. A gene that does not vary has correlation 0 with every other.

    Parameters
    ----------
    values
        Log-normalised values, dense, `(cells, genes)`. Choose a few hundred genes: the result grows as their square.
    labels
        Labels of the cells, `(cells,)`; None takes away one mean over all cells.

    Returns
    -------
    Correlations from -1 to 1, `(genes * (genes - 1) / 2,)`, the pairs in the order of :func:`numpy.triu_indices`.
    """
    residuals = np.array(values, dtype=np.float64)
    labels = np.zeros(len(residuals), int) if labels is None else check_labels(labels, len(residuals), "labels")
    for label in np.unique(labels):
        residuals[labels == label] -= residuals[labels == label].mean(axis=0)
    norms = np.linalg.norm(residuals, axis=0)
    residuals /= np.where(norms > 1e-8, norms, np.inf)
    return (residuals.T @ residuals)[np.triu_indices(residuals.shape[1], 1)]


def gene_correlation_similarity(
    real_values: NDArray,
    synthetic_values: NDArray,
    real_labels: ArrayLike | None = None,
    synthetic_labels: ArrayLike | None = None,
) -> float:
    r"""Return how alike the gene-gene correlations are: Pearson's correlation of the correlations.

    .. math:: \operatorname{corr}_{g < h} \bigl( r_{gh}, r_{gh}' \bigr)

    with :func:`gene_correlations` of real and of synthetic cells. From -1 to 1; higher is better. It does not reach 1 even for new
    real cells, since correlations between sparse genes are noisy: read it beside its floor.

    *Catches* genes shuffled over cells, genes drawn independently, programmes lost or made up. *Misses* how strong the correlations
    are (all halved: still 1), and everything about single genes: means, variances, zeros.

    Parameters
    ----------
    real_values, synthetic_values
        Log-normalised values of the same, few hundred, genes, dense, `(cells, genes)`.
    real_labels, synthetic_labels
        Labels of the cells, to look within labels; None on both sides looks at all cells together.

    Returns
    -------
    The similarity; 0 where one side has no correlations at all.
    """
    if (real_labels is None) != (synthetic_labels is None):
        msg = "Give `real_labels` and `synthetic_labels`, or neither; found just one of them."
        raise ValueError(msg)
    check_same_number_of_genes(np.shape(real_values)[1], np.shape(synthetic_values)[1])
    return correlation(
        gene_correlations(real_values, real_labels), gene_correlations(synthetic_values, synthetic_labels)
    )


def library_size_ks(
    real: Cells | Expression | ArrayLike, synthetic: Cells | Expression | ArrayLike, *, layer: str | None = None
) -> float:
    r"""Return the Kolmogorov-Smirnov statistic between the total counts of real and synthetic cells.

    .. math:: \sup_l |F(l) - F'(l)|

    with the shares :math:`F` and :math:`F'` of cells that have at most :math:`l` counts. From 0 to 1; lower is better. Two sets of
    :math:`n` real cells have about :math:`0.87 \sqrt{2 / n}` by chance.

    *Catches* totals too large, too small, too alike or too spread. *Misses* everything else: which genes the counts are from, and
    whether large cells are of the right type (look at each label for that).

    Parameters
    ----------
    real, synthetic
        Total counts `(cells,)`, or counts `(cells, genes)`.
    layer
        Layer with the counts.

    Returns
    -------
    The statistic; NaN where cells came log-normalised, which have lost their totals.
    """
    real_sizes, synthetic_sizes = _library_sizes(real, layer, "real"), _library_sizes(synthetic, layer, "synthetic")
    if real_sizes is None or synthetic_sizes is None:
        return float("nan")
    return float(ks_2samp(real_sizes, synthetic_sizes, method="asymp").statistic)


def correlation(a: NDArray, b: NDArray) -> float:
    """Return Pearson's correlation; 0 where one side is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _both_statistics(
    real: Cells | Expression, synthetic: Cells | Expression, layer: str | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    of_real, of_synthetic = pair_of_expressions(real, synthetic, layer)
    return gene_statistics(of_real), gene_statistics(of_synthetic)


def _sums(values: sp.csr_matrix, power: int) -> NDArray[np.float64]:
    """Return every gene's sum over cells of a power of its values, of those above zero; summed exactly enough for variances."""
    total = np.zeros(values.shape[1])
    for start in range(0, values.shape[0], N_CELLS_AT_ONCE):
        first, last = values.indptr[[start, min(start + N_CELLS_AT_ONCE, values.shape[0])]]
        genes, found = values.indices[first:last], values.data[first:last].astype(np.float64)
        total += np.bincount(genes, np.where(found > 0, found**power, 0), minlength=len(total))
    return total


def _log_variances(statistics: pd.DataFrame) -> NDArray[np.float64]:
    return np.log10(np.maximum(statistics["variance"].to_numpy(), MIN_VARIANCE))


def _mean_variance_trend(statistics: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return means in ascending order, and the running median of the genes' log variances there."""
    statistics = statistics.sort_values("mean", kind="stable")
    n_neighbours = 2 * (len(statistics) // (2 * TREND_SHARE)) + 1
    return statistics["mean"].to_numpy(), median_filter(_log_variances(statistics), n_neighbours, mode="nearest")


def _library_sizes(cells: Cells | Expression | ArrayLike, layer: str | None, name: str) -> NDArray | None:
    if isinstance(cells, (AnnData, Expression)) or np.ndim(cells) == 2:
        return as_expression(cells, layer, name).library_sizes
    return np.asarray(cells)
