"""Keys of conditions: their values in the training cells, as columns of codes and back.

A key is a column of ``obs`` with classes, numbers or sets, or an array of numbers in ``obsm``. It learns its values
from the training cells (``of``), and turns values into columns of codes and back (``encode``, ``decode``). For
fine-tuning it learns more values (``extended``); the codes of the old ones do not change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from scgen_diffusion._arguments import is_number, known_names

from ._labels import widen, widen_number
from ._plain import to_plain

REQUEST = "`condition`"
NUMBERS = "numbers"
N_DIGITS = 14  # of a number, relative to the scale of its key, that survive standardising and back
LARGEST_DISTANCE = 0.25  # standard deviations within which a number counts as seen in training
LARGEST_NUMBER = 1e6  # standard deviations from the mean; no training cell can be that far
ROUNDING = 1e-6  # relative to the range; numbers that were computed may differ in their last digits
MOST_COLUMNS = 50  # of an array
N_PLACES = 16_384  # values of an array that are compared
N_SHOWN = 60  # characters of a wrong value
N_RANGES = 3  # columns of an array whose ranges are shown
EXTRA_MEMBERS = 2  # members that a set can have beyond the largest training set


@dataclass(frozen=True)
class ConditionKey(ABC):
    """One key: its name, its kind, and its values in the training cells."""

    kind: ClassVar[str]
    source: ClassVar[str] = "obs"
    """Where cells have their values, ``"obs"`` or ``"obsm"``."""
    is_numeric: ClassVar[bool] = False
    """Whether values have distances."""
    has_vectors = False
    """Whether classes or members have known embeddings."""
    name: str

    @property
    def n_columns(self) -> int:
        """Number of columns that encode a value."""
        return 1

    @property
    def labels(self) -> Sequence[Any]:
        """Classes or members; none for numbers."""
        return ()

    @property
    def n_values(self) -> int:
        """Number of classes or members; 0 for numbers."""
        return len(self.labels)

    @property
    def may_be_missing(self) -> bool:
        """Whether cells may lack a value."""
        return False

    @property
    def needs_training_cells(self) -> bool:
        """Whether values can only be generated if training cells have them.

        A model inter- and extrapolates numbers, and classes and members with known embeddings.
        """
        return not (self.is_numeric or self.has_vectors)

    @property
    @abstractmethod
    def summary(self) -> str:
        """The values of the training cells in a few words."""

    def is_single(self, values: Any) -> bool:
        """Return whether this is one value for all cells (possibly a set), not a list of values."""
        if values is None or isinstance(values, str | AbstractSet):
            return True
        return not isinstance(values, Sequence) and np.ndim(values) == 0

    def listed(self, values: Any) -> Sequence[Any]:
        """Return one or several values as a list."""
        if not self.is_single(values):
            return list(widen(values) if isinstance(values, pd.Series) else values)
        return [values.item() if isinstance(values, np.ndarray) else values]  # an array may have no axes

    @abstractmethod
    def encode(self, values: Sequence[Any], source: str = REQUEST) -> np.ndarray:
        """Turn values into columns, ``(n, n_columns)``.

        Raises
        ------
        ValueError
            For an unknown value; ``source`` names its origin in the message.
        """

    def encode_cells(self, column: Any, source: str) -> np.ndarray:
        """Turn the values of cells into columns, ``(cells, n_columns)``; each distinct value is looked up once."""
        numbers, values = pd.factorize(widen(column), use_na_sentinel=False)
        return self.encode(values, source)[numbers]

    @abstractmethod
    def decode(self, codes: np.ndarray) -> pd.Categorical | np.ndarray:
        """Turn columns ``(n, n_columns)`` into a column of ``obs`` or an array of ``obsm``."""

    def check_learned(self, codes: np.ndarray, seen: np.ndarray) -> None:
        """Raise if columns ``(n, n_columns)`` hold a class or member that needs training cells, but ``seen`` lacks."""
        unknown = np.setdiff1d(codes, [*np.unique(seen), self.n_values])  # the latter stands for no member
        if self.needs_training_cells and len(unknown):
            value = self.labels[int(unknown[0])]
            msg = f"The model does not know {value!r} of {self.name!r}: no cell of its training with all labels has it."
            raise ValueError(msg)

    @abstractmethod
    def extended(self, column: Any, table: pd.DataFrame | None = None) -> Self:
        """Return a key with more values, from a column of other cells or the rows of an embedding table."""

    def describe(self, codes: np.ndarray) -> str:
        """Return one value as text."""
        return repr(to_plain(self.decode(codes[None])[0]))

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
        Whether the classes have known embeddings, so that classes without training cells can be generated.
    ordered
        Whether the classes are in an order, such as low, mid and high. The model learns nothing from it.
    unlabeled_category
        Value of cells without a label, which may also have a missing value; None if every cell needs a label. The code
        of such cells is the number of classes, which shows the networks no condition.
    """

    kind = "categorical"
    name: str
    values: Sequence[Any]
    has_vectors: bool = False
    ordered: bool = field(default=False, compare=False, repr=False)  # not part of what identifies cells and models
    unlabeled_category: str | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        name: str,
        column: pd.Series,
        control: Any,
        table: pd.DataFrame | None,
        unlabeled_category: str | None = None,
    ) -> CategoricalKey:
        """Learn the classes from training cells, or take them from an embedding table."""
        column = labeled_part(column, unlabeled_category)
        categorical = column.astype("category").cat
        classes, found = _plain(categorical.categories), _plain(column.unique())
        if control is not None and not any(value in found for value in (control, widen_number(control))):
            raise ValueError(_no_control(name, control, [value for value in classes if value in found]))
        if table is None:
            return cls(name, classes, ordered=bool(categorical.ordered), unlabeled_category=unlabeled_category)
        values = _with_vectors(name, found, table)
        return cls(name, values, has_vectors=True, unlabeled_category=unlabeled_category)

    def extended(self, column: pd.Series, table: pd.DataFrame | None = None) -> CategoricalKey:
        """Add classes after the known ones, then in no order; raise for another kind than theirs."""
        column = labeled_part(column, self.unlabeled_category)
        found = _plain(column.astype("category").cat.remove_unused_categories().cat.categories)
        new = [value for value in found if self._find(value) < 0]
        values = [*self.values, *new]
        if new and len(kinds_of(values)) > 1:
            msg = f"obs[{self.name!r}] must have the type of the reference's {self.values[0]!r}, but found {new[0]!r}."
            raise ValueError(msg)
        values = values if table is None else _with_vectors(self.name, values, table)
        return replace(self, values=values, ordered=self.ordered and not new)

    @property
    def labels(self) -> Sequence[Any]:
        """The classes."""
        return self.values

    @property
    def may_be_missing(self) -> bool:
        """Whether cells may lack a label."""
        return self.unlabeled_category is not None

    @property
    def summary(self) -> str:
        """The number of classes."""
        return f"{self.n_values} classes"

    @cached_property
    def _number(self) -> dict[Any, int]:
        return {value: number for number, value in enumerate(self.values)}

    def _find(self, value: Any) -> int:
        """Return the number of a class, or -1."""
        number = self._number.get(value)
        return self._number.get(widen_number(value), -1) if number is None else number

    def encode(self, values: Sequence[Any], source: str = REQUEST) -> np.ndarray:
        """Look up classes."""
        try:
            codes = np.array([self._find(value) for value in values], dtype=float)
        except TypeError as error:
            msg = f"{source} has a list or set for {self.name!r}; give one value, or a list of values, for all cells."
            raise TypeError(msg) from error
        if (codes < 0).any():
            raise ValueError(_unknown(source, self.name, list(values)[int(np.argmin(codes))], self.values))
        return codes[:, None]

    def encode_cells(self, column: pd.Series, source: str) -> np.ndarray:
        """Look up the classes of cells, some of which may have no label."""
        codes = np.full((len(column), 1), float(self.n_values))
        labeled = ~are_unlabeled(column, self.unlabeled_category)
        codes[labeled] = super().encode_cells(column[labeled], source)
        return codes

    def decode(self, codes: np.ndarray) -> pd.Categorical:
        """Return classes, with all classes as categories; cells without a label have a missing value."""
        numbers = np.where(codes[:, 0] == self.n_values, -1, codes[:, 0]).astype(int)
        return pd.Categorical.from_codes(numbers, categories=pd.Index(self.values), ordered=self.ordered)


