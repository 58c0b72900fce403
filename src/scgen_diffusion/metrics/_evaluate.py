"""All metrics in one tidy table, every figure beside its floor: check, draw cells, compare, lay out rows."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from scgen_diffusion.data import is_whole_number, known_names, warn_user

from ._catalogue import CATALOGUE, Comparison, Metric, Sample, Training
from ._cells import (
    COUNTS_LAYER,
    Cells,
    Expression,
    check_has_genes,
    check_same_number_of_genes,
    labels_of,
    matrix_of,
    on_scale,
)
from ._distribution import median_squared_distance
from ._safety import fingerprints_of
from ._space import ComparisonSpace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from ._space import Scale

MIN_CELLS_PER_GROUP = 30
MANY_COPIES = 0.2  # without `train`, a third of `real_test` is compared


def evaluate(
    real_test: Cells,
    synthetic: Cells,
    *,
    train: Cells | None = None,
    groupby: str | Sequence[str] | None = None,
    metrics: str | Sequence[str] | None = None,
    layer: str | None = None,
    space: ComparisonSpace | None = None,
    max_cells: int = 2_000,
    n_floor: int = 5,
    n_bootstrap: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Compare synthetic cells with real ones in every respect, each figure beside what real cells would score.

    Cells are drawn first (``max_cells``, ``seed``), and only these are normalised. Principal components are chosen on real cells that are
    compared with nothing: half of ``train``, or a third of ``real_test``. Both sides of a comparison have equally many cells, as many
    as the smallest set allows, because most figures depend on that number.

    Parameters
    ----------
    real_test
        Real cells that the model has not learned from, 50 or more (150 without ``train``); counts in ``layers["counts"]`` or `X`, or
        log-normalised values in `X` and ``uns["log1p"]`` (whose ``base`` is respected). Whole numbers are counts, whatever ``uns`` says. An array is taken as counts.
    synthetic
        Cells to judge, 50 or more, with these genes in any order. Where both come as arrays, the genes are taken to be the same.
    train
        Cells that the model has learned from, 100 or more. Without them there are no figures of memorisation. These take ``train`` and
        ``real_test`` for draws from one distribution: with held-out donors or batches they see the difference between donors, not a leak.
    groupby
        Column of `obs`, or several (joined by ``|``; within a value it becomes ``\|``), which all sets have: the label that each synthetic cell was asked to
        have. Adds metrics of labels, and rows for every label that 30 or more of the real cells have.
    metrics
        Names of metrics; all that have what they need if None.
    layer
        Layer with the counts of real cells, and of synthetic cells if they have it (generated cells have theirs in `X`).
    space
        Genes and components; must be fitted on cells of none of the sets. All of ``train`` plays the synthetic cells then.
    max_cells
        Cells of each side that are compared, at most. Time and memory grow with its square, that of optimal transport with its cube. Groups draw
        500 cells of their own if they have them, so that rare ones keep theirs. Memorisation looks at all of ``train``, in parts.
    n_floor
        Draws that a floor is the mean of; one for boosting, which is slow. 0 leaves it out.
    n_bootstrap
        Half-samples for the interval. 0 leaves it out.
    seed
        Decides every draw: the same seed gives the same table. No global random state is touched.

    Returns
    -------
    One row per metric and group, with the columns

    - `metric`, `group`: names; the group ``"all"`` is all cells. A group that synthetic cells lack (or have fewer than 30 of) has rows of NaN.
    - `value`: synthetic against real cells.
    - `floor`: real against real cells, as many: what a perfect model would score. Half of ``train`` plays the synthetic cells, or one half of what is left
      of ``real_test``; for metrics that look at ``train``, one half of ``real_test`` always. Never cells that the components were chosen on.
    - `shuffled`: real cells with every gene's values shuffled among the cells of a group (or all cells): right margins, no correlation. A model near this
      has learned nothing beyond single genes. Total counts stay as they are.
    - `low`, `high`: 95 % interval of the value for another draw of equally many cells on both sides, from the same model and the same tissue.
    - `better`: ``"lower"``, ``"higher"``, or ``"floor"`` where the best value is the floor itself.

    ``attrs["n_cells"]`` maps every group to the number of cells on either side.

    Raises
    ------
    KeyError
        If a layer or a column is absent.
    ValueError
        If cells are too few, genes differ, a metric is unknown or lacks what it needs, or ``real_test`` has cells of ``train``.

    Notes
    -----
    The interval comes from half-samples (McCarthy): half of the cells of each side is drawn without replacement, ``n_bootstrap`` times. For a mean of `n` cells, the
    variance over half-samples is :math:`s^2 / (n/2) \cdot (1 - 1/2) = s^2 / n`, that of the mean itself; so for every figure that is smooth in
    the cells, to first order. Their mean is biased (distances grow as cells get fewer) and not used: the interval is
    :math:`\text{value} \pm 1.96\, \text{SD}`, cut at the metric's bounds. A bootstrap with replacement would not do: repeated cells are each
    other's neighbours. For AUCs of classifiers, the cells' cross-validated scores are drawn, and no classifier is fitted again.
    Ten half-samples know the SD to a quarter or so. What another training run would give is not in the interval.

    Floors draw real cells at random, labels included. Synthetic cells that were asked for with the very labels of ``real_test`` have no such
    scatter of labels: in small sets this favours them by a few per cent (4 % of `w2` with 140 cells of ten types).

    Without ``groupby``, `within_label_correlation` looks at correlations among all cells, differences between cell types included.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> real, train = rng.poisson(2.0, (60, 20)), rng.poisson(2.0, (120, 20))
    >>> synthetic = rng.poisson(np.linspace(1, 5, 20), (60, 20))
    >>> table = evaluate(real, synthetic, train=train, metrics=["gene_mean_error", "library_size_ks"])
    >>> table[["metric", "group", "better"]].values.tolist()
    [['gene_mean_error', 'all', 'lower'], ['library_size_ks', 'all', 'lower']]
    >>> bool((table["value"] > table["floor"]).all())
    True
    """
    return evaluate_on_scale(
        real_test,
        synthetic,
        train=train,
        groupby=groupby,
        metrics=metrics,
        layer=layer,
        space=space,
        max_cells=max_cells,
        n_floor=n_floor,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )


def evaluate_on_scale(
    real_test: Cells,
    synthetic: Cells,
    *,
    scale: Scale | None = None,
    without: Collection[str] = (),
    train: Cells | None = None,
    groupby: str | Sequence[str] | None = None,
    metrics: str | Sequence[str] | None = None,
    layer: str | None = None,
    space: ComparisonSpace | None = None,
    max_cells: int = 2_000,
    n_floor: int = 5,
    n_bootstrap: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the table of :func:`evaluate`, with the values on another scale (None is the common one), and without some metrics."""
    check_numbers(max_cells=max_cells, n_floor=n_floor, n_bootstrap=n_bootstrap, seed=seed)
    check_names(metrics)
    check_space(space)
    sets = {"real_test": real_test, "synthetic": synthetic} | ({} if train is None else {"train": train})
    adatas = {name: as_adata(cells, name) for name, cells in sets.items()}
    check_arrays(sets)
    real, drawn_from, trained_on = make_sources(
        adatas["real_test"], adatas["synthetic"], adatas.get("train"), groupby, layer, scale
    )
    wanted = choose_metrics(
        metrics,
        has_train=train is not None,
        has_groups=groupby is not None,
        has_counts=all(source.are_counts for source in (real, drawn_from, trained_on) if source is not None),
    )
    wanted = [metric for metric in wanted if metric.name not in without]
    pools = draw_pools(
        real,
        drawn_from,
        trained_on,
        space,
        max_cells=max_cells,
        seed=seed,
        with_training=any(metric.against_training for metric in wanted),
    )
    return _tabulate(wanted, pools, Plan(MIN_CELLS_PER_GROUP, n_floor=n_floor, n_bootstrap=n_bootstrap, seed=seed))


def _tabulate(metrics: list[Metric], pools: Pools, plan: Plan) -> pd.DataFrame:
    of_all = make_trial(pools, None, plan)
    if not np.ptp(of_all.value.real.pcs, axis=0).any():
        msg = "The cells of `real_test` are all the same; there is nothing to compare with."
        raise ValueError(msg)
    _warn_of_real_cells(of_all)
    real_groups, groups = _groups(pools)
    rows = rows_of_all(metrics, of_all) + rows_by_group(metrics, groups, of_all)
    n_cells = {ALL: pools.n_cells}
    for group in real_groups:
        trial = make_trial(pools, group, plan)
        rows += rows_of_group(metrics, group, trial)
        n_cells[group] = 0 if trial is None else len(trial.value.real)
    table = as_table(rows, metrics)
    table.attrs["n_cells"] = n_cells
    return table


def _warn_of_real_cells(trial: Trial) -> None:
    """Warn where synthetic cells are the held-out ones; cells with hardly any counts are equal by chance, as the floor says."""
    share, *usual = (CATALOGUE["copied_test_cells"].measure(part) for part in (trial.value, *trial.floors[:1]))
    if share - sum(usual) > MANY_COPIES:
        msg = (
            f"{share:.0%} of the cells in `synthetic` that were compared are cells of `real_test`, count by count: these figures say nothing of a model. "
            "Were files mixed up?"
        )
        warn_user(msg)


def _groups(pools: Pools) -> tuple[list[str], list[str]]:
    """Return the groups with enough real cells, and with them those with enough synthetic cells only."""
    n_sides = 2 if pools.floor is None else 1  # of real cells, where one half plays the synthetic ones
    real = _frequent(pools.real.sample.labels, n_sides * MIN_CELLS_PER_GROUP)
    return real, sorted({*real, *_frequent(pools.synthetic.sample.labels, MIN_CELLS_PER_GROUP)})


def _frequent(labels: NDArray | None, n_cells: int) -> list[str]:
    if labels is None:
        return []
    names, sizes = np.unique(labels, return_counts=True)
    return names[sizes >= n_cells].tolist()


MIN_CELLS = 50
REAL = ("real_test", "train", "control")  # names of sets of real cells
N_CELLS_LOOKED_AT = 20
N_SHARED_LOOKED_AT = 500
N_LABELS_NAMED = 5


def as_adata(cells: Cells, name: str) -> AnnData:
    """Return cells as AnnData, arrays as counts."""
    if isinstance(cells, AnnData):
        return cells
    if not (sp.issparse(cells) or isinstance(cells, np.ndarray)) or cells.ndim != 2:
        advice = " For several modalities, there is `evaluate_modalities`." if isinstance(cells, MuData) else ""
        msg = f"`{name}` must be AnnData or counts of shape (cells, genes), but is {type(cells).__name__}.{advice}"
        raise TypeError(msg)
    return AnnData(sp.csr_matrix(cells))


def check_arrays(sets: Mapping[str, Cells]) -> None:
    """Raise unless arrays, whose genes have no names, have as many genes as the first set."""
    first, real = next(iter(sets.items()))
    for name, cells in sets.items():
        if not isinstance(cells, AnnData):
            check_same_number_of_genes(real.shape[1], cells.shape[1], (first, name))


def check_numbers(*, max_cells: int, n_floor: int, seed: int, n_bootstrap: int = 0, min_cells: int = MIN_CELLS) -> None:
    """Raise where a number of draws or cells makes no sense."""
    numbers = {
        "max_cells": (max_cells, min_cells, f"{min_cells} or more"),
        "n_floor": (n_floor, 0, "0 (no floor) or more"),
        "n_bootstrap": (n_bootstrap, 0, "0 (no interval), or 2 or more"),
        "seed": (seed, 0, "0 to 2**32 - 1"),  # as scikit-learn takes it
    }
    for name, (number, least, allowed) in numbers.items():
        unfit = {"n_bootstrap": number == 1, "seed": is_whole_number(number) and number >= 2**32}
        if not is_whole_number(number) or number < least or unfit.get(name):
            msg = f"`{name}` is {number!r}; it must be {allowed}, a whole number."
            raise ValueError(msg)


def check_space(space: object) -> None:
    """Raise TypeError for anything but a space or None."""
    if not isinstance(space, ComparisonSpace | None):
        msg = f"`space` must be a ComparisonSpace, but is {space!r}."
        raise TypeError(msg)


def make_sources(
    real: AnnData,
    synthetic: AnnData,
    train: AnnData | None,
    groupby: str | Sequence[str] | None,
    layer: str | None,
    scale: Scale | None,
) -> tuple[Source, Source, Source | None]:
    """Check the sets against each other."""
    given = {"real_test": real, "synthetic": synthetic} | ({} if train is None else {"train": train})
    for name, cells in given.items():
        _check_size(name, cells, needed=_n_needed(name, has_train=train is not None))
        check_genes(name, cells, real.var_names)
    sources = [
        Source(name, cells, real.var_names, _labels(name, cells, groupby), layer_to_read(name, cells, layer), scale)
        for name, cells in given.items()
    ]
    for source in sources:
        source.expression(np.arange(N_CELLS_LOOKED_AT))  # raises where values are not what they should be
        _check_some_labels_shared(sources[0], source)
    if train is not None:
        _check_overlap(sources[2], sources[0], sources[1])
    return sources[0], sources[1], sources[2] if train is not None else None


def choose_metrics(
    names: str | Sequence[str] | None, *, has_train: bool, has_groups: bool, has_counts: bool
) -> list[Metric]:
    """Return the entries asked for; of all entries, those that have what they need.

    Raises
    ------
    ValueError
        If a metric is unknown, or was asked for and lacks what it needs.
    """
    there = {"train": has_train, "groups": has_groups, "counts": has_counts}
    if names is None:
        return [metric for metric in CATALOGUE.values() if all(there[need] for need in metric.needs)]
    names = [names] if isinstance(names, str) else list(names)
    check_names(names)
    for name in names:
        if missing := [need for need in CATALOGUE[name].needs if not there[need]]:
            msg = f"`metrics` asks for {name!r}, which needs {_NEEDS[missing[0]]}."
            raise ValueError(msg)
    return [metric for name, metric in CATALOGUE.items() if name in names]


def check_names(names: str | Sequence[str] | None) -> None:
    """Raise where a metric is unknown."""
    if not isinstance(names, str | Collection | None):
        msg = f"`metrics` must be a list of names, but is {names!r}."
        raise TypeError(msg)
    for name in [names] if isinstance(names, str) else names or []:
        if name not in CATALOGUE:
            msg = f"`metrics` has the unknown name {name!r}. {known_names(name, list(CATALOGUE))}"
            raise ValueError(msg)


_NEEDS = {
    "train": "`train`, the cells that the model has learned from",
    "groups": "`groupby`, a column of `obs`",
    "counts": "counts in all sets, not log-normalised values",
}


def _n_needed(name: str, *, has_train: bool) -> int:
    """One half of `train` fits the space, the other plays the synthetic cells; without it `real_test` does all three."""
    if name == "train":
        return 2 * MIN_CELLS
    return MIN_CELLS if has_train or name == "synthetic" else 3 * MIN_CELLS


def _check_size(name: str, cells: AnnData, *, needed: int) -> None:
    if cells.n_obs < needed:
        hint = "; it is split in three where there is no `train`" if needed == 3 * MIN_CELLS else ""
        msg = f"`{name}` has {cells.n_obs} cells; there must be {needed} or more{hint}."
        raise ValueError(msg)


def check_genes(name: str, cells: AnnData, genes: pd.Index) -> None:
    """Raise unless cells have these genes, in any order."""
    if len(genes) and not len(cells.var_names.intersection(genes)):
        msg = (
            f"`{name}` and `real_test` have no gene in common: {list(cells.var_names[:3])} and {list(genes[:3])}. "
            "Bring both to the same kind of name in `var_names`."
        )
        raise ValueError(msg)
    check_has_genes(cells, genes, name)


def layer_to_read(name: str, cells: AnnData, layer: str | None) -> str | None:
    """Return the layer to read; synthetic cells keep counts in `X` where they lack the real cells' layer."""
    if layer is None or (name not in REAL and layer not in cells.layers):
        return COUNTS_LAYER if COUNTS_LAYER in cells.layers else None
    return layer


def _labels(name: str, cells: AnnData, groupby: str | Sequence[str] | None) -> NDArray[np.str_] | None:
    if groupby is None:
        return None
    labels = labels_of(cells, groupby, name=name)
    if (labels == ALL).any():
        msg = f"`groupby` gives the label {ALL!r} to cells of `{name}`, which is what the table calls all cells; rename it."
        raise ValueError(msg)
    return labels


def _check_some_labels_shared(real: Source, other: Source) -> None:
    if real.labels is None or np.isin(other.labels, real.labels).any():
        return
    found, known = (np.unique(source.labels)[:N_LABELS_NAMED].tolist() for source in (other, real))
    msg = f"No cell of `{other.name}` has a label that a cell of `{real.name}` has: {found} and {known}. Bring both to the same names."
    raise ValueError(msg)


def _check_overlap(train: Source, real: Source, synthetic: Source) -> None:
    if _share_of_same_cells(train, real) > 0.5:
        msg = (
            "`real_test` has cells of `train`: the same `obs_names` with the same values. "
            "Give cells that the model has not learned from, or leave `train` out."
        )
        raise ValueError(msg)
    if _share_of_same_cells(train, synthetic) > 0.5:
        msg = (
            "`synthetic` has cells of `train`: the same `obs_names` with the same values. "
            "Figures of their quality say nothing; those of memorisation will show it."
        )
        warn_user(msg)


def _share_of_same_cells(first: Source, second: Source) -> float:
    """Return the share of cells of the same name that have the same values, among the first few."""
    shared = first.cells.obs_names.intersection(second.cells.obs_names)[:N_SHARED_LOOKED_AT]
    if not len(shared):
        return 0.0
    values = []
    for source in (first, second):
        if not source.cells.obs_names.is_unique:
            return 0.0
        values.append(source.expression(source.cells.obs_names.get_indexer(shared)).values)
    n_different = np.asarray((values[0] != values[1]).sum(axis=1)).ravel()
    return float((n_different == 0).mean())


logger = logging.getLogger(__name__)

CHUNK = 2_000
FIT_CELLS = 10_000
CELLS_PER_GROUP = 500
POOL_FACTOR = 2  # so many times the cells of a comparison are kept of real cells, for draws that differ


@dataclass(frozen=True)
class Source:
    """One of the sets given, untouched.

    Attributes
    ----------
    name
        What errors call it.
    cells
        As given.
    genes
        Genes of the real cells, in whose order values are read.
    labels
        Groups, `(cells,)`; None without ``groupby``.
    layer
        Layer with the counts.
    scale
        What the counts are compared on; None is the common scale.
    """

    name: str
    cells: AnnData
    genes: pd.Index
    labels: NDArray[np.str_] | None
    layer: str | None
    scale: Scale | None = None

    def __len__(self) -> int:
        return self.cells.n_obs

    @property
    def are_counts(self) -> bool:
        """Whether the cells come as counts, not log-normalised."""
        return self._matrix[1] is None

    def expression(self, rows: NDArray) -> Expression:
        """Return some of the cells on their scale, in the order given."""
        matrix, log_base = self._matrix
        ascending = np.argsort(rows, kind="stable")
        values = sp.csr_matrix(matrix[rows[ascending]])[np.argsort(ascending, kind="stable")]
        if self._columns is not None:
            values = values[:, self._columns]
        return on_scale(values, log_base, name=self.name, scale=self.scale)

    def chunks(self, rows: NDArray) -> Iterator[Expression]:
        """Return the same in parts, which bounds the memory of what lies between."""
        for start in range(0, len(rows), CHUNK):
            yield self.expression(rows[start : start + CHUNK])

    @cached_property
    def _matrix(self) -> tuple[sp.spmatrix | NDArray, float | None]:
        # kept, since a view of an AnnData copies its values on every access
        return matrix_of(self.cells, self.layer, self.name)

    @cached_property
    def _columns(self) -> NDArray[np.intp] | None:
        same = self.cells.var_names.equals(self.genes)
        return None if same else self.cells.var_names.get_indexer(self.genes)


@dataclass(frozen=True)
class Pool:
    """Drawn cells of one set, in random order.

    Attributes
    ----------
    sample
        The cells.
    n_of_all
        The first so many are a random draw of all cells; the rest was added for groups that have few among these.
    """

    sample: Sample
    n_of_all: int

    def positions(self, group: str | None) -> NDArray[np.intp]:
        """Return the positions of a group's cells (None: of all), any first so many of which are a random draw."""
        if group is None:
            return np.arange(self.n_of_all)
        return np.flatnonzero(self.sample.labels == group)[: POOL_FACTOR * CELLS_PER_GROUP]


@dataclass(frozen=True)
class Pools:
    """All cells that a table is made of.

    Attributes
    ----------
    real, synthetic
        The cells that are compared.
    floor
        Real cells that play the synthetic ones; None where one half of `real` plays them.
    space
        Genes and components.
    training
        What synthetic cells may have been copied from; None without ``train``.
    n_cells
        Cells on either side of a comparison of all cells.
    """

    real: Pool
    synthetic: Pool
    floor: Pool | None
    space: ComparisonSpace
    training: Training | None
    n_cells: int

    @property
    def have_counts(self) -> bool:
        """Whether both real and synthetic cells came as counts."""
        pools = [self.real, self.synthetic] + ([] if self.floor is None else [self.floor])
        return all(pool.sample.expression.library_sizes is not None for pool in pools)


def draw_pools(
    real: Source,
    synthetic: Source,
    train: Source | None,
    space: ComparisonSpace | None,
    *,
    max_cells: int,
    seed: int,
    with_training: bool,
) -> Pools:
    """Choose who fits the space, who plays the synthetic cells, and draw."""
    rng = np.random.default_rng([seed, 0])
    fitted, rest = _split(real if train is None else train, space, share=3 if train is None else 2, rng=rng)
    if space is None:
        space = _fit(real if train is None else train, fitted, seed)
    real_rows = rest if train is None else np.arange(len(real))
    available = [len(real_rows) // 2] if train is None else [len(real_rows), len(rest)]
    n_cells = min(*available, len(synthetic), max_cells)
    logger.info("Comparing %d real with %d synthetic cells.", n_cells, n_cells)
    draw = lambda source, rows, factor: _draw(source, rows, space, n_cells * factor, factor * CELLS_PER_GROUP, rng)
    return Pools(
        real=draw(real, real_rows, POOL_FACTOR),
        synthetic=draw(synthetic, np.arange(len(synthetic)), 1),
        floor=None if train is None else draw(train, rest, POOL_FACTOR),
        space=space,
        training=_training(train, space, rest) if with_training and train is not None else None,
        n_cells=n_cells,
    )


def _split(
    source: Source, space: ComparisonSpace | None, *, share: int, rng: np.random.Generator
) -> tuple[NDArray, NDArray]:
    """Set one in `share` cells aside to fit the space; none where there is one."""
    order = rng.permutation(len(source))
    n_fitted = len(order) // share if space is None else 0
    return order[:n_fitted], order[n_fitted:]


def _fit(source: Source, rows: NDArray, seed: int) -> ComparisonSpace:
    return ComparisonSpace.fit(_stacked(list(source.chunks(rows[:FIT_CELLS]))), seed=seed)


def _draw(
    source: Source, rows: NDArray, space: ComparisonSpace, n_cells: int, n_per_group: int, rng: np.random.Generator
) -> Pool:
    """Draw so many of these cells, and of every group so many if it has them."""
    rows = rng.permutation(rows)
    drawn = np.arange(len(rows)) < n_cells
    n_of_all = int(drawn.sum())
    labels = None if source.labels is None else source.labels[rows]
    if labels is not None:
        drawn |= pd.Series(labels).groupby(labels).cumcount().to_numpy() < n_per_group
        labels = labels[drawn]
    chunks, pcs = [], []
    for chunk in source.chunks(rows[drawn]):
        chunks.append(chunk)
        pcs.append(space.project(chunk))
    return Pool(Sample(_stacked(chunks), np.concatenate(pcs), labels), n_of_all)


def _training(train: Source, space: ComparisonSpace, not_fitted: NDArray) -> Training:
    pcs, fingerprints = [], set()
    for chunk in train.chunks(np.arange(len(train))):
        pcs.append(space.project(chunk))
        fingerprints.update(fingerprints_of(chunk))
    pcs = np.concatenate(pcs)
    return Training(pcs, pcs[not_fitted], frozenset(fingerprints))


def _stacked(parts: list[Expression]) -> Expression:
    sizes = [part.library_sizes for part in parts]
    values = sp.vstack([part.values for part in parts], format="csr")
    return Expression(values, None if any(size is None for size in sizes) else np.concatenate(sizes))


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


COLUMNS = ["metric", "group", "value", "floor", "shuffled", "low", "high", "better"]
ALL = "all"
UNKNOWN = float("nan")


def rows_of_all(metrics: Sequence[Metric], trial: Trial) -> list[dict[str, object]]:
    """Return one row per metric for all cells."""
    return [_named(metric, ALL, _row(metric, trial)) for metric in metrics]


def rows_of_group(metrics: Sequence[Metric], group: str, trial: Trial | None) -> list[dict[str, object]]:
    """Return one row per metric that is measured in a group alone; without figures where there are too few cells."""
    return [
        _named(metric, group, {} if trial is None else _row(metric, trial)) for metric in metrics if metric.per_group
    ]


def rows_by_group(metrics: Sequence[Metric], groups: Sequence[str], trial: Trial) -> list[dict[str, object]]:
    """Return a row per group for the metrics that measure each group among all others."""
    return [
        _named(metric, group, row)
        for metric in metrics
        if metric.by_group is not None
        for group, row in _rows_by_group(metric, groups, trial).items()
    ]


def as_table(rows: list[dict[str, object]], metrics: Sequence[Metric]) -> pd.DataFrame:
    """Lay rows out: all cells first, then group by group, metrics in the order of the catalogue."""
    table = pd.DataFrame(rows, columns=COLUMNS)
    group_order = {
        group: place for place, group in enumerate(dict.fromkeys([ALL, *sorted(set(table["group"]) - {ALL})]))
    }
    metric_order = {metric.name: place for place, metric in enumerate(metrics)}
    order = np.lexsort([table["metric"].map(metric_order), table["group"].map(group_order)])
    return table.iloc[order].reset_index(drop=True)


def _named(metric: Metric, group: str, figures: Mapping[str, float]) -> dict[str, object]:
    nothing = dict.fromkeys(COLUMNS[2:-1], UNKNOWN)
    return {"metric": metric.name, "group": group, **nothing, **figures, "better": metric.better}


def _row(metric: Metric, trial: Trial) -> dict[str, float]:
    value = metric.measure(trial.value)
    floors = trial.held_out_floors if metric.against_training else trial.floors
    low, high = interval(value, _half_values(metric, trial), metric.bounds)
    return {
        "value": value,
        "floor": _mean([metric.measure(floor) for floor in floors[: 1 if metric.slow else None]]),
        "shuffled": UNKNOWN if trial.shuffled is None else metric.measure(trial.shuffled),
        "low": low,
        "high": high,
    }


def _half_values(metric: Metric, trial: Trial) -> list[float]:
    if not metric.has_interval:
        return []
    if metric.scores is None:
        return [metric.measure(half.comparison) for half in trial.halves]
    scores = trial.value.once(metric.scores)
    return [metric.summary(scores.real[half.real_rows], scores.synthetic[half.synthetic_rows]) for half in trial.halves]


def _rows_by_group(metric: Metric, groups: Sequence[str], trial: Trial) -> dict[str, dict[str, float]]:
    value, *halves = _figures(metric.by_group, [trial.value, *(half.comparison for half in trial.halves)], groups)
    floors = _figures(metric.by_group, trial.floors, groups)
    shuffled = _figures(metric.by_group, [] if trial.shuffled is None else [trial.shuffled], groups)
    rows = {}
    for group in groups:
        low, high = interval(value[group], [half[group] for half in halves], metric.bounds)
        rows[group] = {
            "value": value[group],
            "floor": _mean([floor[group] for floor in floors]),
            "shuffled": _mean([figures[group] for figures in shuffled]),
            "low": low,
            "high": high,
        }
    return rows


def _figures(
    by_group: Callable[[Comparison], Mapping[str, float]], comparisons: Sequence[Comparison], groups: Sequence[str]
) -> list[dict[str, float]]:
    found = [comparison.once(by_group) for comparison in comparisons]
    return [{group: figures.get(group, UNKNOWN) for group in groups} for figures in found]


def _mean(values: Sequence[float]) -> float:
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else UNKNOWN
