"""What stands beside a value: its floor, what shuffled genes score, and an interval."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from ._comparison import Comparison, Sample
from ._distribution import median_squared_distance
from ._expression import Expression

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ._drawing import Pools

GENES_AT_ONCE = 1_000
QUANTILE = 1.959964  # of the normal distribution, for 95 %


@dataclass(frozen=True)
class Plan:
    """How much is drawn.

    Attributes
    ----------
    min_cells
        A side with fewer cells is not compared.
    n_floor
        Draws of the floor.
    n_bootstrap
        Half-samples.
    seed
        Decides all draws.
    """

    min_cells: int
    n_floor: int
    n_bootstrap: int
    seed: int


@dataclass(frozen=True)
class Half:
    """Half of the cells of both sides.

    Attributes
    ----------
    real_rows, synthetic_rows
        Positions of the cells.
    comparison
        Their comparison.
    """

    real_rows: NDArray[np.intp]
    synthetic_rows: NDArray[np.intp]
    comparison: Comparison


@dataclass(frozen=True)
class Trial:
    """The comparisons of one group, or of all cells.

    Attributes
    ----------
    value
        Synthetic against real cells.
    floors
        Other real cells in their place, resampled.
    held_out_floors
        The same where both sides are cells that no model has learned from, for metrics of memorisation.
    shuffled
        Real cells with every gene's values shuffled in their place; None where there are too few cells.
    halves
        Half-samples of `value`.
    """

    value: Comparison
    floors: tuple[Comparison, ...]
    held_out_floors: tuple[Comparison, ...]
    shuffled: Comparison | None
    halves: tuple[Half, ...]


def make_trial(pools: Pools, group: str | None, plan: Plan) -> Trial | None:
    """Draw the comparisons of a group (None: of all cells); None where a side has too few cells."""
    real, synthetic = pools.real.positions(group), pools.synthetic.positions(group)
    others = real[len(real) // 2 :] if pools.floor is None else pools.floor.positions(group)
    has_others = len(others) >= plan.min_cells
    n_real = len(real) - len(others) if pools.floor is None else len(real)
    n_cells = min([n_real, len(synthetic), pools.n_cells] + [len(others)] * has_others)
    if n_cells < plan.min_cells:
        return None
    draws = _Draws(pools, real, others, n_cells, np.random.default_rng([plan.seed, 1]), plan.seed)
    value = draws.compare(draws.first_real, pools.synthetic.sample[synthetic[:n_cells]])
    return Trial(
        value=value,
        floors=tuple(draws.floor() for _ in range(plan.n_floor if has_others else 0)),
        held_out_floors=tuple(draws.split() for _ in range(plan.n_floor if pools.training is not None else 0)),
        shuffled=draws.shuffled() if has_others else None,
        halves=tuple(_half(value, draws.rng) for _ in range(plan.n_bootstrap)),
    )


def interval(value: float, halves: Sequence[float], bounds: tuple[float, float]) -> tuple[float, float]:
    """Return `value` -/+ 1.96 standard deviations of the half-samples around their mean, within the bounds."""
    known = np.asarray(halves, dtype=float)
    known = known[np.isfinite(known)]
    if len(known) < 2 or not np.isfinite(value):
        return float("nan"), float("nan")
    reach = QUANTILE * known.std(ddof=1)
    return float(max(value - reach, bounds[0])), float(min(value + reach, bounds[1]))


def shuffle_genes(sample: Sample, project: Callable[[Expression], NDArray], rng: np.random.Generator) -> Sample:
    """Shuffle every gene's values among the cells of a group, or among all cells without groups: right margins, no correlation."""
    values = sample.expression.values
    groups = [np.arange(len(sample))] if sample.labels is None else _positions_by_label(sample.labels)
    parts = [
        _shuffled(values[:, start : start + GENES_AT_ONCE], groups, rng)
        for start in range(0, values.shape[1], GENES_AT_ONCE)
    ]
    expression = Expression(sp.hstack(parts, format="csr"), sample.expression.library_sizes)
    return Sample(expression, project(expression), sample.labels)


@dataclass(frozen=True)
class _Draws:
    pools: Pools
    real: NDArray[np.intp]
    others: NDArray[np.intp]
    n_cells: int
    rng: np.random.Generator
    seed: int

    @cached_property
    def first_real(self) -> Sample:
        return self.pools.real.sample[self.real[: self.n_cells]]

    @cached_property
    def squared_scale(self) -> float:
        return median_squared_distance(self.first_real.pcs)

    def compare(self, real: Sample, synthetic: Sample) -> Comparison:
        space = self.pools.space
        return Comparison(
            real=real,
            synthetic=synthetic,
            genes=space.genes[np.argsort(-space.pca.mean_, kind="stable")],
            squared_scale=self.squared_scale,
            training=self.pools.training,
            seed=self.seed,
        )

    def floor(self) -> Comparison:
        if self.pools.floor is None:
            return self.split()
        return self.compare(self.first_real, self.other_real())

    def other_real(self) -> Sample:
        pool = self.pools.real if self.pools.floor is None else self.pools.floor
        return pool.sample[self.rng.choice(self.others, self.n_cells, replace=False)]

    def split(self) -> Comparison:
        """Compare real cells with others of the same pool."""
        order, cells = self.rng.permutation(self.real), self.pools.real.sample
        n_cells = min(self.n_cells, len(order) // 2)
        return self.compare(cells[order[:n_cells]], cells[order[n_cells : 2 * n_cells]])

    def shuffled(self) -> Comparison:
        return self.compare(self.first_real, shuffle_genes(self.other_real(), self.pools.space.project, self.rng))


def _half(comparison: Comparison, rng: np.random.Generator) -> Half:
    real_rows, synthetic_rows = (
        np.sort(rng.permutation(len(side))[: len(side) // 2]) for side in (comparison.real, comparison.synthetic)
    )
    return Half(real_rows, synthetic_rows, comparison.at(real_rows, synthetic_rows))


def _positions_by_label(labels: NDArray) -> list[NDArray]:
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _shuffled(values: sp.csr_matrix, groups: list[NDArray], rng: np.random.Generator) -> sp.csr_matrix:
    by_gene = np.ascontiguousarray(values.toarray().T)
    for cells in groups:
        by_gene[:, cells] = rng.permuted(by_gene[:, cells], axis=1)
    return sp.csr_matrix(by_gene.T)
