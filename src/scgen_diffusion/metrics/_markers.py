"""Marker genes: which genes set a label apart, and by how much, in real and in synthetic cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ._expression import align_genes, expression_of
from ._genes import correlation
from ._labels import labels_of

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from ._expression import Expression

MIN_CELLS = 10  # of a label on a side, for its markers to be compared
NEXT_TO_NOTHING = 1e-12  # standard errors below this come from rounding


@dataclass(frozen=True)
class GroupDifferences:
    """How every gene differs between the cells of a label and all other cells.

    Attributes
    ----------
    labels
        Names of the labels, sorted, `(labels,)`.
    n_cells
        Cells of each label, `(labels,)`.
    scores
        Welch's t, `(labels, genes)`.
    log_fold_changes
        To the base 2, `(labels, genes)`.
    """

    labels: NDArray
    n_cells: NDArray[np.intp]
    scores: NDArray[np.float64]
    log_fold_changes: NDArray[np.float64]

    def top(self, label: str, n_genes: int) -> NDArray[np.intp]:
        """Return the positions of a label's first marker genes, best first."""
        return np.argsort(-self.scores[self._row(label)], kind="stable")[:n_genes]

    def changes(self, label: str) -> NDArray[np.float64]:
        """Return a label's log fold changes, `(genes,)`."""
        return self.log_fold_changes[self._row(label)]

    def size(self, label: str) -> int:
        """Return the number of cells with a label, 0 if it does not occur."""
        return int(self.n_cells[self.labels == label].sum())

    def _row(self, label: str) -> int:
        return int(np.flatnonzero(self.labels == label)[0])


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
    tables = [
        pd.DataFrame(
            {
                "label": label,
                "rank": np.arange(1, len(top) + 1),
                "gene": cells.var_names[top],
                "score": differences.scores[row, top],
                "log_fold_change": differences.log_fold_changes[row, top],
            }
        )
        for row, label in enumerate(differences.labels)
        if np.isfinite(differences.scores[row]).all() and len(top := differences.top(label, n_genes))
    ]
    columns = ["label", "rank", "gene", "score", "log_fold_change"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


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
    synthetic = align_genes(synthetic, real.var_names)
    return compare_markers(
        group_differences(expression_of(real, layer=layer, name="real"), labels_of(real, groupby, name="real")),
        group_differences(
            expression_of(synthetic, layer=layer, name="synthetic"), labels_of(synthetic, groupby, name="synthetic")
        ),
        n_genes=n_genes,
    )


def compare_markers(real: GroupDifferences, synthetic: GroupDifferences, *, n_genes: int = 50) -> pd.DataFrame:
    """Return the table of :func:`marker_agreement` from the differences on both sides."""
    labels = [label for label in real.labels if real.size(label) >= MIN_CELLS]
    rows = [
        {
            "n_real": real.size(label),
            "n_synthetic": synthetic.size(label),
            **_agreement_of_label(real, synthetic, label, n_genes),
        }
        for label in labels
    ]
    columns = ["n_real", "n_synthetic", "overlap", "slope", "correlation"]
    return pd.DataFrame(rows, index=pd.Index(labels, name="label"), columns=columns)


def group_differences(expression: Expression, labels: NDArray) -> GroupDifferences:
    """Return how every label's cells differ from all others; sparse values stay sparse.

    Scores are NaN for labels with fewer than two cells, and where fewer than two cells are left; a gene that is constant has score 0.
    """
    names, codes, n_cells = np.unique(labels, return_inverse=True, return_counts=True)
    members = sp.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(len(names), len(codes)))
    values = expression.values.astype(np.float64)
    n_a, n_b = n_cells[:, None], len(codes) - n_cells[:, None]
    mean_a, mean_b = _means(members, values, n_a, n_b)
    square_a, square_b = _means(members, values.multiply(values).tocsr(), n_a, n_b)
    error = _squared_error(mean_a, square_a, n_a) + _squared_error(mean_b, square_b, n_b)
    difference = mean_a - mean_b
    scores = np.where(error > NEXT_TO_NOTHING, difference / np.sqrt(np.maximum(error, NEXT_TO_NOTHING)), 0.0)
    scores[((n_a < 2) | (n_b < 2)).ravel()] = np.nan
    of_profiles = _means(members, values.expm1(), n_a, n_b)
    return GroupDifferences(names, n_cells, scores, np.log2(1 + of_profiles[0]) - np.log2(1 + of_profiles[1]))


def _means(
    members: sp.csr_matrix, values: sp.csr_matrix, n_a: NDArray, n_b: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the means over the cells of every label and over all others, each `(labels, genes)`."""
    inside = (members @ values).toarray()
    outside = np.maximum(inside.sum(axis=0) - inside, 0)  # a rounding error below zero is no expression
    return inside / n_a, outside / np.maximum(n_b, 1)


def _squared_error(means: NDArray, mean_squares: NDArray, n_cells: NDArray) -> NDArray[np.float64]:
    """Return the squared standard error of a mean."""
    return np.maximum(mean_squares - means**2, 0) / np.maximum(n_cells - 1, 1)


def _agreement_of_label(
    real: GroupDifferences, synthetic: GroupDifferences, label: str, n_genes: int
) -> dict[str, float]:
    if synthetic.size(label) < MIN_CELLS or not _is_compared(real, label) or not _is_compared(synthetic, label):
        return dict.fromkeys(("overlap", "slope", "correlation"), float("nan"))
    markers, synthetic_markers = real.top(label, n_genes), synthetic.top(label, n_genes)
    union = np.union1d(markers, synthetic_markers)
    changes, synthetic_changes = real.changes(label)[union], synthetic.changes(label)[union]
    squared = changes @ changes
    return {
        "overlap": len(np.intersect1d(markers, synthetic_markers)) / len(markers),
        "slope": float(changes @ synthetic_changes / squared) if squared > 0 else float("nan"),
        "correlation": correlation(changes, synthetic_changes),
    }


def _is_compared(differences: GroupDifferences, label: str) -> bool:
    """Say whether there are cells with the label and cells without."""
    return bool(np.isfinite(differences.scores[differences._row(label)]).all())