@dataclass(frozen=True)
class ContinuousKey(ConditionKey):
    """A column of numbers.

    Parameters
    ----------
    name
        Column of ``obs``.
    mean, std
        Mean and standard deviation of the training cells, which standardise values.
    low, high
        Range of the training cells.
    """

    kind = "continuous"
    is_numeric = True
    name: str
    mean: float
    std: float
    low: float
    high: float

    @classmethod
    def of(cls, name: str, column: pd.Series, control: Any = None) -> ContinuousKey:
        """Take range and scale from the values of training cells, of which one must be the control value if given."""
        if column.dtype.kind not in "iuf":
            msg = f"obs[{name!r}] holds {column.dtype}, not numbers: convert it, or list it in `condition_keys`."
            raise ValueError(msg)
        values = widen(column).to_numpy(dtype=float) + 0.0  # no negative zero
        if not np.isfinite(values).all():
            msg = f"obs[{name!r}] holds infinite numbers; every value must be finite."
            raise ValueError(msg)
        check_varies(f"obs[{name!r}]", values[:, None])
        key = cls(name, float(values.mean()), float(values.std()), float(values.min()), float(values.max()))
        if control is None:
            return key
        if not is_number(control):
            msg = f"The control value of {name!r} must be a number, as in obs, but found {control!r}."
            raise ValueError(msg)
        numbers = np.unique(values)
        if not are_same_codes(key.encode(numbers.tolist()), key.encode([control], "`control_values`")).any():
            nearest = float(numbers[np.abs(numbers - control).argmin()])
            msg = f"No cell has the control value {control} in obs[{name!r}]; the nearest number is {nearest}."
            raise ValueError(msg)
        return key

    @property
    def summary(self) -> str:
        """The range."""
        return f"{self.low:g} to {self.high:g}"

    def extended(self, column: pd.Series, table: pd.DataFrame | None = None) -> ContinuousKey:
        """Widen the range and keep the scale."""
        self.encode(column.to_numpy(), source="obs")
        new = as_numbers(column.to_numpy())
        return replace(self, low=min(self.low, float(new.min())), high=max(self.high, float(new.max())))

    def encode(self, values: Sequence[Any], source: str = REQUEST) -> np.ndarray:
        """Standardise numbers."""
        numbers = as_numbers(values)
        if not np.isfinite(numbers).all():
            value = list(values)[int(np.argmin(np.isfinite(numbers)))]
            msg = f"{source} has the value {value!r} for {self.name!r}; a finite number is needed."
            raise ValueError(msg)
        codes = (numbers - self.mean) / self.std
        if (np.abs(codes) > LARGEST_NUMBER).any():
            value = list(values)[int(np.argmax(np.abs(codes)))]
            msg = f"{source} has {value!r} for {self.name!r}, but training cells have {self.summary}."
            raise ValueError(msg)
        return codes[:, None]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return numbers on their original scale."""
        return _numbers_of(codes[:, 0], self.mean, self.std)

    def is_outside(self, codes: np.ndarray) -> np.ndarray:
        """Return which values ``(n, 1)`` lie outside the range of the training cells, ``(n,)``."""
        low, high = self.encode([self.low, self.high])[:, 0]
        rounding = ROUNDING * (high - low)
        return (codes[:, 0] < low - rounding) | (codes[:, 0] > high + rounding)


@dataclass(frozen=True)
class ArrayKey(ConditionKey):
    """An array of ``obsm`` whose columns are one condition, such as positions.

    Parameters
    ----------
    name
        Name of the array.
    mean
        Mean of each column in the training cells.
    std
        Root mean square of the columns' standard deviations. All columns are divided by it, which keeps their
        proportions.
    low, high
        Range of each column in the training cells.
    reach
        Distance, in units of ``std``, within which values count as seen in training: at least a quarter, and as far as
        the nearest neighbour of 99 % of the training cells.
    """

    kind = "array"
    source = "obsm"
    is_numeric = True
    name: str
    mean: Sequence[float]
    std: float
    low: Sequence[float]
    high: Sequence[float]
    reach: float

    @classmethod
    def of(cls, name: str, array: Any) -> ArrayKey:
        """Take range and scale from the values of training cells."""
        numbers = check_array(name, array)
        check_varies(f"obsm[{name!r}]", numbers)
        mean, std = numbers.mean(0), float(np.sqrt(np.square(numbers.std(0)).mean()))
        low, high = numbers.min(0).tolist(), numbers.max(0).tolist()
        return cls(name, mean.tolist(), std, low, high, reach_of((numbers - mean) / std))

    def extended(self, column: Any, table: pd.DataFrame | None = None) -> ArrayKey:
        """Widen the range and keep the scale."""
        codes = self.encode(column, source="obsm")
        numbers = self.decode(codes)
        low, high = np.minimum(self.low, numbers.min(0)).tolist(), np.maximum(self.high, numbers.max(0)).tolist()
        return replace(self, low=low, high=high, reach=max(self.reach, reach_of(codes)))

    @property
    def n_columns(self) -> int:
        """Number of columns of the array."""
        return len(self.mean)

    @property
    def summary(self) -> str:
        """The range of each of a few columns, or their number."""
        if self.n_columns > N_RANGES:
            return f"{self.n_columns} columns"
        return " by ".join(f"{low:.4g} to {high:.4g}" for low, high in zip(self.low, self.high, strict=True))

    @property
    def table_columns(self) -> list[str]:
        """Names of the columns in a table of requested conditions."""
        return [f"{self.name}_{column}" for column in range(self.n_columns)]

    def is_single(self, values: Any) -> bool:
        """Return whether this is one row of numbers for all cells."""
        first = next(iter(values), 0) if isinstance(values, Sequence | np.ndarray | pd.Series) else values
        return np.ndim(first) == 0 and (self.n_columns > 1 or np.size(values) == 1)

    def listed(self, values: Any) -> Any:
        """Return one or several rows as numbers, ``(rows, n_columns)``."""
        return self.rows([values] if self.is_single(values) else values, REQUEST)

    def encode(self, values: Any, source: str = REQUEST) -> np.ndarray:
        """Standardise rows of numbers."""
        numbers = self.rows(values, source)
        codes = (numbers - np.asarray(self.mean)) / self.std
        are_wrong = ~(np.abs(codes) <= LARGEST_NUMBER).all(1)  # also NaN
        if are_wrong.any():
            value = numbers[int(np.argmax(are_wrong))]
            trained = f"{self._listed(self.low)} to {self._listed(self.high)}"
            msg = f"{source} has {self._listed(value)} for {self.name!r}, but training cells have {trained}."
            raise ValueError(msg)
        return codes

    def encode_cells(self, column: Any, source: str) -> np.ndarray:
        """Standardise the rows of cells."""
        return self.encode(column, source)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return rows on their original scale."""
        columns = [_numbers_of(column, mean, self.std) for column, mean in zip(codes.T, self.mean, strict=True)]
        return np.stack(columns, axis=1)

    def describe(self, codes: np.ndarray) -> str:
        """Return one row as text; different codes have different texts."""
        return self._listed(self.decode(codes[None])[0], n_digits=9)

    def _listed(self, row: Iterable[float], n_digits: int = 6) -> str:
        return f"[{', '.join(f'{number:.{n_digits}g}' for number in row)}]"

    def rows(self, values: Any, source: str) -> np.ndarray:
        """Return rows of numbers ``(rows, n_columns)``; raise for another number of columns."""
        try:
            numbers = np.array(values if isinstance(values, np.ndarray | pd.DataFrame) else [*values], dtype=float)
        except (TypeError, ValueError, OverflowError):
            numbers = np.zeros(0)
        if numbers.ndim == 1 and self.n_columns == 1:
            numbers = numbers[:, None]
        if numbers.ndim != 2 or numbers.shape[1] != self.n_columns:
            found = f"an array of shape {numbers.shape}" if numbers.size else repr(values)[:N_SHOWN]
            msg = f"{source}: {self.name!r} needs a row of {self.n_columns} numbers, or one per cell, not {found}."
            raise ValueError(msg)
        return numbers


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
        Text between members.
    largest
        Largest number of members in a set.
    control
        Text of the empty set, if there is one.
    spellings
        Texts of the sets in the training cells.
    has_vectors
        Whether the members have known embeddings, so that members without training cells can be generated.
    """

    kind = "set"
    name: str
    members: Sequence[str]
    separator: str
    largest: int
    control: str | None
    spellings: Sequence[str]
    has_vectors: bool = False

    @classmethod
    def of(
        cls, name: str, column: pd.Series, separator: str, control: str | None, table: pd.DataFrame | None
    ) -> SetKey:
        """Learn the members from training cells, or take them from an embedding table."""
        rows = [] if table is None else map(str, table.index)
        if within := [member for member in rows if separator in member]:
            msg = f"The member {within[0]!r} of {name!r} has the separator {separator!r} in it; use another separator."
            raise ValueError(msg)
        control = None if control is None else control.strip()
        key = cls(name, [], separator, 0, control, [], has_vectors=table is not None).extended(column, table)
        sizes = [len(key.parts(text)) for text in key.spellings]
        if control is not None and all(sizes):
            raise ValueError(_no_control(name, control, key.spellings))
        if not any(sizes):
            msg = f"obs[{name!r}] has only the control value {control!r}; at least one perturbation is needed."
            raise ValueError(msg)
        return key

    def extended(self, column: pd.Series, table: pd.DataFrame | None = None) -> SetKey:
        """Add members after the known ones, and columns for larger sets."""
        spellings = sorted(map(str, column.unique()))
        parts = [self.parts(text) for text in spellings]
        members = [*self.members, *sorted(frozenset().union(*parts) - set(self.members))]
        return replace(
            self,
            members=members if table is None else _with_vectors(self.name, members, table.rename(index=str)),
            largest=max(self.largest, max(map(len, parts)) + EXTRA_MEMBERS),
            spellings=list(dict.fromkeys([*self.spellings, *spellings])),
        )

    @property
    def n_columns(self) -> int:
        """One column per slot: members in ascending order; empty slots hold the number of members."""
        return self.largest

    @property
    def labels(self) -> Sequence[str]:
        """The members."""
        return self.members

    @property
    def summary(self) -> str:
        """The number of members."""
        return f"combinations of {self.n_values} members"

    @cached_property
    def _number(self) -> dict[str, int]:
        return {member: number for number, member in enumerate(self.members)}

    @cached_property
    def _spelling(self) -> dict[tuple[float, ...], str]:
        """Text of each set in training, by its columns."""
        return {self._columns(self.parts(text)): text for text in reversed(self.spellings)}

    def parts(self, value: Any) -> frozenset[str]:
        """Return the members of a set or its text, without the control; spaces around members do not count.

        Raises
        ------
        ValueError
            If a member is empty.
        """
        members = value if isinstance(value, AbstractSet) else str(value).split(self.separator)
        found = frozenset(str(member).strip() for member in members) - {self.control}
        if "" in found:
            msg = f"The set {value!r} of {self.name!r} has an empty member; {self.separator!r} separates members."
            raise ValueError(msg)
        return found

    def listed(self, values: Any) -> Sequence[Any]:
        """Return one or several sets as a list; a tuple could be either."""
        if isinstance(values, tuple):
            msg = f"`condition[{self.name!r}]` is a tuple; give a set of members, {set(values)!r}, or a list of sets."
            raise TypeError(msg)
        return super().listed(values)

    def encode(self, values: Sequence[Any], source: str = REQUEST) -> np.ndarray:
        """Look up members; sets may be text or Python sets."""
        if wrong := [value for value in values if isinstance(value, list | tuple | np.ndarray)]:
            msg = f"{source} has {wrong[0]!r} for {self.name!r}; give {set(map(str, wrong[0]))!r}, or text."
            raise TypeError(msg)
        rows = [self._columns(self.parts(value), source) for value in values]
        return np.array(rows, dtype=float).reshape(-1, self.largest)

    def describe(self, codes: np.ndarray) -> str:
        """Return one set as text, without the others that :meth:`decode` lists as categories."""
        return repr(self._text(tuple(codes)))

    def decode(self, codes: np.ndarray) -> pd.Categorical:
        """Return sets with their text in training; unseen ones in the order of members."""
        texts = [self._text(tuple(row)) for row in codes]
        return pd.Categorical(texts, categories=sorted({*self._spelling.values(), *texts}))

    def _columns(self, parts: frozenset[str], source: str = REQUEST) -> tuple[float, ...]:
        for part in parts:
            if part not in self._number:
                raise ValueError(_unknown(source, self.name, part, self.members, what="member"))
        fewest = 1 if self.control is None else 0
        if not fewest <= len(parts) <= self.largest:
            msg = f"{source}: a set of {self.name!r} has {fewest} to {self.largest} members, not {sorted(parts)}."
            raise ValueError(msg)
        numbers = sorted(self._number[part] for part in parts)
        return (*map(float, numbers), *[float(len(self.members))] * (self.largest - len(numbers)))

    def _text(self, columns: tuple[float, ...]) -> str:
        if columns in self._spelling:
            return self._spelling[columns]
        return self.separator.join(self.members[int(n)] for n in columns if n < len(self.members)) or str(self.control)


KINDS: dict[str, type[ConditionKey]] = {key.kind: key for key in (CategoricalKey, ContinuousKey, ArrayKey, SetKey)}


def key_from_state(state: Mapping[str, Any]) -> ConditionKey:
    """Build a key from :meth:`ConditionKey.state`."""
    return KINDS[state["kind"]](**{name: value for name, value in state.items() if name != "kind"})


# --- codes of several keys --------------------------------------------------------------------------------------------


def with_columns(by_key: Sequence[ConditionKey]) -> list[tuple[ConditionKey, slice]]:
    """Return each key with its columns among those of all keys."""
    ends = [0, *accumulate(key.n_columns for key in by_key)]
    return [(key, slice(*part)) for key, part in zip(by_key, pairwise(ends), strict=True)]


def have_labels(by_key: Sequence[ConditionKey], codes: np.ndarray) -> np.ndarray:
    """Mark the codes ``(cells, columns)`` that have a label for every key that may lack one, ``(cells,)``."""
    have = np.ones(len(codes), dtype=bool)
    for key, columns in with_columns(by_key):
        if key.may_be_missing:
            have &= codes[:, columns.start] != key.n_values
    return have


def recode(codes: np.ndarray, before: Sequence[ConditionKey], after: Sequence[ConditionKey]) -> np.ndarray:
    """Turn codes ``(n, columns)`` of keys into codes of the extended keys; negative codes stay.

    Only sets change: their empty slots hold the new number of members, and there may be more slots.
    """
    written = np.zeros((len(codes), sum(key.n_columns for key in after)), dtype=codes.dtype)
    for (old, source), (new, goal) in zip(with_columns(before), with_columns(after), strict=True):
        block = codes[:, source]
        if isinstance(old, SetKey):
            block = np.where(block == old.n_values, new.n_values, block)
            filling = np.where(block[:, -1:] < 0, block[:, -1:], new.n_values)
            block = np.concatenate([block, np.repeat(filling, new.n_columns - old.n_columns, axis=1)], axis=1)
        written[:, goal] = block
    return written


def are_same_codes(codes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which codes single precision, in which columns may have been, cannot tell from others."""
    rounding = float(np.finfo(np.float32).eps)
    return np.isclose(codes, others, rtol=rounding, atol=rounding)


