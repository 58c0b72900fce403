"""Metrics of genes: means, variances, zeros, correlations, total counts, and marker genes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.ndimage import median_filter
from scipy.stats import ks_2samp

from ._cells import Cells, Expression, expression_of, labels_of, means, pair_of_expressions, shares_expressed, variances
from ._comparison import ALL, MIN_CELLS_PER_GROUP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

MIN_CELLS_OF_MARKERS = 10  # of a label on either side
ROUNDING_ERROR = 1e-12  # squared standard errors below this come from rounding
MIN_VARIANCE = 1e-8  # treated as no variance: less than one count in a million cells
N_DIVISIONS = 5  # of real cells into halves, whose correlations are compared
N_DEVIATIONS = 2  # by which what halves have in common must exceed 0
TREND_SHARE = 20  # the trend is a running median over one twentieth of the genes


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
    A row per gene: `mean` and `variance` of log-normalised values (natural logarithms), and `zero_fraction` from 0 to
    1. The index holds the gene names, or positions if the cells have no names.
    """
    values = expression_of(cells, layer=layer).values
    names = cells.var_names if isinstance(cells, AnnData) else pd.RangeIndex(values.shape[1])
    columns = {"mean": means(values), "variance": variances(values), "zero_fraction": 1 - shares_expressed(values)}
    return pd.DataFrame(columns, index=names)


def gene_profile_errors(
    real: Cells | Expression, synthetic: Cells | Expression, *, layer: str | None = None
) -> dict[str, float]:
    r"""Measure how far the genes' means, variances and shares of zeros are from the real ones.

    .. math:: \frac{1}{G} \sum_g |s_g - s_g'|, \qquad s \in \{m, v, z\}

    with the statistics of :func:`gene_statistics`. From 0 (all genes agree) upwards, at most 1 for zeros; lower is
    better.

    *Catches* shifted genes, missing or added dropout, cells that lack spread, and genes scaled wrongly against others.
    *Misses* everything between genes: shuffling each gene over the cells changes nothing. A wrong total count changes
    only the zeros. Many barely expressed genes make the mean error small.

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
    r"""Distance of variances from real genes of the same mean, in powers of ten. Misses shifted means.

    .. math:: \operatorname{median}_g \Bigl| \log_{10} \frac{v_g'}{T(m_g')} - \log_{10} \frac{v_g}{T(m_g)} \Bigr|

    with mean :math:`m_g` and variance :math:`v_g` of a gene's log-normalised values in real cells, :math:`m_g'` and
    :math:`v_g'` in synthetic cells, and the trend :math:`T`, a running median of the real variances along the means.
    Genes that do not vary in real cells are left out. From 0 upwards; lower is better; 0.3 means a factor of two for
    half of the genes or more.

    *Catches* noise that does not fit the expression level: cells that are too smooth (decoded means instead of draws),
    too much or too little overdispersion. *Misses* shifted means, which it corrects for, everything between genes, and
    errors in fewer than half of the genes.

    Parameters
    ----------
    real, synthetic
        Counts of the same genes, `(cells, genes)`.
    layer
        Layer with the counts.

    Returns
    -------
    The error; NaN if no gene varies in real cells.

    References
    ----------
    Brennecke et al. 2013, Accounting for technical noise in single-cell RNA-seq experiments (the mean-variance
    relation).
    """
    of_real, of_synthetic = map(gene_statistics, pair_of_expressions(real, synthetic, layer))
    vary = (of_real["variance"] > MIN_VARIANCE).to_numpy()
    if not vary.any():
        return np.nan
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
    r"""Return the correlations between genes that remain after subtracting every label's mean.

    .. math:: r_{gh} = \frac{\sum_i e_{ig}\, e_{ih}}{\sqrt{\sum_i e_{ig}^2\, \sum_i e_{ih}^2}}, \qquad
        e_{ig} = y_{ig} - \bar y_{g, \text{label of } i}

    Without labels, differences between cell types cause most of the correlations. With labels, what remains is how
    genes vary together within a type. A constant gene has correlation 0 with every other.

    Parameters
    ----------
    values
        Log-normalised values, dense, `(cells, genes)`. Use a few hundred genes: the result grows with their square.
    labels
        Labels of the cells, `(cells,)`; None subtracts the mean over all cells.

    Returns
    -------
    Correlations from -1 to 1, `(genes * (genes - 1) / 2,)`, with the pairs in the order of :func:`numpy.triu_indices`.
    """
    residuals = unit_residuals(values, labels)
    return (residuals.T @ residuals)[np.triu_indices(residuals.shape[1], 1)]


def unit_residuals(values: NDArray, labels: ArrayLike | None) -> NDArray[np.float64]:
    """Return values minus their label's mean, scaled to length 1 over cells, so that products are correlations."""
    residuals = np.array(values, dtype=np.float64)
    labels = np.zeros(len(residuals)) if labels is None else np.asarray(labels)
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
    r"""Measure whether the same genes vary together: Pearson's correlation of the gene-gene correlations.

    .. math:: \operatorname{corr}_{g < h} \bigl( r_{gh}, r_{gh}' \bigr)

    with :func:`gene_correlations` of real and synthetic cells. From -1 to 1; higher is better. Correlations between
    sparse genes are noisy, so even new real cells do not reach 1: read it next to its real value.

    *Catches* genes that are shuffled or drawn independently, and lost or invented gene programmes. *Misses* the
    strength of the correlations (all halved still scores 1; :func:`gene_correlation_slope` sees it), and everything
    about single genes: means, variances, zeros. Types vary in different genes, so other shares of labels lower it:
    compare cells with equal shares.

    Parameters
    ----------
    real_values, synthetic_values
        Log-normalised values of the same few hundred genes, dense, `(cells, genes)`.
    real_labels, synthetic_labels
        Labels of the cells, to look within labels; None on both sides looks at all cells together.

    Returns
    -------
    The similarity; 0 if one side has no correlations at all.
    """
    return correlation(
        gene_correlations(real_values, real_labels), gene_correlations(synthetic_values, synthetic_labels)
    )


