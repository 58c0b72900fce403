"""Known corruptions of real cells, which a metric should or should not detect.

Every function returns new cells and does not change its arguments. Counts are read from and written to ``X`` and
``layers["counts"]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from numpy.typing import NDArray

LABEL_KEY = "cell_type"

#: Function of cells, training cells and a random generator.
Corruption: TypeAlias = "Callable[[AnnData, AnnData, np.random.Generator], AnnData]"


def counts_of(cells: AnnData) -> NDArray[np.float32]:
    """Return the counts, dense, `(cells, genes)`."""
    counts = cells.layers["counts"]
    return np.asarray(counts.toarray() if sp.issparse(counts) else counts, dtype=np.float32)


def with_counts(cells: AnnData, counts: NDArray) -> AnnData:
    """Return the cells with other counts."""
    changed = cells.copy()
    changed.X = sp.csr_matrix(counts, dtype=np.float32)
    changed.layers["counts"] = changed.X.copy()
    return changed


def labels_of(cells: AnnData) -> NDArray[np.str_]:
    """Return each cell's label."""
    return cells.obs[LABEL_KEY].astype(str).to_numpy(dtype=str)


def with_labels(cells: AnnData, labels: NDArray) -> AnnData:
    """Return the cells with other labels."""
    changed = cells.copy()
    changed.obs[LABEL_KEY] = labels
    return changed


def drop_counts(cells: AnnData, rng: np.random.Generator, *, share: float) -> AnnData:
    """Set a share of the entries above zero to zero: dropout."""
    counts = counts_of(cells)
    return with_counts(cells, counts * (rng.random(counts.shape) >= share))


def thin_counts(cells: AnnData, rng: np.random.Generator, *, share: float) -> AnnData:
    """Keep a share of the counts, drawn binomially: shallower sequencing."""
    return with_counts(cells, rng.binomial(counts_of(cells).astype(int), share))


def multiply_counts(cells: AnnData, *, factor: int) -> AnnData:
    """Multiply all counts: totals change, profiles and zeros do not."""
    return with_counts(cells, counts_of(cells) * factor)


def shuffle_genes(cells: AnnData, rng: np.random.Generator, *, within_label: bool) -> AnnData:
    """Shuffle every gene's counts among all cells, or among those of a label: the correlations are lost."""
    counts = counts_of(cells)
    groups = labels_of(cells) if within_label else np.zeros(len(counts))
    for group in np.unique(groups):
        rows = groups == group
        counts[rows] = rng.permuted(counts[rows], axis=0)
    return with_counts(cells, counts)


def drop_label(cells: AnnData, *, rank: int = 1) -> AnnData:
    """Leave out the cells of a label, by its frequency rank (0 is the most frequent)."""
    labels = labels_of(cells)
    return cells[labels != _by_frequency(labels)[rank]].copy()


def swap_labels(cells: AnnData) -> AnnData:
    """Swap the two most frequent labels."""
    labels = labels_of(cells)
    first, second = _by_frequency(labels)[:2]
    return with_labels(cells, np.select([labels == first, labels == second], [second, first], labels))


def copy_cells(cells: AnnData, others: AnnData, rng: np.random.Generator, *, share: float) -> AnnData:
    """Replace a share of the cells, labels included, with copies of others, each used once."""
    n_copied = min(round(share * cells.n_obs), others.n_obs)
    rows = rng.choice(cells.n_obs, n_copied, replace=False)
    sources = rng.choice(others.n_obs, n_copied, replace=False)
    counts, labels = counts_of(cells), labels_of(cells).astype(object)
    counts[rows], labels[rows] = counts_of(others[sources]), labels_of(others[sources])
    return with_labels(with_counts(cells, counts), labels.astype(str))


def copy_roughly(cells: AnnData, others: AnnData, rng: np.random.Generator, *, share: float, kept: float) -> AnnData:
    """Replace a share of the cells with copies of others that have lost some of their counts."""
    return copy_cells(cells, thin_counts(others, rng, share=kept), rng, share=share)


