"""Conditions as data: the joint distribution of the keys in the training cells, and requests for values of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy.spatial import KDTree

from scgen_diffusion._arguments import check_count, known_names

from ._checks import check_unique_names, obs_column
from ._condition_keys import MOST_CELLS, ROUNDING, ConditionKey, have_labels, with_columns
from ._plain import digest_of

OPEN = -np.inf  # code of a condition that is still to be drawn
FEWEST_TRAINING_CELLS = 10  # labels and combinations with fewer give a warning
N_NEIGHBOURS = 15  # training cells around given numbers, from which open values are drawn

ConditionRequest: TypeAlias = Mapping[str, Any] | pd.DataFrame | AnnData | MuData | None


@dataclass(frozen=True)
class RequestedCodes:
    """Codes ``(cells, columns)`` of a request, whose rows are made on demand.

    Parameters
    ----------
    n_cells, n_columns
        Number of rows and columns.
    given
        Columns of each requested key, and its values ``(values, columns of the key)``. Each value belongs to an equal
        share of consecutive cells.
    """

    n_cells: int
    n_columns: int
    given: Sequence[tuple[slice, np.ndarray]]

    def __len__(self) -> int:
        return self.n_cells

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Return the codes of some cells, :data:`OPEN` for keys left out."""
        codes = np.full((len(rows), self.n_columns), OPEN)
        for columns, values in self.given:
            codes[:, columns] = values[rows * len(values) // self.n_cells]
        return codes

    def all(self) -> np.ndarray:
        """Return the codes of all cells."""
        return self[np.arange(self.n_cells)]

    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes of consecutive cells that share them, and their numbers ``(runs,)``."""
        first = [-(-np.arange(len(values)) * self.n_cells // len(values)) for _, values in self.given]
        starts = np.unique(np.concatenate([np.zeros(1, int), *first]))
        return self[starts], np.diff(starts, append=self.n_cells)

    @property
    def is_uniform(self) -> bool:
        """Whether all cells have the same request."""
        return all(len(values) == 1 for _, values in self.given)

    @property
    def digest(self) -> str:
        """Digest of the request, for any number of cells."""
        given = sorted(self.given, key=lambda one: one[0].start)
        parts = [(columns.start, values.shape, values) for columns, values in given]
        return digest_of(self.n_columns, *chain.from_iterable(parts))


@dataclass(frozen=True)
class Conditions:
    """The condition keys of a model, and their joint distribution in the training cells.

    Parameters
    ----------
    by_key
        The keys, in the order of their columns.
    combinations
        Codes of each combination that occurs, ``(combinations, columns)``. With numbers, they are those of at most
        16,384 cells, a random sample, and of one cell with each combination of classes and sets.
    n_cells
        Number of training cells of each combination, of which those in a sample stand for equally many.
    """

    by_key: Sequence[ConditionKey]
    combinations: np.ndarray
    n_cells: np.ndarray

    @classmethod
    def from_codes(cls, by_key: Sequence[ConditionKey], codes: np.ndarray) -> Conditions:
        """Count the combinations among codes ``(cells, columns)``, of the cells that have all labels."""
        codes = codes[have_labels(by_key, codes)].astype(float)
        none, share = cls(by_key, codes[:0], np.zeros(0, int)), 1
        if none.are_numbers.any() and len(codes) > MOST_CELLS:
            classes = np.where(none.are_numbers, 0, codes)
            one_of_each = np.unique(classes, axis=0, return_index=True)[1]
            sample = np.random.default_rng(0).choice(len(codes), MOST_CELLS, replace=False)
            codes, share = codes[np.union1d(sample, one_of_each)], len(codes) // MOST_CELLS
        return none.joined(codes, np.full(len(codes), share))

    def joined(self, combinations: np.ndarray, n_cells: np.ndarray) -> Conditions:
        """Return the conditions with added combinations ``(combinations, columns)`` of other cells."""
        codes = np.concatenate([self.combinations, combinations])
        distinct, number = np.unique(codes, axis=0, return_inverse=True)
        counts = np.bincount(number.ravel(), weights=np.concatenate([self.n_cells, n_cells]), minlength=len(distinct))
        return Conditions(self.by_key, distinct, counts.astype(int))

    @property
    def keys(self) -> list[str]:
        """Names of the condition keys."""
        return [key.name for key in self.by_key]

    @property
    def categories(self) -> dict[str, list[Any]]:
        """Classes of each categorical key, and members of each set key."""
        return {key.name: list(key.labels) for key in self.by_key if not key.is_numeric}

    def columns(self, name: str) -> slice:
        """Return the columns of a key."""
        return self.parts[self.keys.index(name)][1]

    @cached_property
    def parts(self) -> list[tuple[ConditionKey, slice]]:
        """Each key with its columns."""
        return with_columns(self.by_key)

    def as_table(self, request: ConditionRequest) -> Mapping[str, Any] | pd.DataFrame | None:
        """Turn cells into a table of their conditions; other requests stay as they are.

        Raises
        ------
        ValueError
            If the cells have none of the keys.
        """
        if not isinstance(request, AnnData | MuData):
            return request
        table: dict[str, Any] = {}
        for key in self.by_key:
            if key.name not in getattr(request, key.source):
                continue
            if key.source == "obsm":
                table |= {f"{key.name}_{number}": column for number, column in enumerate(request.obsm[key.name].T)}
            else:
                table[key.name] = obs_column(request, key.name, "condition").array
        if not table:
            msg = f"The cells in `condition` have none of the model's condition keys {self.keys}."
            raise ValueError(msg)
        return pd.DataFrame(table, index=request.obs_names)

    def named(self, request: Mapping[str, Any] | pd.DataFrame | None) -> dict[str, Any]:
        """Return the requested values of each key; the columns of an array are joined.

        Raises
        ------
        TypeError, ValueError
            For anything but a mapping or table, and for unknown keys.
        """
        if not isinstance(request, Mapping | pd.DataFrame | None):
            msg = f"`condition` must be a mapping, a DataFrame, cells or None, but found {type(request).__name__}."
            raise TypeError(msg)
        if isinstance(request, pd.DataFrame):
            check_unique_names(request.columns, "`condition`")
        requested = {} if request is None else dict(request.items())
        for key in self.by_key if isinstance(request, pd.DataFrame) else ():
            columns = [f"{key.name}_{number}" for number in range(key.n_columns)]
            if key.source == "obsm" and requested.keys() >= set(columns):
                requested[key.name] = np.array([requested.pop(column) for column in columns]).T
        for name in requested:
            if name not in self.keys:
                msg = f"`condition` has the unknown key {name!r}. {known_names(name, self.keys)}"
                raise ValueError(msg)
        return requested

    def encode(self, request: ConditionRequest, n_cells: int | None) -> np.ndarray:
        """Turn a user's request into codes ``(n_cells, columns)``, :data:`OPEN` for keys left out.

        Parameters
        ----------
        request
            A mapping from key to a value, or to a list with one value per cell or fewer (each for an equal share of the
            cells); a table with such columns; cells, whose conditions are taken; or None.
        n_cells
            Number of cells. You can leave it out if the request has a length.

        Raises
        ------
        ValueError
            For keys, values and lengths that do not fit.
        """
        return self.request(request, n_cells).all()

    def request(self, request: ConditionRequest, n_cells: int | None) -> RequestedCodes:
        """Check a user's request like :meth:`encode`, without a row in memory for each cell."""
        requested = self.named(self.as_table(request))
        parts = [(key, columns, requested[key.name]) for key, columns in self.parts if key.name in requested]
        if n_cells is None:
            lengths = {len(values) for key, _, values in parts if not key.is_single(values)}
            if len(lengths) != 1:
                msg = f"`n_cells` is needed unless `condition` has lists of one length, not {sorted(lengths)}."
                raise ValueError(msg)
            (n_cells,) = lengths
        n_cells, given = check_count("n_cells", n_cells), []
        for key, columns, values in parts:
            listed = key.listed(values)
            if not 0 < len(listed) <= n_cells:
                msg = f"`condition[{key.name!r}]` has {len(listed)} values for {n_cells} cells; give 1 to {n_cells}."
                raise ValueError(msg)
            codes = key.encode(listed)
            key.check_learned(codes, self.combinations[:, columns])
            given.append((columns, codes))
        return RequestedCodes(n_cells, len(self.are_numbers), given)

    def fill(self, codes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Draw open values from the training distribution, given the others.

        They are drawn from the training cells with the given classes and sets, or from all cells if there are none.
        With given numbers, the 15 nearest of these cells count, but for those beyond the reach of the keys if others
        are within it.

        Parameters
        ----------
        codes
            ``(n, columns)``, :data:`OPEN` where open.
        uniform
            One random number in ``[0, 1)`` per cell.
        """
        drawn, uniform = codes.copy(), uniform.astype(float)
        for pattern, rows in self._by_classes(codes):
            cells, are_given = self._cells_with(pattern), self.are_numbers & (pattern != OPEN)
            cells = cells if len(cells) else np.arange(len(self.combinations))
            if not are_given.any():
                drawn[rows] = self._draw(cells, uniform[rows])
                continue
            search = self._search(pattern, cells, are_given)
            wanted = self._in_reach(codes[rows], are_given)
            distances, near = search.query(wanted, range(1, min(N_NEIGHBOURS, len(cells)) + 1), p=np.inf)
            n_nearer = np.cumsum(self.n_cells[cells[near]], axis=1)[:, :-1]
            enough = np.take_along_axis(distances, (n_nearer < N_NEIGHBOURS).sum(1, keepdims=True), 1)[:, 0]
            limit = np.maximum(np.minimum(enough, 1), distances[:, 0])
            around = search.query_ball_point(wanted, limit * (1 + ROUNDING), p=np.inf, return_sorted=True)
            drawn[rows] = [self._draw(cells[found], one) for found, one in zip(around, uniform[rows], strict=True)]
        return np.where(codes == OPEN, drawn, codes)

    def to_obs(self, codes: np.ndarray, index: pd.Index) -> pd.DataFrame:
        """Return codes ``(n, columns)`` as a table, with classes and sets as categories."""
        values = {key.name: key.decode(codes[:, columns]) for key, columns in self.parts if key.source == "obs"}
        return pd.DataFrame(values, index=index)

    def to_obsm(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays among codes ``(n, columns)``."""
        return {key.name: key.decode(codes[:, columns]) for key, columns in self.parts if key.source == "obsm"}

    def describe(self, codes: np.ndarray) -> str:
        """Return one combination ``(columns,)`` as text, without open values."""
        given = [(key, codes[columns]) for key, columns in self.parts]
        return ", ".join(f"{key.name}={key.describe(values)}" for key, values in given if values[0] != OPEN)

    def unseen(self, codes: np.ndarray) -> np.ndarray:
        """Return the distinct ones of codes ``(n, columns)`` that :meth:`are_unseen`."""
        codes = np.unique(codes, axis=0)
        return codes[self.are_unseen(codes)]

    def are_unseen(self, codes: np.ndarray) -> np.ndarray:
        """Mark the codes ``(n, columns)`` without a training cell of the given classes and sets in reach, ``(n,)``.

        A cell is in reach if none of its numbers differs from a given one by more than the reach of the key.
        """
        are_unseen = np.zeros(len(codes), dtype=bool)
        for pattern, rows in self._by_classes(codes):
            cells, are_given = self._cells_with(pattern), self.are_numbers & (pattern != OPEN)
            if not len(cells):
                are_unseen[rows] = True
            elif are_given.any():
                wanted = self._in_reach(codes[rows], are_given)
                are_unseen[rows] = self._search(pattern, cells, are_given).query(wanted, p=np.inf)[0] > 1
        return are_unseen

    @cached_property
    def are_numbers(self) -> np.ndarray:
        """Mark the columns with numbers, ``(columns,)``."""
        return np.array([key.is_numeric for key in self.by_key for _ in range(key.n_columns)], dtype=bool)

    def _by_classes(self, codes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the distinct ones of codes ``(n, columns)``, with 0 for given numbers, and their rows."""
        classes = np.where(self.are_numbers & (codes != OPEN), 0, codes)
        patterns, number = np.unique(classes, axis=0, return_inverse=True)
        order, ends = np.argsort(number.ravel(), kind="stable"), np.cumsum(np.bincount(number.ravel()))
        yield from zip(patterns, np.split(order, ends)[:-1], strict=True)

    def _cells_with(self, pattern: np.ndarray) -> np.ndarray:
        """Return the numbers of the combinations with the classes and sets of a pattern ``(columns,)``."""
        are_given = (pattern != OPEN) & ~self.are_numbers
        return np.flatnonzero((self.combinations[:, are_given] == pattern[are_given]).all(1))

    def _in_reach(self, codes: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return some columns of codes in units of the reach of their keys."""
        return (codes / [key.reach for key in self.by_key for _ in range(key.n_columns)])[:, columns]

    def _search(self, pattern: np.ndarray, cells: np.ndarray, columns: np.ndarray) -> KDTree:
        """Return a tree of the numbers of a pattern's cells in these columns, which is built once."""
        tree = self._trees.get(pattern.tobytes())
        if tree is None:
            tree = self._trees[pattern.tobytes()] = KDTree(self._in_reach(self.combinations[cells], columns))
        return tree

    @cached_property
    def _trees(self) -> dict[bytes, KDTree]:
        return {}

    def _draw(self, cells: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Draw one of some combinations for each random number, in proportion to their cells."""
        ends = np.cumsum(self.n_cells[cells])
        chosen = np.searchsorted(ends, uniform * ends[-1], side="right")
        return self.combinations[cells[np.minimum(chosen, len(cells) - 1)]]


def check_order(given: Mapping[str, Any], names: pd.Index, source: str) -> None:
    """Raise if a table or column of pandas has the cells' names in another order.

    Parameters
    ----------
    given
        What was given, by its name in the message; a mapping is checked part by part.
    names
        Names of the cells.
    source
        How the user gets them.
    """
    for what, value in given.items():
        if isinstance(value, Mapping):
            check_order({f"{what}[{key!r}]": part for key, part in value.items()}, names, source)
        elif isinstance(value, pd.Series | pd.DataFrame):
            if not value.index.equals(names) and names.is_unique and set(value.index) == set(names):
                msg = f"The rows of {what} are the cells in another order; use .loc[{source}]."
                raise ValueError(msg)
