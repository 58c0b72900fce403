"""All metrics in one tidy table, every figure beside its floor: check, draw cells, compare, lay out rows.

Cells are drawn first and put on their scale then, so that nothing is normalised or projected in vain.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scgen_diffusion.data import is_whole_number, known_names, warn_user

from ._catalogue import CATALOGUE, Comparison, Metric, Sample, Training
from ._cells import Cells, Expression, Source, as_adata, check_arrays
from ._distribution import median_squared_distance
from ._safety import fingerprints_of
from ._space import ComparisonSpace
from ._table import ALL, Context, Half

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from ._space import Scale

logger = logging.getLogger(__name__)

COLUMNS = ["metric", "group", "value", "floor", "shuffled", "low", "high", "better"]
MIN_CELLS = 50
MIN_CELLS_PER_GROUP = 30
MANY_COPIES = 0.2  # without `train`, a third of `real_test` is compared
N_CELLS_LOOKED_AT = 20
N_SHARED_LOOKED_AT = 500
N_LABELS_NAMED = 5
FIT_CELLS = 10_000
CELLS_PER_GROUP = 500
POOL_FACTOR = 2  # so many times the cells of a comparison are kept of real cells, for draws that differ
GENES_AT_ONCE = 1_000


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
        {"real_test": real_test, "synthetic": synthetic, "train": train},
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
    sets: Mapping[str, Cells | None],
    *,
    groupby: str | Sequence[str] | None,
    metrics: str | Sequence[str] | None,
    layer: str | None,
    max_cells: int,
    n_floor: int,
    n_bootstrap: int,
    seed: int,
    space: ComparisonSpace | None = None,
    scale: Scale | None = None,
    without: Collection[str] = (),
) -> pd.DataFrame:
    """Return the table of :func:`evaluate`, with the values on another scale (None is the common one), and without some metrics."""
    check_numbers(max_cells=max_cells, n_floor=n_floor, n_bootstrap=n_bootstrap, seed=seed)
    check_names(metrics)
    check_space(space)
    sources = _read({name: cells for name, cells in sets.items() if cells is not None}, groupby, layer, scale)
    real, synthetic, train = sources["real_test"], sources["synthetic"], sources.get("train")
    wanted = choose_metrics(
        metrics,
        has_train=train is not None,
        has_groups=groupby is not None,
        has_counts=all(source.are_counts for source in sources.values()),
    )
    wanted = [metric for metric in wanted if metric.name not in without]
    with_training = any(metric.against_training for metric in wanted)
    pools = draw_pools(real, synthetic, train, space, max_cells=max_cells, seed=seed, with_training=with_training)

    make = partial(make_context, pools, n_floor=n_floor, n_bootstrap=n_bootstrap, seed=seed)
    of_all = make(None)
    if not np.ptp(of_all.players["value"][0].real.pcs, axis=0).any():
        msg = "The cells of `real_test` are all the same; there is nothing to compare with."
        raise ValueError(msg)
    _warn_of_real_cells(of_all)
    n_sides = 2 if pools.floor is None else 1  # of real cells, where one half plays the synthetic ones
    groups = _frequent(pools.real, n_sides * MIN_CELLS_PER_GROUP)
    contexts = {group: make(group) for group in groups}
    groups_of_either = {*groups, *_frequent(pools.synthetic, MIN_CELLS_PER_GROUP)}
    rows = []
    for metric in wanted:
        rows.append(of_all.row(metric))
        if metric.by_group is not None:
            rows += [of_all.row(metric, group) for group in groups_of_either]
        if metric.per_group:
            unknown = {"metric": metric.name, "better": metric.better}
            rows += [
                {**unknown, "group": group} if context is None else context.row(metric)
                for group, context in contexts.items()
            ]
    place = {metric.name: position for position, metric in enumerate(wanted)}
    # all cells first, then group by group, metrics in the order of the catalogue
    rows.sort(key=lambda row: (row["group"] != ALL, row["group"], place[row["metric"]]))
    table = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(COLUMNS[2:-1], float))
    table.attrs["n_cells"] = {ALL: pools.n_cells} | {
        group: 0 if context is None else len(context.players["value"][0].real) for group, context in contexts.items()
    }
    return table


def _warn_of_real_cells(context: Context) -> None:
    """Warn where synthetic cells are the held-out ones; cells with hardly any counts are equal by chance, as the floor says."""
    compared = [*context.players["value"], *context.players["floor"][:1]]
    share, *usual = (CATALOGUE["copied_test_cells"].measure(comparison) for comparison in compared)
    if share - sum(usual) > MANY_COPIES:
        msg = (
            f"{share:.0%} of the cells in `synthetic` that were compared are cells of `real_test`, count by count: these figures say nothing of a model. "
            "Were files mixed up?"
        )
        warn_user(msg)


def _frequent(pool: Pool, n_cells: int) -> list[str]:
    if pool.sample.labels is None:
        return []
    names, sizes = np.unique(pool.sample.labels, return_counts=True)
    return names[sizes >= n_cells].tolist()


# --- what is asked of the arguments, before any long work -------------------------------------------------------------


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


def choose_metrics(
    names: str | Sequence[str] | None, *, has_train: bool, has_groups: bool, has_counts: bool
) -> list[Metric]:
    """Return the entries asked for; of all entries, those that have what they need.

    Raises
    ------
    ValueError
        If a metric was asked for and lacks what it needs.
    """
    there = {"train": has_train, "groups": has_groups, "counts": has_counts}
    if names is None:
        return [metric for metric in CATALOGUE.values() if all(there[need] for need in metric.needs)]
    names = [names] if isinstance(names, str) else names
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


def _read(
    sets: Mapping[str, Cells], groupby: str | Sequence[str] | None, layer: str | None, scale: Scale | None
) -> dict[str, Source]:
    """Check the sets one by one, and against each other."""
    adatas = {name: as_adata(cells, name) for name, cells in sets.items()}
    check_arrays(sets)
    sources = {}
    for name, cells in adatas.items():
        # one half of `train` fits the space, the other plays the synthetic cells; without it `real_test` does all three
        n_parts = {"train": 2, "synthetic": 1}.get(name, 1 if "train" in sets else 3)
        if cells.n_obs < n_parts * MIN_CELLS:
            hint = "; it is split in three where there is no `train`" if n_parts == 3 else ""
            msg = f"`{name}` has {cells.n_obs} cells; there must be {n_parts * MIN_CELLS} or more{hint}."
            raise ValueError(msg)
        genes = adatas["real_test"].var_names
        sources[name] = Source.of(cells, name, genes, groupby=groupby, layer=layer, scale=scale)
    real = sources["real_test"]
    for name, source in sources.items():
        source.expression(np.arange(N_CELLS_LOOKED_AT))  # raises where values are not what they should be
        if groupby is not None and (source.labels == ALL).any():
            msg = f"`groupby` gives the label {ALL!r} to cells of `{name}`, which is what the table calls all cells; rename it."
            raise ValueError(msg)
        if groupby is not None and not np.isin(source.labels, real.labels).any():
            found, known = (np.unique(side.labels)[:N_LABELS_NAMED].tolist() for side in (source, real))
            msg = f"No cell of `{name}` has a label that a cell of `real_test` has: {found} and {known}. Bring both to the same names."
            raise ValueError(msg)
    if "train" not in sources:
        return sources
    if _share_of_same_cells(sources["train"], real) > 0.5:
        msg = (
            "`real_test` has cells of `train`: the same `obs_names` with the same values. "
            "Give cells that the model has not learned from, or leave `train` out."
        )
        raise ValueError(msg)
    if _share_of_same_cells(sources["train"], sources["synthetic"]) > 0.5:
        msg = (
            "`synthetic` has cells of `train`: the same `obs_names` with the same values. "
            "Figures of their quality say nothing; those of memorisation will show it."
        )
        warn_user(msg)
    return sources


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


# --- which cells are compared -----------------------------------------------------------------------------------------


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
    source = real if train is None else train
    rest = rng.permutation(len(source))
    if space is None:  # fitted to cells that are compared with nothing
        fitted, rest = np.split(rest, [len(rest) // (3 if train is None else 2)])
        space = ComparisonSpace.fit(_stacked([*source.chunks(fitted[:FIT_CELLS])]), seed=seed)
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


def make_context(pools: Pools, group: str | None, *, n_floor: int, n_bootstrap: int, seed: int) -> Context | None:
    """Draw the comparisons of a group (None: of all cells); None where a side has too few cells."""
    real, synthetic = pools.real.positions(group), pools.synthetic.positions(group)
    others = real[len(real) // 2 :] if pools.floor is None else pools.floor.positions(group)
    has_others = len(others) >= MIN_CELLS_PER_GROUP
    n_real = len(real) - len(others) if pools.floor is None else len(real)
    n_cells = min([n_real, len(synthetic), pools.n_cells] + [len(others)] * has_others)
    if n_cells < MIN_CELLS_PER_GROUP:
        return None
    rng = np.random.default_rng([seed, 1])
    cells, other_cells = pools.real.sample, (pools.real if pools.floor is None else pools.floor).sample
    first = cells[real[:n_cells]]
    compare = partial(
        Comparison,
        genes=pools.space.genes[np.argsort(-pools.space.pca.mean_, kind="stable")],
        squared_scale=median_squared_distance(first.pcs),
        training=pools.training,
        seed=seed,
    )

    def draw_others() -> Sample:
        return other_cells[rng.choice(others, n_cells, replace=False)]

    def split_real() -> Comparison:
        order = rng.permutation(real)
        n_half = min(n_cells, len(order) // 2)
        return compare(cells[order[:n_half]], cells[order[n_half : 2 * n_half]])

    value = compare(first, pools.synthetic.sample[synthetic[:n_cells]])
    draw_floor = split_real if pools.floor is None else lambda: compare(first, draw_others())
    floors = [draw_floor() for _ in range(n_floor if has_others else 0)]
    held_out_floors = [split_real() for _ in range(n_floor if pools.training is not None else 0)]
    shuffled = [compare(first, shuffle_genes(draw_others(), pools.space.project, rng))] if has_others else []
    return Context(
        {"group": ALL if group is None else group},
        {"value": [value], "floor": floors, "shuffled": shuffled},
        held_out_floors=held_out_floors,
        halves=[_half(value, rng) for _ in range(n_bootstrap)],
    )


def _half(comparison: Comparison, rng: np.random.Generator) -> Half:
    real_rows, synthetic_rows = (
        np.sort(rng.permutation(len(side))[: len(side) // 2]) for side in (comparison.real, comparison.synthetic)
    )
    return Half(real_rows, synthetic_rows, comparison.at(real_rows, synthetic_rows))


def shuffle_genes(sample: Sample, project: Callable[[Expression], NDArray], rng: np.random.Generator) -> Sample:
    """Shuffle every gene's values among the cells of a group, or among all cells without groups: right margins, no correlation."""
    values = sample.expression.values
    labels = np.zeros(len(sample)) if sample.labels is None else sample.labels
    parts = []
    for start in range(0, values.shape[1], GENES_AT_ONCE):
        by_gene = np.ascontiguousarray(values[:, start : start + GENES_AT_ONCE].toarray().T)
        for label in np.unique(labels):
            cells = np.flatnonzero(labels == label)
            by_gene[:, cells] = rng.permuted(by_gene[:, cells], axis=1)
        parts.append(sp.csr_matrix(by_gene.T))
    expression = Expression(sp.hstack(parts, format="csr"), sample.expression.library_sizes)
    return Sample(expression, project(expression), sample.labels)
