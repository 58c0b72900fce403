"""Genes: means, variances, zeros, correlations, total counts, and the markers that set labels apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.ndimage import median_filter
from scipy.stats import ks_2samp

from ._cells import (
    Cells,
    Expression,
    check_labels,
    check_same_number_of_genes,
    expression_of,
    labels_of,
    means,
    pair_of_expressions,
    variances,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MIN_VARIANCE = 1e-8  # stands for none: below what one count in a million cells gives
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
    values = expression_of(cells, layer=layer).values
    names = cells.var_names if isinstance(cells, AnnData) else pd.RangeIndex(values.shape[1])
    columns = {"mean": means(values), "variance": variances(values), "zero_fraction": 1 - means(values, power=0)}
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
    of_real, of_synthetic = map(gene_statistics, pair_of_expressions(real, synthetic, layer))
    mean, variance, zeros = (of_real - of_synthetic).abs().mean()
    return {"gene_mean_error": float(mean), "gene_variance_error": float(variance), "gene_zero_error": float(zeros)}


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
    of_real, of_synthetic = map(gene_statistics, pair_of_expressions(real, synthetic, layer))
    vary = (of_real["variance"] > MIN_VARIANCE).to_numpy()
    if not vary.any():
        return float("nan")
    of_real, of_synthetic = of_real[vary], of_synthetic[vary]
    ordered = of_real.sort_values("mean", kind="stable")
    n_neighbours = 2 * (len(ordered) // (2 * TREND_SHARE)) + 1
    trend = median_filter(_log_variances(ordered), n_neighbours, mode="nearest")
    excess = [
        _log_variances(statistics) - np.interp(statistics["mean"], ordered["mean"], trend)
        for statistics in (of_real, of_synthetic)
    ]
    return float(np.median(np.abs(excess[1] - excess[0])))


def _log_variances(statistics: pd.DataFrame) -> NDArray[np.float64]:
    return np.log10(np.maximum(statistics["variance"].to_numpy(), MIN_VARIANCE))


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
    labels = np.zeros(len(values), int) if labels is None else check_labels(labels, len(values), "labels")
    residuals = unit_residuals(values, labels)
    return (residuals.T @ residuals)[np.triu_indices(residuals.shape[1], 1)]


def unit_residuals(values: NDArray, labels: NDArray) -> NDArray[np.float64]:
    """Return values less their label's mean, of length 1 over cells, so that products are correlations; zeros for what does not vary."""
    residuals = np.array(values, dtype=np.float64)
    for label in np.unique(labels):
        residuals[labels == label] -= residuals[labels == label].mean(axis=0)
    norms = np.linalg.norm(residuals, axis=0)
    return residuals / np.where(norms > 1e-8, norms, np.inf)


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
    sizes = [
        expression_of(cells, layer=layer, name=name).library_sizes
        if isinstance(cells, AnnData | Expression) or np.ndim(cells) == 2
        else np.asarray(cells)
        for name, cells in {"real": real, "synthetic": synthetic}.items()
    ]
    if any(own is None for own in sizes):
        return float("nan")
    return float(ks_2samp(*sizes, method="asymp").statistic)


def correlation(a: NDArray, b: NDArray) -> float:
    """Return Pearson's correlation; 0 where one side is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


MIN_CELLS = 10  # of a label on a side, for its markers to be compared
NEXT_TO_NOTHING = 1e-12  # standard errors below this come from rounding


@dataclass(frozen=True)
class GroupDifferences:
    """How every gene differs between the cells of a label and all other cells.

    Attributes
    ----------
    n_cells
        Cells of each label.
    scores
        Welch's t, labels in rows and genes in columns; NaN for labels with fewer than two cells, or with all but one.
    changes
        Log fold changes to the base 2, likewise.
    """

    n_cells: pd.Series
    scores: pd.DataFrame
    changes: pd.DataFrame

    def has_scores(self, label: str) -> bool:
        """Say whether there are cells with the label and cells without."""
        return bool(np.isfinite(self.scores.loc[label]).all())

    def top(self, label: str, n_genes: int) -> NDArray[np.intp]:
        """Return the positions of a label's first marker genes, best first."""
        return np.argsort(-self.scores.loc[label].to_numpy(), kind="stable")[:n_genes]


def marker_genes(cells: AnnData, groupby: str, *, n_genes: int = 50, layer: str | None = None) -> pd.DataFrame:
    r"""Return every label's marker genes: those most clearly higher in its cells than in all others.

    Genes are ranked by Welch's t between the label's cells (:math:`a`) and all others (:math:`b`), as scanpy's
    `rank_genes_groups(method="t-test")` does; the log fold change is that of mean expression, with one count in 10 000 added:

    .. math:: t_g = \frac{m_{ag} - m_{bg}}{\sqrt{s_{ag}^2 / n_a + s_{bg}^2 / n_b}}, \qquad
        \text{change}_g = \log_2 \frac{1 + \operatorname{mean}_a (e^{y_g} - 1)}{1 + \operatorname{mean}_b (e^{y_g} - 1)}

    with mean :math:`m` and unbiased variance :math:`s^2` of log-normalised values :math:`y`. The added count keeps changes of genes
    that are hardly expressed near 0, where they would be infinite.

    Parameters
    ----------
    cells
        Cells with a label in `obs`; left as they are.
    groupby
        Column of `obs` with the labels.
    n_genes
        Markers per label; fewer where there are fewer genes.
    layer
        Layer with the counts.

    Returns
    -------
    A row per marker, best first within each label: `label`, `rank` (from 1), `gene`, `score` (Welch's t), `log_fold_change`.
    Labels with fewer than two cells, or with all cells, have no rows.

    See Also
    --------
    marker_agreement : the same genes in real and synthetic cells?
    """
    labels = labels_of(cells, groupby, name="cells")
    differences = group_differences(expression_of(cells, layer=layer), labels)
    tables = [pd.DataFrame(columns=["label", "rank", "gene", "score", "log_fold_change"])]
    for label in filter(differences.has_scores, differences.scores.index):
        top = differences.top(label, n_genes)
        columns = {"label": label, "rank": np.arange(1, len(top) + 1), "gene": cells.var_names[top]}
        columns["score"] = differences.scores.loc[label].to_numpy()[top]
        columns["log_fold_change"] = differences.changes.loc[label].to_numpy()[top]
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables[1:], ignore_index=True) if tables[1:] else tables[0]