def gene_correlation_slope(
    real_values: NDArray,
    synthetic_values: NDArray,
    real_labels: ArrayLike | None = None,
    synthetic_labels: ArrayLike | None = None,
) -> float:
    r"""Measure whether genes vary together as strongly as in real cells.

    .. math:: \frac{\sum_{g < h} r_{gh}\, r_{gh}'}{\sum_{g < h} r_{gh}^{(1)}\, r_{gh}^{(2)}}

    with :func:`gene_correlations` :math:`r` of real and :math:`r'` of synthetic cells, and :math:`r^{(1)}, r^{(2)}` of
    two random halves of the real cells, whose errors are independent. So sampling noise does not weaken the slope: it
    is about 1 for other real cells, below 1 if correlations are too weak, and above 1 if they are too strong. The sum
    over pairs is averaged over five divisions into halves.

    *Catches* cells that share too little, because a model takes for noise what genes have in common. *Misses* which
    genes vary together (:func:`gene_correlation_similarity` sees it), and everything about single genes. Other
    shares of labels change it, too.

    Parameters
    ----------
    real_values, synthetic_values
        Log-normalised values of the same few hundred genes, dense, `(cells, genes)`.
    real_labels, synthetic_labels
        Labels of the cells, to look within labels; None on both sides looks at all cells together.

    Returns
    -------
    The slope; NaN if the real cells are too few, or too sparse, to have clear correlations in common.
    """
    real_values = np.asarray(real_values)
    labels = np.zeros(len(real_values)) if real_labels is None else np.asarray(real_labels)
    in_common = [_shared_correlation(real_values, labels, seed) for seed in range(N_DIVISIONS)]
    if np.mean(in_common) <= N_DEVIATIONS * np.std(in_common, ddof=1):
        return np.nan
    real = gene_correlations(real_values, real_labels)
    return float(real @ gene_correlations(synthetic_values, synthetic_labels) / np.mean(in_common))


def _shared_correlation(values: NDArray, labels: NDArray, seed: int) -> float:
    """Return the sum over pairs of genes of the products of their correlations in two halves of each label."""
    order = np.random.default_rng(seed).permutation(len(values))
    order = order[np.argsort(labels[order], kind="stable")]
    first, second = (gene_correlations(values[rows], labels[rows]) for rows in (order[::2], order[1::2]))
    return float(first @ second)


