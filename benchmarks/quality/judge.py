"""Judge synthetic cells against held-out cells, every figure beside its floor.

The training cells are split in two. A PCA is fitted on one half; the other half plays the synthetic cells and gives the *floor*: what
real cells that no model has touched would score. (A PCA fitted on the very cells that are compared separates them from any held-out cells.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA

from benchmarks.quality.splits import Split, log_normalise, to_dense
from scgen_diffusion.metrics import (
    Expression,
    classifier_auc,
    gene_correlation_similarity,
    gene_profile_errors,
    library_size_ks,
    median_squared_distance,
    memorisation,
    precision_recall_density_coverage,
    squared_mmd,
    transfer_f1,
    wasserstein_2,
)

Counts = NDArray | sp.spmatrix | sp.sparray

N_COMPONENTS = 30
N_CORRELATED_GENES = 100
MIN_CELLS_PER_LABEL = 30


@dataclass(frozen=True)
class Bound:
    """A limit ``factor * floor + offset``."""

    factor: float = 0.0
    offset: float = 0.0

    def value(self, floor: float) -> float:
        """Return the limit beside this floor (a constant limit needs none)."""
        return self.offset + (self.factor * floor if self.factor else 0.0)


@dataclass(frozen=True)
class Goal:
    """What a figure should reach."""

    at_least: Bound | None = None
    at_most: Bound | None = None

    def met(self, value: float, floor: float) -> bool:
        """Say whether ``value`` lies within the limits; NaN never does."""
        low = -np.inf if self.at_least is None else self.at_least.value(floor)
        high = np.inf if self.at_most is None else self.at_most.value(floor)
        return bool(low <= value <= high)

    def describe(self, floor: float) -> str:
        """Write the limits as numbers."""
        limits = ((">=", self.at_least), ("<=", self.at_most))
        return ", ".join(f"{sign} {bound.value(floor):.4g}" for sign, bound in limits if bound is not None)


#: The goals of the project; a figure that is not named here is reported without one.
GOALS = {
    "auc_pcs": Goal(at_most=Bound(offset=0.60)),
    "auc_genes": Goal(at_most=Bound(offset=0.60)),
    "precision": Goal(at_least=Bound(factor=0.95)),
    "recall": Goal(at_least=Bound(factor=0.95)),
    "w2": Goal(at_most=Bound(factor=1.05)),
    "mmd2": Goal(at_most=Bound(factor=1.0, offset=0.002)),
    "within_label_correlation": Goal(at_least=Bound(factor=0.9)),
    "transfer_f1": Goal(at_least=Bound(factor=0.97)),
    "library_size_ks": Goal(at_most=Bound(factor=1.0, offset=0.03)),
    "nearest_train_ratio": Goal(at_least=Bound(offset=0.9), at_most=Bound(offset=1.15)),
    "nearer_than_held_out": Goal(at_most=Bound(offset=0.02)),
    "train_minutes": Goal(at_most=Bound(offset=20.0)),
}


@dataclass(frozen=True)
class _Cells:
    counts: NDArray  # (cells, genes)
    labels: NDArray  # (cells,)
    pcs: NDArray  # (cells, components)


@dataclass(frozen=True)
class _Pair:
    real: _Cells
    synthetic: _Cells


class Judge:
    """Compares cells with the held-out cells of one split.

    Parameters
    ----------
    train_counts, held_out_counts
        Counts ``(cells, genes)``, dense or sparse, the same genes in the same order.
    train_labels, held_out_labels
        One label per cell.
    n_components
        Principal components in which most figures are measured.
    seed
        Decides how the training cells are split, and which cells are left out where one side has more.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> counts, labels = rng.poisson(3.0, (400, 50)), np.repeat(["a", "b"], 200)
    >>> judge = Judge(counts[::2], labels[::2], counts[1::2], labels[1::2])
    >>> judge.measure(counts[::2], labels[::2])["nearest_train_ratio"]
    0.0
    """

    def __init__(
        self,
        train_counts: Counts,
        train_labels: ArrayLike,
        held_out_counts: Counts,
        held_out_labels: ArrayLike,
        *,
        n_components: int = N_COMPONENTS,
        seed: int = 0,
    ) -> None:
        _check_pair("train", train_counts, train_labels)
        _check_pair("held_out", held_out_counts, held_out_labels)
        self.seed = seed
        self.train_counts, self.train_labels = to_dense(train_counts), np.asarray(train_labels).astype(str)
        self.held_out_counts, self.held_out_labels = to_dense(held_out_counts), np.asarray(held_out_labels).astype(str)

        train = log_normalise(self.train_counts)
        order = np.random.default_rng(seed).permutation(len(train))
        fitted_half, self.floor_half = np.split(order, [len(order) // 2])
        n_components = min(n_components, len(fitted_half) - 1, train.shape[1])
        self.pca = PCA(n_components, svd_solver="randomized", random_state=seed).fit(train[fitted_half])
        self.train_pcs = self.pca.transform(train)
        self.held_out_pcs = self.pca.transform(log_normalise(self.held_out_counts))
        self.squared_scale = median_squared_distance(self.held_out_pcs)
        self.correlated_genes = np.argsort(-train.mean(axis=0))[:N_CORRELATED_GENES]

    @classmethod
    def of(cls, split: Split, seed: int) -> Self:
        """Return the judge of a split."""
        train, held_out = split.train.layers["counts"], split.held_out.layers["counts"]
        return cls(train, split.train_labels, held_out, split.held_out_labels, seed=seed)

    def measure(self, counts: Counts, labels: ArrayLike) -> dict[str, float]:
        """Return every figure of these cells against the held-out cells.

        Where one side has more cells, a random part of it is left out.

        Parameters
        ----------
        counts
            Synthetic counts ``(cells, genes)``.
        labels
            The label that each cell was asked to have.
        """
        pair = self._pair(counts, labels)
        return self._told_apart(pair) | self._similarity(pair) | self._nearness_to_training(counts)

    def floor(self, n_resamples: int = 10) -> dict[str, float]:
        """Return what training cells that the PCA has not seen score, the mean over random draws of them.

        The classifiers, which take nearly all of the time, judge the first draw only; their goals do not depend on the floor. The
        memorisation figures have no floor: these cells *are* training cells.
        """
        rng = np.random.default_rng([self.seed, 1])
        n_cells = min(len(self.floor_half), len(self.held_out_counts))
        draws = [rng.choice(self.floor_half, n_cells, replace=False) for _ in range(n_resamples)]
        pairs = [self._pair(self.train_counts[draw], self.train_labels[draw]) for draw in draws]
        similarities = pd.DataFrame([self._similarity(pair) for pair in pairs])
        return self._told_apart(pairs[0]) | similarities.mean().to_dict()

    def _pair(self, counts: Counts, labels: ArrayLike) -> _Pair:
        """Put the same number of cells on both sides."""
        _check_pair("synthetic", counts, labels)
        rng = np.random.default_rng(self.seed)
        n_cells = min(counts.shape[0], len(self.held_out_counts))
        kept, real_kept = _draw(rng, counts.shape[0], n_cells), _draw(rng, len(self.held_out_counts), n_cells)
        drawn = to_dense(counts[kept])
        return _Pair(
            _Cells(self.held_out_counts[real_kept], self.held_out_labels[real_kept], self.held_out_pcs[real_kept]),
            _Cells(drawn, np.asarray(labels).astype(str)[kept], self.pca.transform(log_normalise(drawn))),
        )

    def _told_apart(self, pair: _Pair) -> dict[str, float]:
        real, synthetic = pair.real, pair.synthetic
        return {
            "auc_pcs": classifier_auc(real.pcs, synthetic.pcs),
            "auc_genes": classifier_auc(log_normalise(real.counts), log_normalise(synthetic.counts)),
        }

    def _similarity(self, pair: _Pair) -> dict[str, float]:
        real, synthetic = pair.real, pair.synthetic
        neighbourhoods = precision_recall_density_coverage(real.pcs, synthetic.pcs)
        return {
            "precision": neighbourhoods.precision,
            "recall": neighbourhoods.recall,
            "w2": wasserstein_2(real.pcs, synthetic.pcs, max_cells=len(real.pcs)),
            "mmd2": squared_mmd(real.pcs, synthetic.pcs, squared_scale=self.squared_scale),
            "per_label_mmd2": per_label_mmd(
                real.pcs, real.labels, synthetic.pcs, synthetic.labels, MIN_CELLS_PER_LABEL
            ),
            "within_label_correlation": gene_correlation_similarity(
                self._correlated(real), self._correlated(synthetic), real.labels, synthetic.labels
            ),
            "transfer_f1": transfer_f1(synthetic.pcs, synthetic.labels, self.held_out_pcs, self.held_out_labels),
            "library_size_ks": library_size_ks(real.counts.sum(1), synthetic.counts.sum(1)),
            **gene_profile_errors(_expression(real), _expression(synthetic)),
        }

    def _nearness_to_training(self, counts: Counts) -> dict[str, float]:
        return memorisation(self.pca.transform(log_normalise(counts)), self.held_out_pcs, self.train_pcs)

    def _correlated(self, cells: _Cells) -> NDArray:
        return log_normalise(cells.counts)[:, self.correlated_genes]


def per_label_mmd(
    real: NDArray, real_labels: NDArray, synthetic: NDArray, synthetic_labels: NDArray, min_cells: int = 30
) -> float:
    """Return the mean of the squared MMD over labels with at least ``min_cells`` real cells.

    The kernel's scale is that of the label's real cells. A label with fewer than two synthetic cells is left out.
    """
    names, sizes = np.unique(real_labels, return_counts=True)
    distances = []
    for label in names[sizes >= min_cells]:
        a, b = real[real_labels == label], synthetic[synthetic_labels == label]
        if len(b) >= 2:
            distances.append(squared_mmd(a, b))
    return float(np.mean(distances)) if distances else float("nan")


def judgement_table(
    values: dict[str, float], floor: dict[str, float], *, dataset: str, seed: int, method: str
) -> pd.DataFrame:
    """Lay figures out tidily, one row each.

    Parameters
    ----------
    values, floor
        As :meth:`Judge.measure` and :meth:`Judge.floor` return them. A figure without a floor gets NaN.
    dataset, seed, method
        What was judged.

    Returns
    -------
    Columns ``dataset, seed, method, metric, value, floor, goal, met``; ``met`` is missing where there is no goal.
    """
    rows = []
    for metric, value in values.items():
        reference, goal = floor.get(metric, float("nan")), GOALS.get(metric)
        rows.append(
            {
                "dataset": dataset,
                "seed": seed,
                "method": method,
                "metric": metric,
                "value": value,
                "floor": reference,
                "goal": "" if goal is None else goal.describe(reference),
                "met": pd.NA if goal is None else goal.met(value, reference),
            }
        )
    return pd.DataFrame(rows).astype({"met": "boolean"})


def _expression(cells: _Cells) -> Expression:
    # not `expression_of`, which refuses what some methods draw: values that are no integers
    return Expression(sp.csr_matrix(log_normalise(cells.counts)), None)


def _draw(rng: np.random.Generator, n_available: int, n_wanted: int) -> NDArray:
    return np.sort(rng.choice(n_available, n_wanted, replace=False))


def _check_pair(name: str, counts: Counts, labels: ArrayLike) -> None:
    n_labels = len(np.asarray(labels))
    if counts.shape[0] != n_labels:
        msg = f"`{name}` has {counts.shape[0]} cells and {n_labels} labels; there must be one label per cell."
        raise ValueError(msg)