def marker_agreement(
    real: AnnData, synthetic: AnnData, *, groupby: str, n_genes: int = 50, layer: str | None = None
) -> pd.DataFrame:
    r"""Return how well synthetic cells have the marker genes of real cells, label by label.

    With a label's first :math:`k` markers :math:`M` in real and :math:`M'` in synthetic cells (:func:`marker_genes`), and log fold
    changes :math:`c_g` and :math:`c_g'` of the genes in :math:`M \cup M'`:

    .. math:: \text{overlap} = \frac{|M \cap M'|}{k}, \qquad \text{slope} = \frac{\sum_g c_g\, c_g'}{\sum_g c_g^2}, \qquad
        \text{correlation} = \operatorname{corr}_g(c_g, c_g')

    Overlap lies in 0 to 1 (higher is better); the slope is 1 where changes are as large as in real cells, below 1 where labels are
    less distinct, above 1 where they are overdone (strong guidance); the correlation lies in -1 to 1 (higher is better).

    *Catches* labels that are not followed or swapped, labels that differ in the wrong genes or too little. *Misses* how cells of one
    label differ from each other, correlations, zeros, and memorisation. The overlap of weak markers is noisy: read it beside a floor.

    Parameters
    ----------
    real, synthetic
        Cells with a label in `obs`; of the synthetic ones, the label asked for. Left as they are.
    groupby
        Column of `obs` with the labels.
    n_genes
        Markers per label.
    layer
        Layer with the counts.

    Returns
    -------
    A row per label that at least 10 real cells have: `n_real`, `n_synthetic`, `overlap`, `slope`, `correlation`; the last three are
    NaN where fewer than 10 synthetic cells, or all of a side, have the label.

    References
    ----------
    Soneson and Robinson 2018, Bias, robustness and scalability in single-cell differential expression analysis.
    """
    labels = labels_of(real, groupby, name="real"), labels_of(synthetic, groupby, name="synthetic")
    return compare_markers(
        *map(group_differences, pair_of_expressions(real, synthetic, layer), labels), n_genes=n_genes
    )


def compare_markers(real: GroupDifferences, synthetic: GroupDifferences, *, n_genes: int = 50) -> pd.DataFrame:
    """Return the table of :func:`marker_agreement` from the differences on both sides."""
    columns = ["n_real", "n_synthetic", "overlap", "slope", "correlation"]
    rows = {}
    for label, n_real in real.n_cells[real.n_cells >= MIN_CELLS].items():
        n_synthetic = synthetic.n_cells.get(label, 0)
        rows[label] = [n_real, n_synthetic, *[float("nan")] * 3]
        if n_synthetic < MIN_CELLS or not (real.has_scores(label) and synthetic.has_scores(label)):
            continue
        markers, synthetic_markers = real.top(label, n_genes), synthetic.top(label, n_genes)
        union = np.union1d(markers, synthetic_markers)
        changes, synthetic_changes = (side.changes.loc[label].to_numpy()[union] for side in (real, synthetic))
        overlap = len(np.intersect1d(markers, synthetic_markers)) / len(markers)
        squared = changes @ changes
        slope = changes @ synthetic_changes / squared if squared > 0 else float("nan")
        rows[label][2:] = [overlap, slope, correlation(changes, synthetic_changes)]
    index = pd.Index(list(rows), name="label", dtype=object)
    return pd.DataFrame(list(rows.values()), index=index, columns=columns)


def group_differences(expression: Expression, labels: NDArray) -> GroupDifferences:
    """Return how every label's cells differ from all others; sparse values stay sparse, and a gene that is constant has score 0."""
    names, codes, n_cells = np.unique(labels, return_inverse=True, return_counts=True)
    members = sp.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(len(names), len(codes)))
    values = expression.values.astype(np.float64)
    n_a, n_b = n_cells[:, None], len(codes) - n_cells[:, None]

    def means(values: sp.csr_matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the means over the cells of every label and over all others, each `(labels, genes)`."""
        inside = (members @ values).toarray()
        outside = np.maximum(inside.sum(axis=0) - inside, 0)  # a rounding error below zero is no expression
        return inside / n_a, outside / np.maximum(n_b, 1)

    (mean_a, mean_b), squares = means(values), means(values.multiply(values).tocsr())
    variances = [np.maximum(square - mean**2, 0) for square, mean in zip(squares, (mean_a, mean_b), strict=True)]
    error = variances[0] / np.maximum(n_a - 1, 1) + variances[1] / np.maximum(n_b - 1, 1)
    scores = np.where(error > NEXT_TO_NOTHING, (mean_a - mean_b) / np.sqrt(np.maximum(error, NEXT_TO_NOTHING)), 0.0)
    scores[((n_a < 2) | (n_b < 2)).ravel()] = np.nan
    profile_a, profile_b = means(values.expm1())
    changes = np.log2(1 + profile_a) - np.log2(1 + profile_b)
    index = pd.Index(names, dtype=object)
    return GroupDifferences(
        pd.Series(n_cells, index=index), pd.DataFrame(scores, index=index), pd.DataFrame(changes, index=index)
    )
