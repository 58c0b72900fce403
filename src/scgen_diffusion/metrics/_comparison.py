"""What metrics are measured on, what a metric is, and the rows of a table: who is compared with whom, and what each metric says of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import numpy as np

from scgen_diffusion._arguments import check_count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from ._cells import Expression
    from ._distribution import Scores

T = TypeVar("T")

ALL = "all"
UNKNOWN = float("nan")
QUANTILE = 1.959964  # of the normal distribution, for 95 %


@dataclass(frozen=True)
class Draws:
    """How many cells and draws a table is made of, and the seed that decides them: arguments of :func:`evaluate`."""

    max_cells: int
    n_floor: int
    n_bootstrap: int
    seed: int

    def check(self, min_cells: int) -> None:
        """Raise where a number makes no sense."""
        check_count("max_cells", self.max_cells, least=min_cells)
        check_count("n_floor", self.n_floor, least=0)
        check_count("seed", self.seed, least=0, most=2**32 - 1)  # as scikit-learn takes it
        if check_count("n_bootstrap", self.n_bootstrap, least=0) == 1:
            msg = "`n_bootstrap` is 1; it must be 0 (no interval), or 2 or more."
            raise ValueError(msg)


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
        The two sides: samples, or what the metrics of perturbations (`Profile`) and of pairs of modalities (`Paired`) look at.
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
    squared_scale: float = UNKNOWN
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

    def gene_values(self, n_genes: int | None = None) -> list[NDArray[np.float32]]:
        """Return log-normalised values of the space's genes on both sides, of all or of the most expressed ones, dense, `(cells, genes)`."""
        genes = np.sort(self.genes[:n_genes])
        return [side.expression.values[:, genes].toarray() for side in (self.real, self.synthetic)]


#: Which values are good: small ones, large ones, or those near the floor.
Better: TypeAlias = Literal["lower", "higher", "floor"]
#: What a metric cannot do without: training cells, labels, total counts, unperturbed cells, several modalities.
Need: TypeAlias = Literal["train", "groups", "counts", "control", "modalities"]
#: Where a metric is measured: on all cells, within each group, on all modalities together, on each perturbation, on each pair of modalities.
Scope: TypeAlias = Literal["all", "group", "joint", "perturbation", "pair"]


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
    scopes
        Where it is measured: on all cells, within each group, on the components of all modalities together, on each perturbation, on each pair of modalities.
    by_group
        The figure of every group from a comparison of all cells, for metrics that need the other groups as well.
    scores, summary
        Where a figure is a summary of one number per cell: the intervals come from drawing these numbers, and nothing is fitted again.
    bounds
        Smallest and largest possible value.
    min_features
        Below so many features it means nothing, and is left out of the table of a modality unless asked for.
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
    scopes: tuple[Scope, ...] = ("all",)
    by_group: Callable[[Comparison], Mapping[str, float]] | None = None
    scores: Callable[[Comparison], Scores] | None = None
    summary: Callable[[NDArray, NDArray], float] | None = None
    bounds: tuple[float, float] = (0.0, np.inf)
    min_features: int = 0
    has_interval: bool = True
    slow: bool = False
    equal_cells: bool = False


@dataclass(frozen=True)
class Half:
    """Half of the cells of both sides: their positions, and their comparison."""

    real_rows: NDArray[np.intp]
    synthetic_rows: NDArray[np.intp]
    comparison: Comparison


@dataclass(frozen=True)
class Context:
    """A group, a perturbation, a pair of modalities, or all cells: who plays the synthetic cells there.

    Attributes
    ----------
    names
        Columns that say what a row is of, such as the group.
    players
        By column of the table, the comparisons of which the mean stands there: ``value`` for synthetic cells, ``floor`` for other real ones, and so on.
    held_out_floors
        The floors of metrics that look at training cells: both sides are cells that no model has learned from.
    equal_players
        The players of metrics that depend on the number of cells, with equally many cells each; empty where all `players` have.
    halves
        Half-samples of ``value``, for the interval.
    """

    names: Mapping[str, str]
    players: Mapping[str, Sequence[Comparison]]
    held_out_floors: Sequence[Comparison] = ()
    equal_players: Mapping[str, Sequence[Comparison]] = field(default_factory=dict)
    halves: Sequence[Half] = ()

    def row(self, metric: Metric, group: str | None = None) -> dict[str, object]:
        """Return the row of a metric, or that of one group by a metric that measures each group among all others."""
        players = self.equal_players if metric.equal_cells and self.equal_players else self.players
        if "train" in metric.needs:
            players = {**players, "floor": self.held_out_floors}
        measure = metric.measure if group is None else lambda c: c.once(metric.by_group).get(group, UNKNOWN)
        figures = {
            player: _mean([measure(comparison) for comparison in comparisons[: 1 if metric.slow else None]])
            for player, comparisons in players.items()
        }
        if not metric.has_interval:
            halves = []
        elif metric.scores is None:
            halves = [measure(half.comparison) for half in self.halves]
        else:
            scores = self.players["value"][0].once(metric.scores)
            halves = [metric.summary(scores.real[h.real_rows], scores.synthetic[h.synthetic_rows]) for h in self.halves]
        low, high = interval(figures["value"], halves, metric.bounds)
        names = self.names if group is None else {**self.names, "group": group}
        return {**names, "metric": metric.name, **figures, "low": low, "high": high, "better": metric.better}


def interval(value: float, halves: Sequence[float], bounds: tuple[float, float]) -> tuple[float, float]:
    """Return `value` -/+ 1.96 standard deviations of the half-samples around their mean, within the bounds."""
    known = np.asarray(halves, dtype=float)
    known = known[np.isfinite(known)]
    if len(known) < 2 or not np.isfinite(value):
        return UNKNOWN, UNKNOWN
    reach = QUANTILE * known.std(ddof=1)
    return float(max(value - reach, bounds[0])), float(min(value + reach, bounds[1]))


def _mean(values: Sequence[float]) -> float:
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else UNKNOWN
