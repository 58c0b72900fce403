"""Condition keys: columns of ``obs`` that hold classes, numbers or sets, and how a value becomes columns of numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from ._checks import known_names
from ._plain import to_plain

OPEN = -np.inf  # in the columns of a condition that is still to be drawn
REQUEST = "`condition`"
FEWEST_DIGITS, MOST_DIGITS = 10, 17  # that a number may need to be the same after being standardised and back
LARGEST_NUMBER = 1e6  # standard deviations from the mean; no training cell can be that far


@dataclass(frozen=True)
class ConditionKey(ABC):
    """One key: its name, its kind, and what it knows of the training cells."""

    kind: ClassVar[str]
    name: str

    @property
    @abstractmethod
    def n_columns(self) -> int:
        """How many columns a value takes."""

    @abstractmethod
    def encode(self, values: Sequence[Any], source: str = REQUEST) -> np.ndarray:
        """Turn values into columns, ``(n, n_columns)``.

        Raises
        ------
        ValueError
            For a value that the key does not know; ``source`` says where it was found.
        """

    @abstractmethod
    def decode(self, codes: np.ndarray) -> pd.Categorical | np.ndarray:
        """Turn columns ``(n, n_columns)`` into what a column of ``obs`` holds."""

    def describe(self, codes: np.ndarray) -> str:
        """Name one value by its columns."""
        return repr(to_plain(self.decode(codes[None])[0]))

    @abstractmethod
    def check_learned(self, codes: np.ndarray, occurring: np.ndarray) -> None:
        """Raise if columns ``(n, n_columns)`` hold a value that no training cell, ``occurring``, let the model learn."""

    def state(self) -> dict[str, Any]:
        """Return plain values from which :func:`key_from_state` builds the key again."""
        return {"kind": self.kind, **{option.name: getattr(self, option.name) for option in fields(self)}}


@dataclass(frozen=True)
class CategoricalKey(ConditionKey):
    """A column of classes.

    Parameters
    ----------
    name
        Column of ``obs``.
    values
        The classes.
    has_vectors
        Whether the classes have known embeddings, so that those without training cells can be asked for.
    """

    kind = "categorical"
    name: str
    values: Sequence[Any]
    has_vectors: bool = False

    @property
    def n_columns(self) -> int:
        """One: the number of the class."""
        return 1

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.values)

    def encode(self, values: Sequence[Any], source: str = REQUEST) -> np.ndarray:
        """Look classes up."""
        try:
            codes = self._index.get_indexer(pd.Index(np.asarray(values, dtype=object)))
        except (TypeError, ValueError) as error:
            value = next(value for value in values if not np.isscalar(value))
            msg = (
                f"{source} has {value!r} for {self.name!r}; give one value for all cells, or a list with one value per cell or fewer, "
                "each of which an equal share of the cells gets."
            )
            raise TypeError(msg) from error
        if (codes < 0).any():
            raise ValueError(_unknown(source, self.name, list(values)[int(np.argmin(codes))], self.values))
        return codes[:, None].astype(float)

    def decode(self, codes: np.ndarray) -> pd.Categorical:
        """Return classes, with all classes as categories."""
        return pd.Categorical.from_codes(codes[:, 0].astype(int), categories=self._index)

    def check_learned(self, codes: np.ndarray, occurring: np.ndarray) -> None:
        """Raise for a class without training cells and without a known embedding."""
        missing = np.setdiff1d(codes, occurring)
        if len(missing) and not self.has_vectors:
            raise ValueError(_not_learned(self.name, self.values[int(missing[0])], "category"))


@dataclass(frozen=True)
class ContinuousKey(ConditionKey):
    """A column of numbers.

    Parameters
    ----------
    name
        Column of ``obs``.
    mean, std
        Of the training cells, by which values are standardised.
    low, high
        Range of the training cells.
    """

    kind = "continuous"
    name: str
    mean: float
    std: float
    low: float
    high: float

    @classmethod
    def of(cls, name: str, values: np.ndarray) -> ContinuousKey:
        """Take range and scale from the values of training cells ``(cells,)``."""
        summary = (values.mean(), values.std(), values.min(), values.max())
        return cls(name, *(float(value) for value in summary))

    @property
    def n_columns(self) -> int:
        """One: the standardised value."""
        return 1

    def encode(self, values: Sequence[Any], source: str = REQUEST) -> np.ndarray:
        """Standardise numbers."""
        numbers = np.array([_as_number(value) for value in values])
        if not np.isfinite(numbers).all():
            value = list(values)[int(np.argmin(np.isfinite(numbers)))]
            msg = f"{source} has the value {value!r} for {self.name!r}; a finite number is needed."
            raise ValueError(msg)
        codes = (numbers - self.mean) / self.std
        if (np.abs(codes) > LARGEST_NUMBER).any():
            value = list(values)[int(np.argmax(np.abs(codes)))]
            msg = f"{source} has the value {value!r} for {self.name!r}, which is absurdly far from {self.low:g} to {self.high:g} of the training cells."
            raise ValueError(msg)
        return codes[:, None]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return numbers on their own scale: those with the fewest digits that have these codes."""
        distinct, which = np.unique(codes[:, 0], return_inverse=True)
        numbers = distinct * self.std + self.mean
        is_found = np.zeros(len(distinct), dtype=bool)
        most = -int(np.ceil(np.log10(max(self.std, abs(self.mean)))))
        for n_digits in range(FEWEST_DIGITS, MOST_DIGITS + 1):
            rounded = np.round(numbers, n_digits + most)
            is_new = ~is_found & ((rounded - self.mean) / self.std == distinct)
            numbers, is_found = np.where(is_new, rounded, numbers), is_found | is_new
        return numbers[which] + 0.0  # no negative zero

    def check_learned(self, codes: np.ndarray, occurring: np.ndarray) -> None:
        """Allow every number: what lies between or beyond those of training is inter- or extrapolated."""

    def is_outside(self, codes: np.ndarray) -> np.ndarray:
        """Tell which values ``(n, 1)`` lie outside the training cells' range, ``(n,)``."""
        low, high = self.encode([self.low, self.high])[:, 0]
        return (codes[:, 0] < low) | (codes[:, 0] > high)