def duplicate_cells(cells: AnnData, rng: np.random.Generator, *, share: float) -> AnnData:
    """Replace a share of the cells with copies of others of the same set."""
    order = rng.permutation(cells.n_obs)
    n_copied = round(share * cells.n_obs)
    rows = np.arange(cells.n_obs)
    rows[order[:n_copied]] = order[n_copied : 2 * n_copied]
    return with_labels(with_counts(cells, counts_of(cells)[rows]), labels_of(cells)[rows])


def add_ambient(cells: AnnData, rng: np.random.Generator, *, share: float) -> AnnData:
    """Add counts of the mean profile of all cells, a share of each cell's total: ambient RNA."""
    counts = counts_of(cells)
    profile = counts.sum(axis=0, dtype=np.float64) / counts.sum(dtype=np.float64)
    return with_counts(cells, counts + rng.poisson(share * counts.sum(axis=1, keepdims=True) * profile))


def multiply_noise(cells: AnnData, rng: np.random.Generator, *, sd: float) -> AnnData:
    """Multiply every count by log-normal noise and round: zeros and means hardly change, the spread grows."""
    counts = counts_of(cells)
    return with_counts(cells, np.rint(counts * np.exp(sd * rng.normal(size=counts.shape) - sd**2 / 2)))


def draw_from_means(cells: AnnData, rng: np.random.Generator) -> AnnData:
    """Replace every cell by a Poisson draw from its label's mean: cells differ only by their label."""
    counts, labels = counts_of(cells), labels_of(cells)
    for label in np.unique(labels):
        rows = labels == label
        counts[rows] = rng.poisson(counts[rows].mean(axis=0, dtype=np.float64), (rows.sum(), counts.shape[1]))
    return with_counts(cells, counts)


def average_cells(cells: AnnData, rng: np.random.Generator, *, n_cells: int) -> AnnData:
    """Replace every cell by the rounded mean of itself and random cells of its label: too smooth."""
    counts, labels = counts_of(cells), labels_of(cells)
    averaged = counts.copy()
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        partners = rng.choice(rows, (len(rows), n_cells - 1))
        averaged[rows] = (counts[rows] + counts[partners].sum(axis=1)) / n_cells
    return with_counts(cells, np.floor(averaged + rng.random(averaged.shape)))


def _by_frequency(labels: NDArray) -> NDArray:
    names, sizes = np.unique(labels, return_counts=True)
    return names[np.argsort(-sizes, kind="stable")]


#: The corruptions, by name in the table.
CORRUPTIONS: dict[str, Corruption] = {
    "unchanged": lambda cells, train, rng: cells.copy(),
    "dropout 10 %": lambda cells, train, rng: drop_counts(cells, rng, share=0.1),
    "dropout 30 %": lambda cells, train, rng: drop_counts(cells, rng, share=0.3),
    "totals halved": lambda cells, train, rng: thin_counts(cells, rng, share=0.5),
    "totals doubled": lambda cells, train, rng: multiply_counts(cells, factor=2),
    "ambient 20 %": lambda cells, train, rng: add_ambient(cells, rng, share=0.2),
    "noise x 0.5": lambda cells, train, rng: multiply_noise(cells, rng, sd=0.5),
    "genes shuffled": lambda cells, train, rng: shuffle_genes(cells, rng, within_label=False),
    "shuffled in labels": lambda cells, train, rng: shuffle_genes(cells, rng, within_label=True),
    "means only": lambda cells, train, rng: draw_from_means(cells, rng),
    "averages of 3": lambda cells, train, rng: average_cells(cells, rng, n_cells=3),
    "type dropped": lambda cells, train, rng: drop_label(cells),
    "types swapped": lambda cells, train, rng: swap_labels(cells),
    "duplicates 1 %": lambda cells, train, rng: duplicate_cells(cells, rng, share=0.01),
    "copies 1 %": lambda cells, train, rng: copy_cells(cells, train, rng, share=0.01),
    "copies 50 %": lambda cells, train, rng: copy_cells(cells, train, rng, share=0.5),
    "near copies 50 %": lambda cells, train, rng: copy_roughly(cells, train, rng, share=0.5, kept=0.9),
}