def mark_occurring(by_key: Sequence[ConditionKey], codes: np.ndarray) -> list[np.ndarray]:
    """Mark, for each key, the classes or members that occur in codes ``(n, columns)``; empty for numbers."""
    return [np.isin(np.arange(key.n_values), codes[:, columns]) for key, columns in with_columns(by_key)]


# --- values of cells --------------------------------------------------------------------------------------------------


def are_unlabeled(column: pd.Series, unlabeled_category: str | None) -> np.ndarray:
    """Mark the cells without a label, ``(cells,)``: none without the option, else also those with a missing value."""
    if unlabeled_category is None:
        return np.zeros(len(column), dtype=bool)
    return (column.isna() | column.isin([unlabeled_category])).to_numpy(dtype=bool)


def labeled_part(column: pd.Series, unlabeled_category: str | None) -> pd.Series:
    """Return the values of cells with a label; of categories, only the value for "no label" is gone."""
    column = widen(column[~are_unlabeled(column, unlabeled_category)])
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.set_categories([value for value in column.cat.categories if value != unlabeled_category])
    return column


def kinds_of(values: Iterable[Any]) -> set[str]:
    """Return whether classes are text, booleans, numbers, or several of these."""
    return {"text" if isinstance(v, str) else "booleans" if isinstance(v, bool | np.bool_) else NUMBERS for v in values}


