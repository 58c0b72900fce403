"""Draw the cells to compare, of each set and group, and put them side by side.

Cells are drawn before they are normalised and projected, so that no work is wasted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ._cells import MAX_FITTED_CELLS, ComparisonSpace, Expression, stacked
from ._comparison import MIN_CELLS_PER_GROUP, MIN_CELLS_PER_LABEL, AllCells, CellComparison, Context, Sample, Whole
from ._distribution import median_squared_distance
from ._genes import count_labels
from ._safety import chance_of_alike, fingerprints_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from ._cells import Source
    from ._comparison import Draws

CELLS_PER_GROUP = 500
POOL_FACTOR = 2  # keep this many times as many real cells as a comparison needs, so that draws differ
CELLS_PER_RARE_LABEL = 50
GENES_AT_ONCE = 1_000


@dataclass(frozen=True)
class Pool:
    """Drawn cells of one set, in random order.

    Attributes
    ----------
    sample
        The cells.
    n_of_all
        The first `n_of_all` cells are a random draw from all cells. The rest was added for groups with few cells among
        these.
    sizes
        Numbers of cells of each label in the set; None without labels.
    """

    sample: Sample
    n_of_all: int
    sizes: pd.Series | None

    def positions(self, group: str | None) -> NDArray[np.intp]:
        """Return the positions of a group's cells (None: of all). Any first few of them are a random draw."""
        if group is None:
            return np.arange(self.n_of_all)
        return np.flatnonzero(self.sample.labels == group)[: POOL_FACTOR * CELLS_PER_GROUP]

    def frequent_labels(self, n_cells: int) -> list[str]:
        """Return the labels of so many cells or more."""
        if self.sample.labels is None:
            return []
        sizes = count_labels(self.sample.labels)
        return sizes.index[sizes >= n_cells].tolist()


@dataclass(frozen=True)
class Pools:
    """All cells behind a table.

    Attributes
    ----------
    real, synthetic
        The cells to compare.
    others
        Real cells that play the synthetic ones; None if one half of `real` plays them.
    space
        Genes and components.
    all_cells
        All cells of every set; None if no metric needs them.
    n_cells
        Number of cells on either side in a comparison of all cells.
    rare
        Number of cells to compare of each label that has rows of its own, but few cells among those drawn.
    """

    real: Pool
    synthetic: Pool
    others: Pool | None
    space: ComparisonSpace
    all_cells: AllCells | None
    n_cells: int
    rare: pd.Series


