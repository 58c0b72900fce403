"""What a metric is, the comparisons that it is measured on, and the rows of the table."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from ._cells import stacked
from ._safety import relative_nearness

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from ._cells import Expression

T = TypeVar("T")

ALL = "all"
FIGURES = ("value", "real", "shuffled", "low", "high")  # columns of the table with numbers
COLUMNS = ("metric", "group", *FIGURES, "better")
QUANTILE = 1.959964  # of the normal distribution, for a 95 % interval
MIN_CELLS = 50  # of a set, or of a pair of modalities: halves of fewer correlate by chance
MIN_CELLS_PER_GROUP = 30  # on either side, with which Welch's t is almost normal
#: Real cells that a label needs for its MMD: smaller labels would make the mean uncertain. If fewer are drawn on a
#: side, labels get cells of their own.
MIN_CELLS_PER_LABEL = 20
MIN_CELLS_PER_PERTURBATION = 2
N_CORRELATED_GENES = 100
PAIRS = 1_000_000_000  # of a cell and a training cell, whose distances take some seconds on a laptop
LEAST_MEASURED = 500  # cells of each set, however many training cells there are
UNLIKELY = 0.01  # with fewer copies to expect, chance does not explain one


@dataclass(frozen=True)
class Draws:
    """The numbers of cells and draws behind a table, and their seed: arguments of :func:`evaluate`."""

    max_cells: int
    n_repeats: int
    n_bootstrap: int
    seed: int


@dataclass(frozen=True)
class Sample:
    """Cells of one side.

    Attributes
    ----------
    expression
        All genes on the common scale, with total counts if the cells came as counts.
    pcs
        Principal components, `(cells, components)`.
    labels
        Groups, `(cells,)`; None without ``groupby``.
    n_further
        Numbers of cells of each label that were not drawn, for metrics that compare labels; None without ``groupby``.
    rare
        Some of these, of labels with few cells among those drawn; metrics that compare labels use them, too.
    """

    expression: Expression
    pcs: NDArray[np.float32]
    labels: NDArray[np.str_] | None
    n_further: pd.Series | None = None
    rare: Sample | None = None

    def __len__(self) -> int:
        return len(self.pcs)

    def __getitem__(self, rows: NDArray) -> Sample:
        """Return some of the cells, by position or mask."""
        return Sample(self.expression[rows], self.pcs[rows], None if self.labels is None else self.labels[rows])

    def with_rare(self) -> Sample:
        """Return these cells, followed by those of rare labels."""
        if not self.rare:
            return self
        pairs = (self.pcs, self.rare.pcs), (self.labels, self.rare.labels)
        return Sample(stacked([self.expression, self.rare.expression]), *map(np.concatenate, pairs))

    def half(self, rows: NDArray, rng: np.random.Generator) -> Sample:
        """Return some of the cells, beside one half of the further ones."""
        if self.n_further is None:
            return self[rows]
        drawn = rng.multivariate_hypergeometric(self.n_further.to_numpy(), self.n_further.sum() // 2)
        rare = self.rare[rng.permutation(len(self.rare))[: len(self.rare) // 2]]
        return replace(self[rows], n_further=pd.Series(drawn, self.n_further.index), rare=rare)


class Whole(NamedTuple):
    """What metrics that look for copies know of *all* cells of a set: a draw would miss most copies.

    Attributes
    ----------
    pcs
        Principal components, `(cells, components)`.
    fingerprints
        Hashes of the cells' counts, `(cells,)`.
    chance
        Upper limit of the probability that a fresh cell of any total has the composition of each cell, `(cells,)`; tiny
        but for few genes.
    """

    pcs: NDArray[np.float32]
    fingerprints: NDArray[np.uint64]
    chance: NDArray[np.float64]


@dataclass(frozen=True)
class AllCells:
    """All cells of every set.

    Attributes
    ----------
    real, synthetic, train
        The sets; `train` is None if it was not given.
    members
        Principal components of the training cells that the PCA was not fitted to. A PCA spreads the cells that it was
        fitted to, which would distinguish them from held-out cells even without any synthetic cell.
    are_comparable
        Whether all sets hold counts, or all hold logarithms. Otherwise, no cells of two sets can be equal.
    seed
        Chooses the cells to measure where there are too many.
    """

    real: Whole
    synthetic: Whole
    train: Whole | None
    members: NDArray[np.float32] | None
    are_comparable: bool
    seed: int

    def nearness(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return how near real and synthetic cells are to training cells (:func:`relative_nearness`).

        Infinite for cells of so few genes that chance makes others like them. The third array is that of the real cells
        again, with finite values for such cells.
        """
        n_train, found = len(self.train.pcs), []
        most = max(PAIRS // n_train, LEAST_MEASURED)
        for side in (self.real, self.synthetic):
            rows = np.random.default_rng([self.seed, 4]).permutation(len(side.pcs))[:most]
            near = relative_nearness(side.pcs[rows], self.train.pcs)
            is_chance = side.chance[rows] * len(rows) * n_train > UNLIKELY
            found.append((np.where(is_chance, np.inf, near), near))
        (of_real, usual), (of_synthetic, _) = found
        return of_real, of_synthetic, usual


class Share(NamedTuple):
    """A share of cells that are copies, and the number of independent cells whose share is as certain."""

    value: float
    n_cells: float

    @property
    def limits(self) -> tuple[float, float]:
        """Wilson's interval of 95 %, which is not empty for a share of 0 or 1; NaN without cells."""
        if not self.n_cells:
            return np.nan, np.nan
        spread = QUANTILE**2 / self.n_cells
        middle = (self.value + spread / 2) / (1 + spread)
        reach = np.sqrt(spread * (self.value * (1 - self.value) + spread / 4)) / (1 + spread)
        return float(np.clip(middle - reach, 0, self.value)), float(np.clip(middle + reach, self.value, 1))


@dataclass(frozen=True)
class Comparison:
    """Two sets of cells to compare: real cells, and synthetic cells or real ones in their place."""

    real: Any
    synthetic: Any
    _results: dict[tuple, Any] = field(default_factory=dict, repr=False, compare=False, kw_only=True)

    def once(self, function: Callable[..., T], *options: object) -> T:
        """Return the result of a function of this comparison, computed once for all metrics that share it."""
        if (function, options) not in self._results:
            self._results[function, options] = function(self, *options)
        return self._results[function, options]


@dataclass(frozen=True)
class CellComparison(Comparison):
    """Two samples of cells.

    Attributes
    ----------
    genes
        Positions of the space's genes, sorted by mean expression in the cells that the space was fitted to, highest
        first.
    squared_scale
        Unit of the kernel widths, the same for value, real value and shuffled cells.
    all_cells
        All cells, also those not drawn; None if no metric needs them.
    released
        Principal components of all synthetic cells; None for real cells in their place.
    seed
        Seed for metrics that draw random numbers.
    whole, rows
        For a half-sample, the comparison of all cells, which chooses the labels to compare, and the positions of its
        own cells there, of both sides.
    """

    real: Sample
    synthetic: Sample
    genes: NDArray[np.intp] | None = None
    squared_scale: float = np.nan
    all_cells: AllCells | None = None
    released: NDArray[np.float32] | None = None
    seed: int = 0
    whole: CellComparison | None = None
    rows: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None

    def scores(self, function: Callable[..., tuple[NDArray, NDArray]], *options: object) -> list[NDArray]:
        """Return a number per cell of both sides. A half-sample takes those of all cells: nothing is fitted again."""
        if self.whole is None:
            return list(self.once(function, *options))
        of_all = self.whole.once(function, *options)
        return [side[rows] for side, rows in zip(of_all, self.rows, strict=True)]

    def half(self, rng: np.random.Generator) -> CellComparison:
        """Draw one half of the cells of each side."""
        rows = tuple(np.sort(rng.permutation(len(side))[: len(side) // 2]) for side in (self.real, self.synthetic))
        (own,) = rng.spawn(1)  # which leaves the other draws alone
        real, synthetic = self.real.half(rows[0], own), self.synthetic.half(rows[1], own)
        return replace(self, real=real, synthetic=synthetic, whole=self, rows=rows, _results={})

    def gene_values(self, n_genes: int | None = None) -> list[NDArray[np.float32]]:
        """Return dense log-normalised values of both sides, of the space's genes or of the `n_genes` most expressed."""
        genes = np.sort(self.genes[:n_genes])
        return [side.expression.values[:, genes].toarray() for side in (self.real, self.synthetic)]


#: Which values are good: low ones, high ones, or those close to the real value.
Better: TypeAlias = Literal["lower", "higher", "real"]
#: What a metric needs: training cells, labels, total counts, unperturbed cells, several perturbations or modalities.
Need: TypeAlias = Literal["train", "groupby", "counts", "control", "perturbations", "modalities"]
#: Where a metric is measured: all cells, each group, modalities together, each perturbation, each pair of modalities.
Scope: TypeAlias = Literal["all", "group", "joint", "perturbation", "pair"]


@dataclass(frozen=True)
class Limits:
    """By how much a value must be worse than that of real cells to be a note or a warning in a summary.

    Attributes
    ----------
    note, warning
        Smallest excess that matters.
    of
        What these are multiples of: 1, the value of real cells, or what lies between shuffled and real cells.
    n_deviations
        So many standard deviations must lie between the two as well. The value of real cells varies about as much, so 3
        are two of the difference. Metrics that vary more than their interval says need more.
    """

    note: float
    warning: float
    of: Literal["one", "real", "structure"] = "one"
    n_deviations: float = 3.0


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
        Function that returns the figure for a comparison; its docstring says what the metric measures and misses. With
        `of_all`, it returns the share of synthetic cells that are copies, then the real value and other shares that
        chance does not exceed.
    topic
        Heading under which it is listed.
    needs
        What must be given; otherwise the metric is left out.
    scopes
        Where it is measured, see `Scope`.
    bounds
        Smallest and largest possible value.
    ideal
        Value of perfect cells where it is known. What real cells score beyond it is chance.
    limits, limits_in_group
        How the figure of all cells, and that of a group, is judged in a summary; None if it is not.
    most_share_difference
        If the shares of labels differ by more, even perfect cells fail the metric, and it is not judged.
    by_group
        Function that returns the figure of every group from a comparison of all cells, for metrics that need the other
        groups too.
    absent
        The figure of a group that `by_group` does not return, because neither side has it.
    of_all
        Whether it counts copies among all cells (:class:`AllCells`), not only among those drawn.
    widening
        By how much the standard deviation of the half-samples is too small.
    min_features
        With fewer features the metric has no meaning. It is then left out of the table, unless requested.
    slow
        Whether the real value comes from one draw instead of several.
    """

    name: str
    better: Better
    measure: Callable[[Any], Any]
    topic: str = "Other metrics"
    needs: tuple[Need, ...] = ()
    scopes: tuple[Scope, ...] = ("all",)
    bounds: tuple[float, float] = (0.0, np.inf)
    ideal: float | None = None
    limits: Limits | None = None
    limits_in_group: Limits | None = None
    most_share_difference: float = np.inf
    by_group: Callable[[Any], Mapping[str, float]] | None = None
    absent: float = np.nan
    of_all: bool = False
    widening: float = 1.0
    min_features: int = 0
    slow: bool = False

    @property
    def text(self) -> str:
        """What it measures and misses: the first lines of the docstring."""
        return " ".join((self.measure.__doc__ or "").split("\n\n")[0].split())

    def limits_of(self, group: str) -> Limits | None:
        """Return the limits of all cells, or of a group."""
        return self.limits if group == ALL else self.limits_in_group


@dataclass(frozen=True)
class Context:
    """All comparisons behind the rows of a group, a perturbation, a pair of modalities, or all cells.

    Attributes
    ----------
    comparisons
        For each column of the table, the comparisons that its figure averages: ``value`` for synthetic cells, ``real``
        for other real cells in their place, and so on.
    held_out_pairs
        Real pairs for the metrics of memorisation: both sides are held-out cells.
    halves
        Half-samples of ``value``, for the interval.
    """

    comparisons: Mapping[str, Sequence[Comparison]]
    held_out_pairs: Sequence[Comparison] = ()
    halves: Sequence[Comparison] = ()

    def row(self, metric: Metric, group: str | None = None) -> dict[str, object]:
        """Return the row of a metric, or that of one group for a metric that measures each group among all others."""
        if metric.of_all:
            share, usual = metric.measure(self.comparisons["value"][0].all_cells)
            usual = usual if self.comparisons["real"] else ()
            figures = {"value": share.value, "real": usual[0].value if usual else np.nan}
            low, high = share_interval(share, usual) if self.halves else (np.nan, np.nan)
        else:
            measure = metric.measure if group is None else lambda c: c.once(metric.by_group).get(group, metric.absent)
            comparisons = dict(self.comparisons)
            if "train" in metric.needs and self.held_out_pairs:
                comparisons["real"] = self.held_out_pairs
            figures = {
                side: _mean([measure(comparison) for comparison in own[: 1 if metric.slow else None]])
                for side, own in comparisons.items()
            }
            halves = [measure(half) for half in self.halves]
            low, high = interval(figures["value"], halves, metric.bounds, metric.widening)
        return {"metric": metric.name, **figures, "low": low, "high": high, "better": metric.better}


def table_of(rows: Sequence[Mapping[str, object]], leading: Sequence[str], figures: Sequence[str]) -> pd.DataFrame:
    """Return rows as a table."""
    return pd.DataFrame(rows, columns=[*leading, *figures, "better"]).astype(dict.fromkeys(figures, float))


def check_columns(table: pd.DataFrame) -> None:
    """Raise unless it is a table of :func:`evaluate` without ``control``, or a copy read from a file."""
    if not isinstance(table, pd.DataFrame) or "perturbation" in table or not {*COLUMNS} <= {*table}:
        msg = f"`table` must be what `evaluate` returns without `control`, with the columns {list(COLUMNS)}."
        raise ValueError(msg)


def check_one_row_each(table: pd.DataFrame, column: str = "group") -> None:
    """Raise if a table has several rows of a metric for one value of a column, such as those of several modalities."""
    if (repeated := table.duplicated(["metric", column])).any():
        metric, name = table.loc[repeated, ["metric", column]].iloc[0]
        msg = f"`table` has several rows of {metric!r} for {name!r}, such as those of several modalities or models. "
        msg += "Take one at a time; a plot can show them side by side (`by`)."
        raise ValueError(msg)


def interval(
    value: float, halves: Sequence[float], bounds: tuple[float, float], widening: float = 1.0
) -> tuple[float, float]:
    """Return an interval of 95 % from the standard deviation of the half-samples, cut at the bounds.

    ``widening`` corrects a standard deviation that is too small (see :class:`Metric`).
    Few half-samples know their standard deviation badly, so its multiple is the quantile of Student's *t*.
    """
    known = np.asarray(halves, dtype=float)
    known = known[np.isfinite(known)]
    if len(known) < 2 or not np.isfinite(value):
        return np.nan, np.nan
    reach = stdtrit(len(known) - 1, 0.975) * widening * known.std(ddof=1)
    return float(max(value - reach, bounds[0])), float(min(value + reach, bounds[1]))


def share_interval(share: Share, usual: Sequence[Share]) -> tuple[float, float]:
    """Return Wilson's interval of a share, whose lower limit allows for the uncertainty of the real value, if any.

    This is Newcombe's lower limit of the difference from the real value, which comes first in ``usual``. The real value
    can be as high as the lowest of the upper limits of ``usual``.
    """
    low, high = share.limits
    if usual:
        usual_value, highest = usual[0].value, min(known.limits[1] for known in usual)
        low = max(share.value - float(np.hypot(share.value - low, max(highest - usual_value, 0))), 0.0)
    return low, high


def _mean(values: Sequence[float]) -> float:
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else np.nan
