"""Conditions: named columns of ``obs``, their classes, and how often combinations occur."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from ._checks import is_whole_number, known_names
from ._plain import to_plain

OPEN = -1  # code of a condition that is still to be drawn

ConditionRequest: TypeAlias = Mapping[str, Any] | pd.DataFrame | None


@dataclass(frozen=True)
class Conditions:
    """The condition keys of a model, their classes, and the joint distribution in the training cells.

    Parameters
    ----------
    categories
        Classes of each key.
    combinations
        Codes of each combination that occurs, ``(combinations, keys)``.
    n_cells
        Number of training cells of each combination.
    """

    categories: Mapping[str, Sequence[Any]]
    combinations: np.ndarray
    n_cells: np.ndarray

    @classmethod
    def from_codes(cls, categories: Mapping[str, Sequence[Any]], codes: np.ndarray) -> Conditions:
        """Count the combinations among codes ``(cells, keys)``."""
        combinations, n_cells = np.unique(codes, axis=0, return_counts=True)
        return cls(categories, combinations, n_cells)

    @property
    def keys(self) -> list[str]:
        """Names of the condition keys."""
        return list(self.categories)

    def encode(self, request: ConditionRequest, n_cells: int | None) -> np.ndarray:
        """Turn what a user asks for into codes ``(n_cells, keys)``, with :data:`OPEN` where nothing was asked.

        Parameters
        ----------
        request
            A mapping from key to a value, or to a list with one value per cell or fewer (each is then repeated for an
            equal share of the cells); a table with one row per cell; or None.
        n_cells
            Number of cells; may be left out when the request has a length.

        Raises
        ------
        ValueError
            For keys, values and lengths that do not fit.
        """
        columns = self._columns(request)
        n_cells = _resolve_length(columns, n_cells, exact=isinstance(request, pd.DataFrame))
        codes = np.full((n_cells, len(self.keys)), OPEN)
        for key, values in columns.items():
            values = _spread(values, n_cells, key)
            codes[:, self.keys.index(key)] = self._encode_values(key, values)
        return codes

    def fill(self, codes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Draw what is open from the training distribution, given what is not.

        Where the given classes do not occur together in the training cells, the open ones are drawn regardless of them.

        Parameters
        ----------
        codes
            ``(n, keys)``, :data:`OPEN` where open.
        uniform
            One random number in ``[0, 1)`` per cell.
        """
        filled = codes.copy()
        patterns, members = np.unique(codes, axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            if (pattern == OPEN).any():
                rows = np.flatnonzero(members.ravel() == number)
                drawn = self._draw(pattern, uniform[rows])
                filled[rows] = np.where(pattern == OPEN, drawn, pattern)
        return filled

    def to_obs(self, codes: np.ndarray, index: pd.Index) -> pd.DataFrame:
        """Return codes ``(n, keys)`` as categorical columns with the training classes."""
        columns = {
            key: pd.Categorical.from_codes(codes[:, number], categories=pd.Index(categories))
            for number, (key, categories) in enumerate(self.categories.items())
        }
        return pd.DataFrame(columns, index=index)

    def describe(self, codes: np.ndarray) -> str:
        """Name one combination of classes."""
        pairs = zip(self.categories.items(), codes, strict=True)
        given = [(key, to_plain(categories[code])) for (key, categories), code in pairs if code != OPEN]
        return ", ".join(f"{key}={value!r}" for key, value in given)

    def occurs(self, codes: np.ndarray) -> bool:
        """Tell whether any training cell has these classes, whatever it has of the open ones."""
        return bool(self._matches(codes).any())

    def _matches(self, pattern: np.ndarray) -> np.ndarray:
        return ((pattern == OPEN) | (self.combinations == pattern)).all(1)

    def _draw(self, pattern: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        matches = self._matches(pattern)
        weights = self.n_cells * (matches if matches.any() else 1)
        cumulative = np.cumsum(weights) / weights.sum()
        return self.combinations[np.searchsorted(cumulative, uniform, side="right").clip(max=len(weights) - 1)]

    def _columns(self, request: ConditionRequest) -> dict[str, Any]:
        if request is None:
            return {}
        if not isinstance(request, Mapping | pd.DataFrame):
            msg = f"`condition` must be a mapping, a DataFrame or None, but found {type(request).__name__}."
            raise TypeError(msg)
        columns = {key: request[key] for key in request}
        for key in columns:
            if key not in self.categories:
                msg = f"`condition` has the unknown key {key!r}. {known_names(key, self.keys)}"
                raise ValueError(msg)
        return columns

    def _encode_values(self, key: str, values: Sequence[Any]) -> np.ndarray:
        categories = pd.Index(self.categories[key])
        codes = categories.get_indexer(pd.Index(np.asarray(values, dtype=object)))
        if (codes < 0).any():
            value = list(values)[int(np.argmin(codes))]
            msg = f"`condition` has the unknown value {value!r} for {key!r}. {known_names(value, categories)}"
            raise ValueError(msg)
        occurring = np.unique(self.combinations[:, self.keys.index(key)])
        if empty := sorted(set(codes.tolist()) - set(occurring.tolist())):
            msg = f"`condition` asks for {categories[empty[0]]!r} of {key!r}, a category without any training cell."
            raise ValueError(msg)
        return codes


def _resolve_length(columns: Mapping[str, Any], n_cells: int | None, *, exact: bool) -> int:
    lengths = {key: len(values) for key, values in columns.items() if not _is_scalar(values)}
    if n_cells is None:
        if not lengths:
            msg = "`n_cells` is needed when `condition` gives no list of values and no DataFrame."
            raise ValueError(msg)
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{length} for {key!r}" for key, length in lengths.items())
            msg = f"`condition` has lists of different lengths ({listed}); make them equal, or give `n_cells`."
            raise ValueError(msg)
        if 0 in lengths.values():
            msg = "`condition` has no rows."
            raise ValueError(msg)
        return max(lengths.values())
    if not is_whole_number(n_cells) or n_cells < 1:
        msg = f"`n_cells` must be a whole number of at least 1, but found {n_cells!r}."
        raise ValueError(msg)
    if exact and lengths and n_cells not in lengths.values():
        found = next(iter(lengths.values()))
        msg = f"`n_cells` is {n_cells}, but the `condition` table has {found} rows; leave `n_cells` out."
        raise ValueError(msg)
    return int(n_cells)


def _spread(values: Any, n_cells: int, key: str) -> Sequence[Any]:
    """Give every cell a value: one for all, one each, or each of a few for an equal share of consecutive cells."""
    if _is_scalar(values):
        return [values] * n_cells
    values = list(values)
    if not 0 < len(values) <= n_cells:
        msg = f"`condition[{key!r}]` has {len(values)} values for {n_cells} cells; give 1 to {n_cells}."
        raise ValueError(msg)
    return [values[cell * len(values) // n_cells] for cell in range(n_cells)]


def _is_scalar(values: Any) -> bool:
    return np.isscalar(values) or values is None