def check_array(name: str, array: Any) -> np.ndarray:
    """Return an array of ``obsm`` as numbers ``(cells, columns)``; raise unless it can be a condition."""
    where = f"obsm[{name!r}]"
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        found = f"values of type {array.dtype}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
        msg = f"{where} must be a NumPy array of numbers to be a condition, but holds {found}."
        raise ValueError(msg)
    if array.ndim != 2 or not 0 < array.shape[1] <= MOST_COLUMNS:
        msg = f"{where} must have 1 to {MOST_COLUMNS} columns to be a condition, but has the shape {array.shape}."
        raise ValueError(msg)
    numbers = array.astype(float)
    if n_bad := int((~np.isfinite(numbers).all(1)).sum()):
        msg = f"{where} has missing or infinite numbers in {n_bad} of {len(numbers)} cells; remove them."
        raise ValueError(msg)
    return numbers


def check_varies(where: str, numbers: np.ndarray) -> None:
    """Raise unless numbers ``(cells, columns)`` differ, and have standard deviations that floats can hold."""
    low, high = numbers.min(0), numbers.max(0)
    if (low == high).all():
        msg = f"{where} is the same in every cell; a condition must vary. Leave it out."
        raise ValueError(msg)
    with np.errstate(over="ignore", invalid="ignore"):
        spread = numbers.std(0)
    if not (spread[low < high] > 0).all() or not np.isfinite(np.square(spread).sum()):
        msg = f"{where} has numbers from {low.min():g} to {high.max():g}; give them in another unit."
        raise ValueError(msg)


