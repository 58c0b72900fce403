"""Conditions as data: the joint distribution of the keys in the training cells, and requests for values of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy.spatial import KDTree

from scgen_diffusion._arguments import check_count, known_names

from ._checks import check_distinct_columns, obs_column
from ._condition_keys import (
    LARGEST_DISTANCE,
    N_PLACES,
    ArrayKey,
    ConditionKey,
    ContinuousKey,
    have_labels,
    reach_of,
    with_columns,
)

OPEN = -np.inf  # code of a condition that is still to be drawn
N_VALUES = 256  # distinct values kept of a number
FEWEST_TRAINING_CELLS = 10  # labels and combinations with fewer give a warning
N_NEIGHBOURS = 15  # training cells around numbers, or a row of an array, from which open values are drawn

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
        """Digest of the request, for any number of cells.

        Each key's values follow their shape and type, so that no two requests have the same bytes.
        """
        digest = hashlib.sha256(f"{self.n_columns}".encode())
        for columns, values in sorted(self.given, key=lambda one: one[0].start):
            digest.update(f";{columns.start},{values.shape},{values.dtype.str}:".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Conditions:
    """The condition keys of a model, and their joint distribution in the training cells.

    Parameters
    ----------
    by_key
        The keys, in the order of their columns.
    combinations
        Codes of each combination that occurs, ``(combinations, columns)``. Numbers are rounded to at most 256 values.
        Arrays are those of at most 16,384 cells, a random sample among the cells with the same classes, sets and
        numbers (at least one of each).
    n_cells
        Number of training cells of each combination.
    """

    by_key: Sequence[ConditionKey]
    combinations: np.ndarray
    n_cells: np.ndarray

    @classmethod
    def from_codes(cls, by_key: Sequence[ConditionKey], codes: np.ndarray) -> Conditions:
        """Count the combinations among codes ``(cells, columns)``, of the cells that have all labels."""
        codes = codes[have_labels(by_key, codes)].astype(float)
        for key, columns in with_columns(by_key):
            if isinstance(key, ContinuousKey) and len(codes):
                codes[:, columns] = _round_to_quantiles(codes[:, columns])
        n_cells = np.ones(len(codes), dtype=int)
        none = cls(by_key, codes[:0], n_cells[:0])
        if none._are_arrays.any() and len(codes) > N_PLACES:
            kept, n_cells = _thin_out(codes[:, ~none._are_arrays])
            codes = codes[kept]
        return none.joined(codes, n_cells)

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
    def n_columns(self) -> int:
        """Total number of columns."""
        return sum(key.n_columns for key in self.by_key)

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
            if isinstance(key, ArrayKey):
                rows = key.rows(request.obsm[key.name], "`condition`.obsm")
                table |= dict(zip(key.table_columns, rows.T, strict=True))
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
            check_distinct_columns(request.columns, "`condition`")
        requested = {} if request is None else dict(request.items())
        known = list(self.keys)
        for key in self.by_key:
            if isinstance(key, ArrayKey) and isinstance(request, pd.DataFrame):
                known += key.table_columns
                missing = [column for column in key.table_columns if column not in requested]
                if 0 < len(missing) < len(key.table_columns):
                    msg = f"`condition` has some columns of {key.name!r}, but lacks {missing}."
                    raise ValueError(msg)
                if not missing:
                    requested[key.name] = np.array([requested.pop(column) for column in key.table_columns]).T
        for name in requested:
            if name not in self.keys:
                msg = f"`condition` has the unknown key {name!r}. {known_names(name, known)}"
                raise ValueError(msg)
        return requested

    def lengths(self, requested: Mapping[str, Any]) -> dict[str, int]:
        """Return the number of values of each requested key that has a list."""
        given = [(key, requested[key.name]) for key in self.by_key if key.name in requested]
        return {key.name: len(values) for key, values in given if not key.is_single(values)}

    def encode(self, request: ConditionRequest, n_cells: int | None) -> np.ndarray:
        """Turn a user's request into codes ``(n_cells, columns)``, :data:`OPEN` for keys left out.

        Parameters
        ----------
        request
            A mapping from key to a value, or to a list with one value per cell or fewer (each for an equal share of the
            cells); a table with one row per cell; cells, whose conditions are taken; or None.
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
        request = self.as_table(request)
        requested = self.named(request)
        n_cells = _resolve_length(self.lengths(requested), n_cells, exact=isinstance(request, pd.DataFrame))
        given = []
        for key, columns in self.parts:
            if key.name not in requested:
                continue
            listed = key.listed(requested[key.name])
            if not 0 < len(listed) <= n_cells:
                msg = f"`condition[{key.name!r}]` has {len(listed)} values for {n_cells} cells; give 1 to {n_cells}."
                raise ValueError(msg)
            codes = key.encode(listed)
            key.check_learned(codes, self.combinations[:, columns])
            given.append((columns, codes))
        return RequestedCodes(n_cells, self.n_columns, given)

    def fill(self, codes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Draw open values from the training distribution, given the others.

        They are drawn from the training cells with the given classes and sets. Given numbers and arrays each leave the
        15 nearest of these cells (more if there are more at the nearest number or place), without those that are far
        unless all are. If no cell has the given classes and sets together, they are drawn from all cells.

        Parameters
        ----------
        codes
            ``(n, columns)``, :data:`OPEN` where open.
        uniform
            One random number in ``[0, 1)`` per cell.
        """
        drawn = codes.copy()
        for pattern, rows in _distinct(self._snapped(codes)):
            if (pattern == OPEN).any():
                drawn[rows] = self.combinations[self._training_cells(pattern).draw(codes[rows], uniform[rows])]
        return np.where(codes == OPEN, drawn, codes)

    def to_obs(self, codes: np.ndarray, index: pd.Index) -> pd.DataFrame:
        """Return codes ``(n, columns)`` as a table, with classes and sets as categories."""
        values = {key.name: key.decode(codes[:, columns]) for key, columns in self.parts if key.source == "obs"}
        return pd.DataFrame(values, index=index)

    def to_obsm(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays among codes ``(n, columns)``."""
        return {key.name: key.decode(codes[:, columns]) for key, columns in self.parts if isinstance(key, ArrayKey)}

    def describe(self, codes: np.ndarray) -> str:
        """Return one combination ``(columns,)`` as text, without open values."""
        given = [(key, codes[columns]) for key, columns in self.parts]
        return ", ".join(f"{key.name}={key.describe(values)}" for key, values in given if values[0] != OPEN)

    def unseen(self, codes: np.ndarray) -> np.ndarray:
        """Return the distinct ones of codes ``(n, columns)`` that no training cell has, or none near their arrays."""
        codes = np.unique(codes, axis=0)
        return codes[self.are_unseen(codes)]

    def exact(self, codes: np.ndarray) -> np.ndarray:
        """Return codes ``(columns,)`` that a network kept in single precision as the training cells have them."""
        are_same = self.combinations.astype(np.float32) == codes
        return np.where(are_same.any(0), self.combinations[are_same.argmax(0), np.arange(len(codes))], codes)

    def are_unseen(self, codes: np.ndarray) -> np.ndarray:
        """Mark the codes ``(n, columns)`` that no training cell has, or none near their arrays, ``(n,)``."""
        found, snapped, known = np.zeros(len(codes), dtype=bool), self._snapped(codes), codes.copy()
        for is_given, rows in _distinct(codes != OPEN):
            exact = is_given & ~self._are_arrays
            if exact.any():  # classes and members are whole numbers, so that others are farther than near numbers
                search = KDTree(np.unique(self.combinations[:, exact], axis=0))
                found[rows] = search.query(snapped[rows][:, exact], p=np.inf)[0] > LARGEST_DISTANCE
        for key, columns in self.parts:
            rows = np.flatnonzero(~found & (codes[:, columns.start] != OPEN))
            if isinstance(key, ArrayKey) and len(rows):
                places = self._places[key.name]
                known[rows, columns] = places.data[places.query(codes[rows, columns])[1]]
        near = np.flatnonzero(~found & (self._are_arrays & (codes != OPEN)).any(1))
        for pattern, own in _distinct(snapped[near]):
            found[near[own]] = self._training_cells(pattern).are_far(known[near[own]])
        return found

    def extrapolated(self, codes: np.ndarray) -> list[str]:
        """Describe the first of the numbers of each key, among codes ``(n, columns)``, that no training cell is near.

        A number is near within the range, and no farther from the nearest number than a quarter of the standard
        deviation, or than nearly all numbers are from their neighbours (:func:`reach_of`). So 6 is near 0, 2, 4 and 8.
        The same holds for arrays.
        """
        named = []
        for key, columns in self.parts:
            values = codes[codes[:, columns.start] != OPEN, columns]
            if key.is_numeric and len(values):
                is_outside = key.is_outside(values) if isinstance(key, ContinuousKey) else False
                far = values[is_outside | self._are_far(key, values)]
                count = f", one of {len(far)}" if len(far) > 1 else ""
                named += [f"{key.name}={key.describe(value)} (no training cell is near{count})" for value in far[:1]]
        return named

    def are_far(self, codes: np.ndarray) -> np.ndarray:
        """Mark the codes ``(n, columns)`` with a number or an array that no training cell is near, ``(n,)``."""
        far = [self._are_far(key, codes[:, columns]) for key, columns in self.parts if key.is_numeric]
        return np.any(far, axis=0) if far else np.zeros(len(codes), dtype=bool)

    def _are_far(self, key: ConditionKey, values: np.ndarray) -> np.ndarray:
        """Mark the numbers or arrays ``(n, columns of the key)`` that no training cell is near, ``(n,)``."""
        places = self._places[key.name]
        return places.query(values)[0] > (key.reach if isinstance(key, ArrayKey) else reach_of(places.data))

    @cached_property
    def _places(self) -> dict[str, KDTree]:
        """The training cells' values of each number and array."""
        numeric = [(key.name, columns) for key, columns in self.parts if key.is_numeric]
        return {name: KDTree(np.unique(self.combinations[:, columns], axis=0)) for name, columns in numeric}

    def _mark(self, of_keys: Sequence[bool]) -> np.ndarray:
        """Repeat what holds for each key for each of its columns, ``(columns,)``."""
        return np.repeat(np.array(of_keys, dtype=bool), [key.n_columns for key in self.by_key] or 0)

    @cached_property
    def _are_arrays(self) -> np.ndarray:
        return self._mark([isinstance(key, ArrayKey) for key in self.by_key])

    @cached_property
    def _are_numbers(self) -> np.ndarray:
        return self._mark([isinstance(key, ContinuousKey) for key in self.by_key])

    def _snapped(self, codes: np.ndarray) -> np.ndarray:
        """Replace numbers in codes ``(n, columns)`` by the nearest ones of the training cells, and arrays by zero."""
        snapped = np.where(self._are_arrays & (codes != OPEN), 0, codes)
        for key, columns in self.parts:
            if isinstance(key, ContinuousKey) and len(self.combinations):
                nearest = _nearest(self.combinations[:, columns], codes[:, columns])
                snapped[:, columns] = np.where(codes[:, columns] == OPEN, OPEN, nearest)
        return snapped

    @cached_property
    def _found(self) -> dict[bytes, _TrainingCells]:
        """Results of :meth:`_training_cells`, by pattern; each block of cells asks for the same ones."""
        return {}

    def _training_cells(self, pattern: np.ndarray) -> _TrainingCells:
        """Return the training cells with the classes and sets of a pattern ``(columns,)``, and near its numbers.

        These are the cells at the nearest numbers and, if they are fewer than 15, those of the 15 nearest cells that
        are near. If no cell has the classes and sets, they are all cells.
        """
        if pattern.tobytes() not in self._found:
            is_given = pattern != OPEN
            exact, numbers = is_given & ~self._are_arrays & ~self._are_numbers, is_given & self._are_numbers
            rows = np.flatnonzero((self.combinations[:, exact] == pattern[exact]).all(1))
            if len(rows) and numbers.any():
                distances = np.abs(self.combinations[rows][:, numbers] - pattern[numbers]).max(1)
                order = np.argsort(distances)
                n_nearer = np.searchsorted(np.cumsum(self.n_cells[rows[order]])[:-1], N_NEIGHBOURS)
                enough = distances[order[n_nearer]]
                rows = rows[distances <= max(min(enough, LARGEST_DISTANCE), distances.min())]
            if not len(rows):
                rows = np.arange(len(self.combinations))
            arrays = np.flatnonzero(is_given & self._are_arrays)
            given = [key.reach for key, own in self.parts if isinstance(key, ArrayKey) and is_given[own.start]]
            reach = float(np.linalg.norm(given))
            self._found[pattern.tobytes()] = _TrainingCells(self, rows, arrays, reach)
        return self._found[pattern.tobytes()]


class _TrainingCells:
    """Training cells of some combinations, by the places of the arrays that were asked for.

    Parameters
    ----------
    conditions
        The conditions of all training cells.
    rows
        Numbers of the combinations.
    arrays
        Columns of the arrays.
    reach
        Distance within which a place is near.
    """

    def __init__(self, conditions: Conditions, rows: np.ndarray, arrays: np.ndarray, reach: float) -> None:
        self.arrays, self.reach = arrays, reach
        places, place = np.unique(self._place(conditions.combinations[rows]), axis=0, return_inverse=True)
        self.search = KDTree(places)
        order = np.argsort(place.ravel(), kind="stable")
        self.rows, self.ends = rows[order], np.cumsum(conditions.n_cells[rows[order]])
        self.n_cells = np.bincount(place.ravel(), weights=conditions.n_cells[rows])
        self.starts = np.cumsum(self.n_cells) - self.n_cells

    def _place(self, codes: np.ndarray) -> np.ndarray:
        """Return the places of codes ``(n, columns of all keys)``; without arrays, all are at one."""
        return codes[:, self.arrays] if len(self.arrays) else np.zeros((len(codes), 1))

    def draw(self, codes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Draw a combination for each of some codes ``(m, columns of all keys)``, from the cells around its place."""
        n_places = min(N_NEIGHBOURS, self.search.n)
        distances, nearest = self.search.query(self._place(codes), np.arange(n_places) + 1)
        weights = self.n_cells[nearest]
        are_enough = np.cumsum(weights, axis=1) - weights >= N_NEIGHBOURS
        weights[are_enough | (distances > np.maximum(self.reach, distances[:, :1]))] = 0
        cumulative = np.cumsum(weights, axis=1)
        total = cumulative[:, -1]
        targets = np.minimum(uniform * total, np.nextafter(total, 0))
        chosen = (cumulative <= targets[:, None]).sum(1, keepdims=True)
        before = np.take_along_axis(cumulative - weights, chosen, 1)[:, 0]
        place = np.take_along_axis(nearest, chosen, 1)[:, 0]
        found = np.searchsorted(self.ends, self.starts[place] + targets - before, side="right")
        return self.rows[found.clip(max=len(self.rows) - 1)]

    def are_far(self, codes: np.ndarray) -> np.ndarray:
        """Mark the codes ``(m, columns of all keys)`` whose arrays no cell is near, ``(m,)``."""
        return self.search.query(self._place(codes))[0] > self.reach


def _distinct(codes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the distinct ones of codes ``(n, columns)``, with their rows."""
    if not len(codes):
        return
    patterns, members = np.unique(codes, axis=0, return_inverse=True)
    order = np.argsort(members.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(members.ravel()))
    yield from zip(patterns, np.split(order, ends[:-1]), strict=True)


def _thin_out(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose about 16,384 cells at random, and at least one with each of the codes ``(cells, columns)``.

    Returns
    -------
    tuple
        Their rows, and the number of cells that each stands for.
    """
    group = np.unique(codes, axis=0, return_inverse=True)[1].ravel() if codes.shape[1] else np.zeros(len(codes), int)
    sizes = np.bincount(group)
    n_kept = -(-sizes * N_PLACES // len(codes))
    rows = np.random.default_rng(0).permutation(len(codes))
    rows = rows[np.argsort(group[rows], kind="stable")]
    group = group[rows]
    rank = np.arange(len(rows)) - (np.cumsum(sizes) - sizes)[group]
    stands_for = sizes[group] // n_kept[group] + (rank < sizes[group] % n_kept[group])
    return rows[rank < n_kept[group]], stands_for[rank < n_kept[group]]


def _round_to_quantiles(column: np.ndarray) -> np.ndarray:
    """Round the values of a column ``(cells, 1)`` to 256 quantiles, if there are more."""
    values = np.unique(column)
    if len(values) <= N_VALUES:
        return column
    return _nearest(np.quantile(column, (np.arange(N_VALUES) + 0.5) / N_VALUES, method="nearest"), column)


def _nearest(values: np.ndarray, requested: np.ndarray) -> np.ndarray:
    """Return, for each requested value, the nearest of some values."""
    kept = np.unique(values)
    return kept[np.searchsorted((kept[1:] + kept[:-1]) / 2, requested)]


def _resolve_length(lengths: Mapping[str, int], n_cells: int | None, *, exact: bool) -> int:
    """Return the number of cells of a request; a table (``exact``) must have a row for each."""
    found = next(iter(lengths.values()), 0)
    if n_cells is not None:
        n_cells = check_count("n_cells", n_cells)
        if exact and lengths and n_cells != found:
            msg = f"`n_cells` is {n_cells}, but the `condition` table has {found} rows; leave `n_cells` out."
            raise ValueError(msg)
        return n_cells
    if len(set(lengths.values())) != 1 or not found:
        msg = f"`n_cells` is needed unless `condition` has values for at least one cell, of one number, not {lengths}."
        raise ValueError(msg)
    return found


def check_order(given: Mapping[str, Any], names: Callable[[], pd.Index], source: str) -> None:
    """Raise if a table or column of pandas has the cells' names in another order.

    Parameters
    ----------
    given
        What was given, by its name in the message; a mapping is checked part by part.
    names
        Returns the names of the cells, which are read from files only if needed.
    source
        How the user gets them.
    """
    for what, value in given.items():
        if isinstance(value, Mapping):
            check_order({f"{what}[{key!r}]": part for key, part in value.items()}, names, source)
        elif isinstance(value, pd.Series | pd.DataFrame):
            cells = names()
            if not value.index.equals(cells) and cells.is_unique and set(value.index) == set(cells):
                msg = f"The rows of {what} are the cells in another order; use .loc[{source}]."
                raise ValueError(msg)


def check_order_of_totals(request: ConditionRequest, library_size: Any) -> None:
    """Raise if total counts have the names of the requested cells in another order."""
    if isinstance(request, pd.DataFrame | AnnData | MuData):
        source = "index" if isinstance(request, pd.DataFrame) else "obs_names"
        check_order({"`library_size`": library_size}, lambda: getattr(request, source), f"condition.{source}")
