"""Conditions: all keys of a model, the frequencies of their combinations, and requests for them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from scgen_diffusion._arguments import check_count, known_names

from ._condition_keys import OPEN, ConditionKey, ContinuousKey, SetKey, columns_of

N_VALUES = 256  # distinct values kept of a numeric key
LARGEST_DISTANCE = 0.25  # standard deviations within which a number counts as seen in training

ConditionRequest: TypeAlias = Mapping[str, Any] | pd.DataFrame | None


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

    def distinct(self) -> np.ndarray:
        """Return every combination at least once, in order of first occurrence."""
        first = [-(-np.arange(len(values)) * self.n_cells // len(values)) for _, values in self.given]
        return self[np.unique(np.concatenate([np.zeros(1, int), *first]))]

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
    n_cells
        Number of training cells of each combination.
    """

    by_key: Sequence[ConditionKey]
    combinations: np.ndarray
    n_cells: np.ndarray

    @classmethod
    def from_codes(cls, by_key: Sequence[ConditionKey], codes: np.ndarray) -> Conditions:
        """Count the combinations among codes ``(cells, columns)``."""
        codes = codes.astype(float)
        for key, columns in zip(by_key, columns_of(by_key), strict=True):
            if isinstance(key, ContinuousKey) and len(codes):
                codes[:, columns] = _round_to_quantiles(codes[:, columns])
        combinations, n_cells = np.unique(codes, axis=0, return_counts=True)
        return cls(by_key, combinations, n_cells)

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
        discrete = [(key.name, getattr(key, "values", None) or getattr(key, "members", None)) for key in self.by_key]
        return {name: list(values) for name, values in discrete if values is not None}

    def columns(self, name: str) -> slice:
        """Return the columns of a key."""
        return self._columns[self.keys.index(name)]

    def encode(self, request: ConditionRequest, n_cells: int | None) -> np.ndarray:
        """Turn a user's request into codes ``(n_cells, columns)``, :data:`OPEN` for keys left out.

        Parameters
        ----------
        request
            A mapping from key to a value, or to a list with one value per cell or fewer (each for an equal share of the
            cells); a table with one row per cell; or None.
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
        if not isinstance(request, Mapping | pd.DataFrame | None):
            msg = f"`condition` must be a mapping, a DataFrame or None, but found {type(request).__name__}."
            raise TypeError(msg)
        if isinstance(request, pd.DataFrame) and not request.columns.is_unique:
            msg = f"`condition` has two columns named {request.columns[request.columns.duplicated()][0]!r}."
            raise ValueError(msg)
        requested = {} if request is None else {name: request[name] for name in request}
        for name in requested:
            if name not in self.keys:
                msg = f"`condition` has the unknown key {name!r}. {known_names(name, self.keys)}"
                raise ValueError(msg)
        n_cells = _resolve_length(requested, n_cells, exact=isinstance(request, pd.DataFrame))
        given = []
        for name, values in requested.items():
            key, columns = self.by_key[self.keys.index(name)], self.columns(name)
            if isinstance(key, SetKey) and isinstance(values, tuple):
                msg = (
                    f"`condition[{name!r}]` is a tuple; give a set of members, {set(values)!r}, or a list with one set per "
                    "cell."
                )
                raise TypeError(msg)
            listed = [values] if is_single(values) else list(values)
            if not 0 < len(listed) <= n_cells:
                msg = f"`condition[{name!r}]` has {len(listed)} values for {n_cells} cells; give 1 to {n_cells}."
                raise ValueError(msg)
            codes = key.encode(listed)
            key.check_learned(codes, self.combinations[:, columns])
            given.append((columns, codes))
        return RequestedCodes(n_cells, self.n_columns, given)

    def fill(self, codes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Draw open values from the training distribution, given the others.

        If the given values do not occur together in the training cells, open values are drawn regardless of them. A
        given number counts as the nearest number of the training cells with the given classes and sets, if it is within
        a quarter of a standard deviation.

        Parameters
        ----------
        codes
            ``(n, columns)``, :data:`OPEN` where open.
        uniform
            One random number in ``[0, 1)`` per cell.
        """
        drawn = codes.copy()
        patterns, members = np.unique(self._snapped(codes), axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            if (pattern == OPEN).any():
                rows = np.flatnonzero(members.ravel() == number)
                matches = self._matches(pattern)
                weights = self.n_cells * (matches if matches.any() else 1)
                cumulative = np.cumsum(weights) / weights.sum()
                places = np.searchsorted(cumulative, uniform[rows], side="right").clip(max=len(weights) - 1)
                drawn[rows] = self.combinations[places]
        return np.where(codes == OPEN, drawn, codes)

    def to_obs(self, codes: np.ndarray, index: pd.Index) -> pd.DataFrame:
        """Return codes ``(n, columns)`` as a table, with classes and sets as categories."""
        columns = {key.name: key.decode(codes[:, self.columns(key.name)]) for key in self.by_key}
        return pd.DataFrame(columns, index=index)

    def describe(self, codes: np.ndarray) -> str:
        """Return one combination ``(columns,)`` as text, without open values."""
        given = [(key, codes[self.columns(key.name)]) for key in self.by_key]
        return ", ".join(f"{key.name}={key.describe(values)}" for key, values in given if values[0] != OPEN)

    def unseen(self, codes: np.ndarray) -> list[str]:
        """Describe the combinations among codes ``(n, columns)`` that no training cell has."""
        patterns, first = np.unique(self._snapped(codes), axis=0, return_index=True)
        return [
            self.describe(codes[row])
            for pattern, row in zip(patterns, first, strict=True)
            if not self._matches(pattern).any()
        ]

    def extrapolated(self, codes: np.ndarray) -> list[str]:
        """Describe numbers among codes ``(n, columns)`` outside the range of the training cells, one per key."""
        named = []
        for key in self.by_key:
            if isinstance(key, ContinuousKey):
                values = codes[:, self.columns(key.name)]
                outside = values[(values[:, 0] != OPEN) & key.is_outside(values)]
                named += [
                    f"{key.name}={key.describe(row)} (trained on {key.low:g} to {key.high:g})" for row in outside[:1]
                ]
        return named

    @cached_property
    def _columns(self) -> list[slice]:
        return columns_of(self.by_key)

    def _matches(self, pattern: np.ndarray) -> np.ndarray:
        """Mark combinations that have a pattern's classes and sets and, among these, the nearest numbers within reach."""
        given = pattern != OPEN
        are_numbers = self._are_numbers
        matches = (~given | (self.combinations == pattern))[:, ~are_numbers].all(1)
        for column in np.flatnonzero(given & are_numbers):
            distance = np.where(matches, np.abs(self.combinations[:, column] - pattern[column]), np.inf)
            matches = matches & (distance == distance.min(initial=np.inf)) & (distance <= LARGEST_DISTANCE)
        return matches

    @cached_property
    def _are_numbers(self) -> np.ndarray:
        kinds = [np.full(key.n_columns, isinstance(key, ContinuousKey)) for key in self.by_key]
        return np.concatenate(kinds) if kinds else np.zeros(0, dtype=bool)

    def _snapped(self, codes: np.ndarray) -> np.ndarray:
        """Replace numbers in codes ``(n, columns)`` by the nearest ones of the training cells."""
        snapped = codes.copy()
        for key, columns in zip(self.by_key, self._columns, strict=True):
            if isinstance(key, ContinuousKey) and len(self.combinations):
                requested = codes[:, columns.start]
                snapped[:, columns.start] = np.where(
                    requested == OPEN, OPEN, _nearest(self.combinations[:, columns], requested)
                )
        return snapped


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


def _resolve_length(requested: Mapping[str, Any], n_cells: int | None, *, exact: bool) -> int:
    lengths = {name: len(values) for name, values in requested.items() if not is_single(values)}
    if n_cells is None:
        if not lengths:
            msg = "`n_cells` is needed unless `condition` is a DataFrame or has a list of values."
            raise ValueError(msg)
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{length} for {name!r}" for name, length in lengths.items())
            msg = f"`condition` has lists of different lengths ({listed}); make them equal, or give `n_cells`."
            raise ValueError(msg)
        if 0 in lengths.values():
            msg = "`condition` has no rows."
            raise ValueError(msg)
        return max(lengths.values())
    n_cells = check_count("n_cells", n_cells)
    if exact and lengths and n_cells not in lengths.values():
        found = next(iter(lengths.values()))
        msg = f"`n_cells` is {n_cells}, but the `condition` table has {found} rows; leave `n_cells` out."
        raise ValueError(msg)
    return n_cells


def is_single(values: Any) -> bool:
    """Return whether this is one value for all cells (possibly a set), not a list of values."""
    return values is None or isinstance(values, str | AbstractSet) or np.ndim(values) == 0