def library_size_ks(real: Cells | Expression, synthetic: Cells | Expression, *, layer: str | None = None) -> float:
    r"""Largest gap between the distributions of total counts. Misses whether large cells have the right type.

    The Kolmogorov-Smirnov statistic:

    .. math:: \sup_l |F(l) - F'(l)|

    with the shares :math:`F` and :math:`F'` of cells that have at most :math:`l` counts. From 0 (equal) to 1; lower is
    better. By chance, two sets of :math:`n` real cells score about :math:`0.87 \sqrt{2 / n}`.

    *Catches* totals that are too large, too small, too similar or too spread out. *Misses* everything else: which genes
    the counts belong to, and whether the large cells have the right type (look at each label for that).

    Parameters
    ----------
    real, synthetic
        Counts of the same genes, `(cells, genes)`.
    layer
        Layer with the counts; generated cells may have them in `X` instead.

    Returns
    -------
    The statistic; NaN if the cells came log-normalised, because their totals are lost.

    Raises
    ------
    ValueError
        If the genes differ.
    """
    sizes = [cells.library_sizes for cells in pair_of_expressions(real, synthetic, layer)]
    if any(own is None for own in sizes):
        return np.nan
    return float(ks_2samp(*sizes, method="asymp").statistic)


def correlation(a: NDArray, b: NDArray) -> float:
    """Return Pearson's correlation; 0 if one side is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def gene_differences(
    real: AnnData, synthetic: AnnData, *, groupby: str | Sequence[str] | None = None, layer: str | None = None
) -> pd.DataFrame:
    r"""Return how every gene's mean differs between real and synthetic cells, the clearest differences first.

    Welch's t of log-normalised values :math:`y`, with mean :math:`m` and unbiased variance :math:`s^2`:

    .. math:: t_g = \frac{m_g' - m_g}{\sqrt{s_g^2 / n + s_g'^2 / n'}}

    It shows genes that are lost or exaggerated, of which averages over all genes tell nothing. Of thousands of genes,
    some have a t of 4 by chance. With many cells, small differences are clear, too: compare the means.

    Parameters
    ----------
    real, synthetic
        Cells with the same genes; they are not changed.
    groupby
        Column of `obs`, or several, with the labels to compare apart; for synthetic cells, those they were generated
        for. Default: all cells at once, which hides differences within labels.
    layer
        Layer with the counts.

    Returns
    -------
    A row per gene and label with at least 30 cells on both sides, sorted by the size of t: `group`, `gene`, `real` and
    `synthetic` (means), `real_share` and `synthetic_share` (of the cells in which the gene is seen), and `t`, above
    zero if synthetic cells have more, and 0 for a gene without variance on both sides.

    Raises
    ------
    KeyError
        If a column or the layer is missing.
    ValueError
        If the genes differ, a cell has no label, or no label has enough cells on both sides.

    See Also
    --------
    gene_profile_errors : single figures for all cells.
    gene_changes : changes between perturbed and control cells.

    Examples
    --------
    >>> import scgen_diffusion as scgd
    >>> cells = scgd.datasets.pbmc68k_reduced()
    >>> real, synthetic = cells[:350], cells[350:].copy()
    >>> is_kept = cells.var_names != "CD79A"
    >>> synthetic.layers["counts"] = synthetic.layers["counts"].multiply(is_kept).tocsr()
    >>> table = scgd.metrics.gene_differences(real, synthetic, layer="counts")
    >>> table["gene"][0]
    'CD79A'
    """
    sides = pair_of_expressions(real, synthetic, layer)
    of_cells = [np.full(len(side), ALL) for side in sides]
    if groupby:
        of_cells = [labels_of(cells, groupby, name=name) for cells, name in ((real, "real"), (synthetic, "synthetic"))]
    sizes = pd.concat([count_labels(labels) for labels in of_cells], axis=1).min(axis=1, skipna=False)
    tables = []
    for label in sizes.index[sizes >= MIN_CELLS_PER_GROUP]:
        first, second = (side.values[labels == label] for side, labels in zip(sides, of_cells, strict=True))
        columns = {"group": label, "gene": real.var_names, "real": means(first), "synthetic": means(second)}
        columns |= {"real_share": shares_expressed(first), "synthetic_share": shares_expressed(second)}
        error = sum(variances(values) / (values.shape[0] - 1) for values in (first, second))
        difference = columns["synthetic"] - columns["real"]
        t = np.where(error > ROUNDING_ERROR, difference / np.sqrt(np.maximum(error, ROUNDING_ERROR)), 0.0)
        tables.append(pd.DataFrame({**columns, "t": t}))
    if not tables:
        msg = f"Comparing genes of `groupby={groupby!r}` needs {MIN_CELLS_PER_GROUP} cells of one label on both sides."
        raise ValueError(msg)
    table = pd.concat(tables)
    return table.iloc[np.argsort(-table["t"].abs(), kind="stable")].reset_index(drop=True)


@dataclass(frozen=True)
class GroupDifferences:
    """How every gene differs between the cells of a label and all other cells.

    Attributes
    ----------
    n_cells
        Number of cells of each label; for a half-sample, of all cells.
    scores
        Welch's t, with labels in rows and genes in columns, for labels with enough cells and two or more others.
    changes
        Log2 fold changes, in the same layout.
    """

    n_cells: pd.Series
    scores: pd.DataFrame
    changes: pd.DataFrame

    def top(self, label: str, n_genes: int) -> NDArray[np.intp]:
        """Return the positions of a label's top marker genes, best first."""
        return np.argsort(-self.scores.loc[label].to_numpy(), kind="stable")[:n_genes]


def marker_genes(cells: AnnData, groupby: str, *, n_genes: int = 50, layer: str | None = None) -> pd.DataFrame:
    r"""Return every label's marker genes: those most clearly higher in its cells than in all others.

    Genes are ranked by Welch's t between the label's cells (:math:`a`) and all others (:math:`b`), as in scanpy's
    `rank_genes_groups(method="t-test")`. The log fold change compares mean expression, with one count in 10,000 added:

    .. math:: t_g = \frac{m_{ag} - m_{bg}}{\sqrt{s_{ag}^2 / n_a + s_{bg}^2 / n_b}}, \qquad
        \text{change}_g = \log_2 \frac{1 + \operatorname{mean}_a (e^{y_g} - 1)}{1 + \operatorname{mean}_b (e^{y_g} - 1)}

    with mean :math:`m` and unbiased variance :math:`s^2` of log-normalised values :math:`y`. The added count keeps the
    changes of barely expressed genes finite and close to 0.

    Parameters
    ----------
    cells
        Cells with a label in `obs`; they are not changed.
    groupby
        Column of `obs` with the labels.
    n_genes
        Markers per label. With fewer genes, all are returned, also those that are lower in the label (score below 0).
    layer
        Layer with the counts.

    Returns
    -------
    A row per marker, best first within each label: `label`, `rank` (from 1), `gene`, `score` (Welch's t),
    `log_fold_change`. Labels with fewer than two cells, or fewer than two other cells, have no rows.

    See Also
    --------
    marker_agreement : compare the markers of real and synthetic cells.
    """
    labels = labels_of(cells, groupby, name="cells")
    differences = group_differences(expression_of(cells, layer=layer), labels, min_cells=2)
    rows = []
    for label in differences.scores.index:
        top = differences.top(label, n_genes)
        found = cells.var_names[top], differences.scores.loc[label].iloc[top], differences.changes.loc[label].iloc[top]
        rows += [(label, rank, *values) for rank, values in enumerate(zip(*found, strict=True), start=1)]
    return pd.DataFrame(rows, columns=["label", "rank", "gene", "score", "log_fold_change"])


def marker_agreement(
    real: AnnData, synthetic: AnnData, *, groupby: str, n_genes: int = 50, layer: str | None = None
) -> pd.DataFrame:
    r"""Measure whether synthetic cells have the marker genes of real cells, label by label.

    With a label's top :math:`k` markers :math:`M` in real and :math:`M'` in synthetic cells (:func:`marker_genes`), and
    log fold changes :math:`c_g` and :math:`c_g'` of the genes in :math:`M \cup M'`:

    .. math:: \text{overlap} = \frac{|M \cap M'|}{k}, \qquad
        \text{slope} = \frac{\sum_g c_g\, c_g'}{\sum_g c_g^2}, \qquad
        \text{correlation} = \operatorname{corr}_g(c_g, c_g')

    Overlap is between 0 and 1 (higher is better). The slope is 1 if changes are as large as in real cells, below 1 if
    labels are less distinct, and above 1 if they are exaggerated (strong guidance). The correlation is between -1 and 1
    (higher is better).

    *Catches* labels that are ignored or swapped, and labels that differ in the wrong genes or too little. *Misses* how
    cells of one label differ from each other, correlations, zeros, and memorisation. Noise of the real changes lowers
    the overlap and the slope, also of real cells: read them next to their real values. A label's markers depend on the
    cells that it is compared with, so other shares of labels change them: compare cells with equal shares.

    Parameters
    ----------
    real, synthetic
        Cells with a label in `obs`; for synthetic cells, the label they were generated for. They are not changed.
    groupby
        Column of `obs` with the labels.
    n_genes
        Markers per label. Choose far fewer than there are genes: if all are markers, the overlap is always 1.
    layer
        Layer with the counts.

    Returns
    -------
    A row per label with at least 10 real cells: `n_real`, `n_synthetic`, `overlap`, `slope`, `correlation`. The last
    three are NaN if fewer than 10 synthetic cells, or all cells of a side, have the label; the overlap is 0 if no
    synthetic cell has it.

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
    rows: dict[str, dict[str, float]] = {}
    for label, n_real in real.n_cells[real.n_cells >= MIN_CELLS_OF_MARKERS].items():
        rows[label] = row = {"n_real": n_real, "n_synthetic": synthetic.n_cells.get(label, 0)}
        if label not in real.scores.index:
            continue
        if row["n_synthetic"] == 0:
            row["overlap"] = 0.0  # its markers are lost
        if label not in synthetic.scores.index:
            continue
        markers, synthetic_markers = real.top(label, n_genes), synthetic.top(label, n_genes)
        union = np.union1d(markers, synthetic_markers)
        changes, synthetic_changes = (side.changes.loc[label].to_numpy()[union] for side in (real, synthetic))
        row["overlap"] = len(np.intersect1d(markers, synthetic_markers)) / len(markers)
        squared = changes @ changes
        row["slope"] = changes @ synthetic_changes / squared if squared > 0 else np.nan
        row["correlation"] = correlation(changes, synthetic_changes)
    columns = ["n_real", "n_synthetic", "overlap", "slope", "correlation"]
    return pd.DataFrame(list(rows.values()), index=pd.Index(list(rows), name="label", dtype=object), columns=columns)


def count_labels(labels: NDArray) -> pd.Series:
    """Return the number of cells of each label."""
    names, sizes = np.unique(labels, return_counts=True)
    return pd.Series(sizes, index=pd.Index(names, dtype=object))


def group_differences(
    expression: Expression,
    labels: NDArray,
    *,
    min_cells: int = MIN_CELLS_OF_MARKERS,
    sizes: pd.Series | None = None,
    n_of_all: int | None = None,
) -> GroupDifferences:
    """Return how the cells of every label with `min_cells` differ from all others. Constant genes have score 0.

    For a half-sample, ``sizes`` counts the labels of all cells, so that it has the same labels. Only the first
    ``n_of_all`` cells are the others of a label; the rest was added for rare labels, which it would make frequent.
    """
    names, codes, n_cells = np.unique(labels, return_inverse=True, return_counts=True)
    sizes = count_labels(labels) if sizes is None else sizes
    wanted = (sizes[names] >= min_cells).to_numpy() & (n_cells > 1)
    members = sp.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(len(names), len(codes)))
    members, values = members[wanted], expression.values.astype(np.float64)
    n_of_all = len(codes) if n_of_all is None else n_of_all
    added = members[:, n_of_all:]
    n_a = n_cells[wanted, None]
    n_b = n_of_all - (n_a - np.asarray(added.sum(axis=1)))

    def inside_and_outside(values: sp.csr_matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the means over the cells of every wanted label and over all others, each `(labels, genes)`."""
        inside = (members @ values).toarray()
        of_all = inside - (added @ values[n_of_all:]).toarray()
        # rounding can give values below zero
        outside = np.maximum(np.asarray(values[:n_of_all].sum(axis=0)) - of_all, 0)
        return inside / n_a, outside / np.maximum(n_b, 1)

    mean_a, mean_b = inside_and_outside(values)
    square_a, square_b = inside_and_outside(values.multiply(values).tocsr())
    variance_a, variance_b = (np.maximum(part, 0) for part in (square_a - mean_a**2, square_b - mean_b**2))
    error = variance_a / (n_a - 1) + variance_b / np.maximum(n_b - 1, 1)
    scores = np.where(error > ROUNDING_ERROR, (mean_a - mean_b) / np.sqrt(np.maximum(error, ROUNDING_ERROR)), 0.0)
    profile_a, profile_b = inside_and_outside(values.expm1())
    changes = np.log2(1 + profile_a) - np.log2(1 + profile_b)
    index = pd.Index(names, dtype=object)
    tables = (pd.DataFrame(values, index=index[wanted])[(n_b > 1).ravel()] for values in (scores, changes))
    return GroupDifferences(sizes, *tables)