def reach_of(places: np.ndarray) -> float:
    """Return the distance within which places ``(cells, columns)`` count as seen, see :class:`ArrayKey`."""
    distinct = np.unique(places, axis=0)
    if len(distinct) > N_PLACES:
        distinct = distinct[np.random.default_rng(0).choice(len(distinct), N_PLACES, replace=False)]
    if len(distinct) == 1:
        return LARGEST_DISTANCE
    distances, _ = NearestNeighbors(n_neighbors=1).fit(distinct).kneighbors()
    return max(LARGEST_DISTANCE, float(np.quantile(distances, 0.99)))


def as_numbers(values: Iterable[Any]) -> np.ndarray:
    """Return values as numbers ``(n,)``; NaN for what is none."""

    def number(value: Any) -> float:
        if isinstance(value, bool | np.bool_):  # which float() would take for 0 or 1
            return float("nan")
        try:
            return float(value if isinstance(value, float) else widen_number(value))
        except (TypeError, ValueError, OverflowError):
            return float("nan")

    return np.array([number(value) for value in values]) + 0.0  # no negative zero


def _numbers_of(codes: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Return standardised numbers ``(n,)`` on their original scale."""
    n_digits = N_DIGITS - int(np.ceil(np.log10(max(std, abs(mean)))))
    return np.round(codes * std + mean, n_digits) + 0.0  # no negative zero


def _plain(values: Iterable[Any]) -> list[Any]:
    """Return classes with Python's numbers and booleans, as they are after loading."""
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _with_vectors(name: str, needed: Iterable[Any], table: pd.DataFrame) -> list[Any]:
    """Return all values with a row in an embedding table; raise if a needed value has none."""
    known = list(table.index)
    if missing := sorted(set(needed).difference(known), key=str):
        msg = f"The embedding of {name!r} has no row for {missing[0]!r}. {known_names(missing[0], known)}"
        raise ValueError(msg)
    return known


def _unknown(source: str, name: str, value: Any, known: Sequence[Any], what: str = "value") -> str:
    shown = value.item() if isinstance(value, np.generic) else value
    advice = "" if source == REQUEST else f" Cells with a new {what} need a model from `load_query_data`."
    return f"{source} has the unknown {what} {shown!r} for {name!r}. {known_names(value, known)}{advice}"


def _no_control(name: str, control: Any, values: Sequence[Any]) -> str:
    return f"No cell has the control value {control!r} in obs[{name!r}]. {known_names(control, values)}"