def draw_pools(sources: Mapping[str, Source], space: ComparisonSpace | None, draws: Draws, *, with_all: bool) -> Pools:
    """Choose the cells that fit the space and those that play the synthetic cells, and draw."""
    real, synthetic, train = sources["real_test"], sources["synthetic"], sources.get("train")
    rng = np.random.default_rng([draws.seed, 0])
    source = real if train is None else train
    rest, n_parts = rng.permutation(len(source)), (space is None) + (2 if train is None else 1)
    if space is None:  # fit it to cells that are compared with nothing
        fitted, rest = np.split(rest, [len(rest) // n_parts])
        space = ComparisonSpace.fit(stacked(source.chunks(fitted[:MAX_FITTED_CELLS])), seed=draws.seed)
    real_rows = rest if train is None else np.arange(len(real))
    n_real = len(real_rows) // 2 if train is None else min(len(real_rows), len(rest))
    n_available = min(n_real, len(synthetic))
    n_cells = min(n_available, draws.max_cells)
    all_cells = None
    if with_all:
        whole = {name: _read_all(own, space) for name, own in sources.items()}
        members = None if train is None else whole["train"].pcs[rest]
        are_comparable = len({own.log_base is None for own in sources.values()}) == 1
        sides = whole["real_test"], whole["synthetic"], whole.get("train")
        all_cells = AllCells(*sides, members, are_comparable, draws.seed)
    draw = lambda source, rows, factor: _draw(source, rows, space, n_cells * factor, factor * CELLS_PER_GROUP, rng)
    drawn = draw(real, real_rows, POOL_FACTOR), draw(synthetic, np.arange(len(synthetic)), 1)
    return Pools(
        *drawn,
        others=None if train is None else draw(train, rest, POOL_FACTOR),
        space=space,
        all_cells=all_cells,
        n_cells=n_cells,
        rare=_rare_labels(*drawn, n_cells, n_available, n_parts=3 if train is None else 1),
    )


def _draw(
    source: Source, rows: NDArray, space: ComparisonSpace, n_cells: int, n_per_group: int, rng: np.random.Generator
) -> Pool:
    """Draw this many of these cells, and up to this many of every group."""
    rows = rng.permutation(rows)
    drawn = np.arange(len(rows)) < n_cells
    n_of_all = int(drawn.sum())
    labels = sizes = None
    if source.labels is not None:
        labels, sizes = source.labels[rows], count_labels(source.labels)
        drawn |= pd.Series(labels).groupby(labels).cumcount().to_numpy() < n_per_group
        labels = labels[drawn]
    chunks, pcs = [], []
    for chunk in source.chunks(rows[drawn]):
        chunks.append(chunk)
        pcs.append(space.project(chunk))
    return Pool(Sample(stacked(chunks), np.concatenate(pcs), labels), n_of_all, sizes)


def _rare_labels(real: Pool, synthetic: Pool, n_cells: int, n_available: int, *, n_parts: int) -> pd.Series:
    """Return how many cells to compare of each label with rows of its own, if few of the first `n_cells` have it.

    Without a limit, `n_available` cells would be compared. All real cells are split into `n_parts`.
    """
    if real.sizes is None:
        return pd.Series(dtype=int)
    available = real.sizes * n_available // real.sizes.sum()
    with_rows = real.sizes // n_parts >= MIN_CELLS_PER_GROUP
    few = [
        count_labels(pool.sample.labels[:n_cells]).reindex(real.sizes.index, fill_value=0) < MIN_CELLS_PER_LABEL
        for pool in (real, synthetic)
    ]
    return available[with_rows & np.logical_or(*few)].clip(upper=CELLS_PER_RARE_LABEL)


def _read_all(source: Source, space: ComparisonSpace) -> Whole:
    """Read all cells of a set once, in chunks, and keep a few bytes of each."""
    functions = space.project, fingerprints_of, chance_of_alike
    parts = [[function(chunk) for function in functions] for chunk in source.chunks(np.arange(len(source)))]
    return Whole(*map(np.concatenate, zip(*parts, strict=True)))


def make_context(pools: Pools, group: str | None, draws: Draws) -> Context | None:
    """Draw the comparisons of a group (None: of all cells). Return None if a side has too few cells."""
    real, synthetic = pools.real.positions(group), pools.synthetic.positions(group)
    source = pools.others or pools.real
    others = real[len(real) // 2 :] if pools.others is None else source.positions(group)
    has_others = len(others) >= MIN_CELLS_PER_GROUP
    n_real = len(real) // 2 if pools.others is None else len(real)
    n_cells = min(n_real, len(synthetic), pools.n_cells, len(others) if has_others else n_real)
    if n_cells < MIN_CELLS_PER_GROUP:
        return None
    # one generator each, because how many real pairs are drawn depends on which metrics are asked for
    rng, mixing, halving = (np.random.default_rng([draws.seed, purpose]) for purpose in (1, 2, 3))
    counting, mixing_rare = rng.spawn(1)[0], mixing.spawn(1)[0]  # which leaves the other draws alone

    def sample(
        pool: Pool, *parts: NDArray[np.intp], like: Sequence[Pool] = (), rng: np.random.Generator = counting
    ) -> list[Sample]:
        if group is None and pool.sizes is not None:
            return _beside_rare(pools, pool, parts, like, n_cells, rng)
        return [pool.sample[rows] for rows in parts]

    def split_real() -> CellComparison:
        order = rng.permutation(real)
        n_half = min(n_cells, len(order) // 2)
        halves = order[:n_half], order[n_half : 2 * n_half]
        return compare(*sample(pools.real, *halves, like=(pools.real, pools.synthetic)))

    def draw_others(rng: np.random.Generator, of_rare: np.random.Generator) -> Sample:
        return sample(source, rng.choice(others, n_cells, replace=False), like=[pools.synthetic], rng=of_rare)[0]

    (first,) = sample(pools.real, real[:n_cells])
    (drawn,) = sample(pools.synthetic, synthetic[:n_cells])
    compare = partial(
        CellComparison,
        genes=pools.space.genes[np.argsort(-pools.space.pca.mean_, kind="stable")],
        squared_scale=median_squared_distance(first.pcs),
        all_cells=pools.all_cells,
        seed=draws.seed,
    )
    value = compare(first, drawn, released=pools.all_cells and pools.all_cells.synthetic.pcs)
    draw_pair = split_real if pools.others is None else lambda: compare(first, draw_others(rng, counting))
    pairs = [draw_pair() for _ in range(draws.n_repeats if has_others else 0)]
    has_members = group is None and pools.all_cells is not None and pools.all_cells.train is not None
    n_held_out = draws.n_repeats if has_members else 0
    # each has its own draw of training cells, so that their mean has less noise
    held_out_pairs = [replace(split_real(), seed=draws.seed + i) for i in range(1, n_held_out + 1)]
    to_shuffle = [draw_others(mixing, mixing_rare)] if has_others else []
    shuffled = [compare(first, shuffle_genes(own, pools.space.project, mixing)) for own in to_shuffle]
    return Context(
        {"value": [value], "real": pairs, "shuffled": shuffled},
        held_out_pairs=held_out_pairs,
        halves=[value.half(halving) for _ in range(draws.n_bootstrap)],
    )


def _beside_rare(
    pools: Pools, pool: Pool, parts: Sequence[NDArray], like: Sequence[Pool], n_cells: int, rng: np.random.Generator
) -> list[Sample]:
    """Return samples of a pool, each with the other cells of its set, or with as many as the sets of ``like`` have."""
    is_rare = np.isin(pool.sample.labels, pools.rare.index)
    rows = rng.permutation(np.setdiff1d(np.flatnonzero(is_rare), np.concatenate(parts)))
    samples = []
    for part, side in zip(parts, like or [None] * len(parts), strict=True):
        own = pool.sample[part]
        drawn = count_labels(own.labels)
        sizes = pool.sizes.sub(drawn, fill_value=0).astype(int)
        if side is not None:  # what a perfect model would draw
            n_further = rng.multinomial(side.sizes.sum() - n_cells, pool.sizes / pool.sizes.sum())
            sizes = pd.Series(n_further, pool.sizes.index)
        labels = pd.Series(pool.sample.labels[rows])
        is_taken = (labels.groupby(labels).cumcount() < labels.map(pools.rare.sub(drawn, fill_value=0))).to_numpy()
        samples.append(replace(own, n_further=sizes, rare=pool.sample[rows[is_taken]]))
        rows = rows[~is_taken]
    return samples


def shuffle_genes(sample: Sample, project: Callable[[Expression], NDArray], rng: np.random.Generator) -> Sample:
    """Shuffle every gene's values among the cells of a group, or among all cells without groups."""
    values = sample.expression.values
    labels = np.zeros(len(sample)) if sample.labels is None else sample.labels
    groups, parts = [np.flatnonzero(labels == label) for label in np.unique(labels)], []
    for start in range(0, values.shape[1], GENES_AT_ONCE):
        by_gene = np.ascontiguousarray(values[:, start : start + GENES_AT_ONCE].toarray().T)
        for cells in groups:
            by_gene[:, cells] = rng.permuted(by_gene[:, cells], axis=1)
        parts.append(sp.csr_matrix(by_gene.T))
    expression = Expression(sp.hstack(parts, format="csr"), sample.expression.library_sizes)
    rare = sample.rare and shuffle_genes(sample.rare, project, rng)
    return Sample(expression, project(expression), sample.labels, sample.n_further, rare)
