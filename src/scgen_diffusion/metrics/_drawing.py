"""Which cells are compared: drawn first, then put on the common scale, so that nothing is normalised or projected in vain."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ._comparison import Sample, Training
from ._expression import Expression, matrix_of, on_scale
from ._safety import fingerprints_of
from ._space import ComparisonSpace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import NDArray

    from ._scales import Scale

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