@dataclass(frozen=True)
class SetKey(ConditionKey):
    """A column of sets, written as text such as ``"A+B"``. The order of members does not matter.

    Parameters
    ----------
    name
        Column of ``obs``.
    members
        All members.
    separator
        What stands between members.
    largest
        Most members that a set can have.
    control
        How the empty set is written, if there is one.
    spellings
        How the training cells' sets are written.
    has_vectors
        Whether the members have known embeddings, so that those without training cells can be asked for.
    """

    kind = "set"
    name: str
    members: Sequence[str]
    separator: str
    largest: int
    control: str | None
    spellings: Sequence[str]
    has_vectors: bool = False

    @property
    def n_columns(self) -> int:
        """One per place; members in ascending order, then the number of members for empty places."""
        return self.largest

    @cached_property
    def _number(self) -> dict[str, int]:
        return {member: number for number, member in enumerate(self.members)}

    @cached_property
    def _spelling(self) -> dict[tuple[float, ...], str]:
        """How a set is written in training, by its columns."""
        return {self._columns(self.parts(text)): text for text in reversed(self.spellings)}

    def parts(self, value: Any) -> frozenset[str]:
        """Split what stands for a set into its members; the control is none."""
        parts = value if isinstance(value, AbstractSet) else split_set(self.name, value, self.separator)
        return frozenset(str(part) for part in parts) - {self.control}

    def encode(self, values: Sequence[Any], source: str = REQUEST) -> np.ndarray:
        """Look members up; a set may also be given as a Python set."""
        distinct = {value: self._columns(self.parts(value), source) for value in map(_hashable, values)}
        return np.array([distinct[_hashable(value)] for value in values], dtype=float).reshape(-1, self.largest)

    def decode(self, codes: np.ndarray) -> pd.Categorical:
        """Return sets as they are written in training; what did not occur there in the order of members."""
        texts = [self._text(tuple(row)) for row in codes]
        categories = dict.fromkeys([*self._spelling.values(), *texts])
        return pd.Categorical(texts, categories=sorted(categories))

    def check_learned(self, codes: np.ndarray, occurring: np.ndarray) -> None:
        """Raise for a member without training cells and without a known embedding."""
        missing = np.setdiff1d(codes[codes < len(self.members)], occurring)
        if len(missing) and not self.has_vectors:
            raise ValueError(_not_learned(self.name, self.members[int(missing[0])], "member"))

    def _columns(self, parts: frozenset[str], source: str = REQUEST) -> tuple[float, ...]:
        for part in parts:
            if part not in self._number:
                raise ValueError(_unknown(source, self.name, part, self.members, what="member"))
        if len(parts) > self.largest or not (parts or self.control is not None):
            allowed = f"{0 if self.control is not None else 1} to {self.largest}"
            msg = f"{source}: a set of {self.name!r} can have {allowed} members, but {sorted(parts)} has {len(parts)}."
            raise ValueError(msg)
        numbers = sorted(self._number[part] for part in parts)
        return (*map(float, numbers), *[float(len(self.members))] * (self.largest - len(numbers)))

    def _text(self, columns: tuple[float, ...]) -> str:
        if columns in self._spelling:
            return self._spelling[columns]
        return self.separator.join(self.members[int(n)] for n in columns if n < len(self.members)) or str(self.control)


KINDS: dict[str, type[ConditionKey]] = {key.kind: key for key in (CategoricalKey, ContinuousKey, SetKey)}


def columns_of(by_key: Sequence[ConditionKey]) -> list[slice]:
    """Return where the columns of each key are, if those of all keys lie side by side."""
    ends = [0, *accumulate(key.n_columns for key in by_key)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def key_from_state(state: Mapping[str, Any]) -> ConditionKey:
    """Build a key from :meth:`ConditionKey.state`."""
    return KINDS[state["kind"]](**{name: value for name, value in state.items() if name != "kind"})


def split_set(name: str, value: Any, separator: str) -> list[str]:
    """Split a set that is written as text.

    Raises
    ------
    ValueError
        If there is nothing before, after or between separators.
    """
    parts = [part.strip() for part in str(value).split(separator)]
    if "" in parts:
        msg = f"The set {value!r} of {name!r} has an empty member; members are separated by {separator!r}."
        raise ValueError(msg)
    return parts


def _as_number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _hashable(value: Any) -> Any:
    return frozenset(value) if isinstance(value, AbstractSet) else value


def _unknown(source: str, name: str, value: Any, known: Sequence[Any], what: str = "value") -> str:
    shown = value.item() if isinstance(value, np.generic) else value
    return f"{source} has the unknown {what} {shown!r} for {name!r}. {known_names(value, known)}"


def _not_learned(name: str, value: Any, what: str) -> str:
    return (
        f"`condition` asks for {value!r} of {name!r}, a {what} without any training cell. What was never seen can be generated "
        "only from a known embedding: give `condition_embeddings` to setup_anndata."
    )
