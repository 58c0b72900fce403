"""Conditions as data: keys with their codes, the combinations of the training cells, and requests for them.

A key is a column of ``obs`` with classes, numbers or sets, or an array of numbers in ``obsm``. It learns its values
from the training cells (``of``), and turns values into columns of codes and back (``encode``, ``decode``). For
fine-tuning it learns more values (``extended``); the codes of the old ones do not change.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from scgen_diffusion._arguments import check_count, is_number, known_names

from ._anndata import widen, widen_number
from ._checks import obs_column
from ._plain import to_plain

OPEN = -np.inf  # code of a condition that is still to be drawn
REQUEST = "`condition`"
NUMBERS = "numbers"
N_DIGITS = 14  # of a number, relative to the scale of its key, that survive standardising and back
LARGEST_DISTANCE = 0.25  # standard deviations within which a number counts as seen in training
LARGEST_NUMBER = 1e6  # standard deviations from the mean; no training cell can be that far
ROUNDING = 1e-6  # relative to the range; numbers that were computed may differ in their last digits
N_VALUES = 256  # distinct values kept of a number
MOST_COLUMNS = 50  # of an array
N_PLACES = 16_384  # values kept of an array
N_SHOWN = 60  # characters of a wrong value
N_RANGES = 3  # columns of an array whose ranges are shown
EXTRA_MEMBERS = 2  # members that a set can have beyond the largest training set
FEWEST_TRAINING_CELLS = 10  # labels and combinations with fewer give a warning
FEW_DISTANCES = 10**6  # to compute one by one, which takes less time than to prepare a search
N_NEIGHBOURS = 15  # training cells around numbers, or a row of an array, from which open values are drawn

ConditionRequest: TypeAlias = Mapping[str, Any] | pd.DataFrame | AnnData | MuData | None


@dataclass(frozen=True)
class ConditionKey(ABC):
    """One key: its name, its kind, and its values in the training cells."""

    kind: ClassVar[str]
    source: ClassVar[str] = "obs"
    """Where cells have their values, ``"obs"`` or ``"obsm"``."""
    is_numeric: ClassVar[bool] = False
    """Whether values have distances."""
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
    def may_be_lacking(self) -> bool:
        """Whether cells may lack a value."""
        return False

    @property
    def needs_training_cells(self) -> bool:
        """Whether values can only be generated if training cells have them.

        A model inter- and extrapolates numbers, and classes and members with known embeddings.
        """
        return not self.is_numeric

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

    def encode_cells(self, column: pd.Series, source: str) -> np.ndarray:
        """Turn the values of cells into columns, ``(cells, n_columns)``."""
        return self.encode(column.to_numpy(), source)

    @abstractmethod
    def decode(self, codes: np.ndarray) -> pd.Categorical | np.ndarray:
        """Turn columns ``(n, n_columns)`` into a column of ``obs`` or an array of ``obsm``."""

    def check_learned(self, codes: np.ndarray, seen: np.ndarray) -> None:
        """Raise if columns ``(n, n_columns)`` hold a class or member that is not among those ``seen`` in training.

        Those with known embeddings, and all numbers, are allowed.
        """
        if not self.needs_training_cells:
            return
        missing = np.setdiff1d(codes, [*np.unique(seen), self.n_values])  # the latter stands for no member
        if len(missing):
            value = self.labels[int(missing[0])]
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
        new = [value for value, code in zip(found, self._find(found), strict=True) if code < 0]
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
    def needs_training_cells(self) -> bool:
        """Whether the classes have no known embeddings."""
        return not self.has_vectors

    @property
    def summary(self) -> str:
        """The number of classes."""
        return f"{self.n_values} classes"

    @property
    def may_be_lacking(self) -> bool:
        """Whether cells may lack a label."""
        return self.unlabeled_category is not None

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.values)

    def _find(self, values: Sequence[Any]) -> np.ndarray:
        """Return the numbers of classes, ``(n,)``; -1 for unknown ones."""
        asked = pd.Index(np.asarray(values, dtype=object))
        codes = self._index.get_indexer(asked)
        if (codes < 0).any():
            codes[codes < 0] = self._index.get_indexer([widen_number(value) for value in asked[codes < 0]])
        return codes

    def encode(self, values: Sequence[Any], source: str = REQUEST) -> np.ndarray:
        """Look up classes."""
        try:
            codes = self._find(values)
        except (TypeError, ValueError) as error:
            value = next(value for value in values if not np.isscalar(value))
            msg = f"{source} has {value!r} for {self.name!r}; give one value, or a list of values, for all cells."
            raise TypeError(msg) from error
        except OverflowError as error:
            msg = f"{source} has a number for {self.name!r} that is too large to be a class."
            raise ValueError(msg) from error
        if (codes < 0).any():
            value = list(values)[int(np.argmin(codes))]
            raise ValueError(_unknown(source, self.name, value, self.values))
        return codes[:, None].astype(float)

    def encode_cells(self, column: pd.Series, source: str) -> np.ndarray:
        """Look up the classes of cells, some of which may have no label."""
        codes = np.full((len(column), 1), float(self.n_values))
        labeled = ~are_unlabeled(column, self.unlabeled_category)
        codes[labeled] = self.encode(widen(column[labeled]).to_numpy(), source)
        return codes

    def decode(self, codes: np.ndarray) -> pd.Categorical:
        """Return classes, with all classes as categories; cells without a label have a missing value."""
        numbers = np.where(codes[:, 0] == self.n_values, -1, codes[:, 0]).astype(int)
        return pd.Categorical.from_codes(numbers, categories=self._index, ordered=self.ordered)


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
        if values.min() == values.max():
            msg = f"obs[{name!r}] is {values[0]:g} in every cell; a condition must vary. Leave it out."
            raise ValueError(msg)
        with np.errstate(over="ignore"):
            mean, std = float(values.mean()), float(values.std())
        if not 0 < std < np.inf:
            msg = f"obs[{name!r}] has numbers from {values.min():g} to {values.max():g}; give them in another unit."
            raise ValueError(msg)
        key = cls(name, mean, std, float(values.min()), float(values.max()))
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
            msg = f"{source} has {value!r} for {self.name!r}, but training cells have {self.low:g} to {self.high:g}."
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
    columns
        Names of its columns if it is a table; None for an array without names.
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
    columns: Sequence[str] | None
    mean: Sequence[float]
    std: float
    low: Sequence[float]
    high: Sequence[float]
    reach: float

    @classmethod
    def of(cls, name: str, array: Any) -> ArrayKey:
        """Take range and scale from the values of training cells."""
        numbers = check_array(name, array)
        with np.errstate(over="ignore", invalid="ignore"):
            low, high, spread = numbers.min(0), numbers.max(0), numbers.std(0)
        if (low == high).all():
            msg = f"obsm[{name!r}] is the same in every cell; a condition must vary. Leave it out."
            raise ValueError(msg)
        if not (spread[low < high] > 0).all() or not np.isfinite(np.square(spread).sum()):
            msg = f"obsm[{name!r}] has numbers from {low.min():g} to {high.max():g}; give them in another unit."
            raise ValueError(msg)
        mean, std = numbers.mean(0), float(np.sqrt(np.square(spread).mean()))
        columns = [str(column) for column in array.columns] if isinstance(array, pd.DataFrame) else None
        reach = reach_of((numbers - mean) / std)
        return cls(name, columns, mean.tolist(), std, low.tolist(), high.tolist(), reach)

    def extended(self, column: Any, table: pd.DataFrame | None = None) -> ArrayKey:
        """Widen the range and keep the scale."""
        codes = self.encode(column, source="obsm")
        numbers = self.decode(codes)
        return replace(
            self,
            low=np.minimum(self.low, numbers.min(0)).tolist(),
            high=np.maximum(self.high, numbers.max(0)).tolist(),
            reach=max(self.reach, reach_of(codes)),
        )

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
        return [f"{self.name}_{column}" for column in self.columns or range(self.n_columns)]

    def is_single(self, values: Any) -> bool:
        """Return whether this is one row of numbers for all cells."""
        if isinstance(values, pd.DataFrame):
            return False
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
        if isinstance(values, pd.DataFrame):
            if self.columns is not None and [str(column) for column in values.columns] != list(self.columns):
                msg = f"{source}: {self.name!r} has the columns {list(values.columns)}, not {list(self.columns)}."
                raise ValueError(msg)
            values = values.to_numpy()
        try:
            numbers = np.array(values if isinstance(values, np.ndarray) else [*values], dtype=float)
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
        if control is not None and all(key.parts(text) for text in key.spellings):
            raise ValueError(_no_control(name, control, key.spellings))
        if not any(key.parts(text) for text in key.spellings):
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
    def needs_training_cells(self) -> bool:
        """Whether the members have no known embeddings."""
        return not self.has_vectors

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
        """Split the text of a set into its members, without the control.

        Raises
        ------
        ValueError
            If the text or a member is empty.
        """
        if isinstance(value, AbstractSet):
            return frozenset(str(member).strip() for member in value) - {self.control}
        members = members_of(str(value), self.separator, self.control)
        if "" in members:
            msg = f"The set {value!r} of {self.name!r} has an empty member; {self.separator!r} separates members."
            raise ValueError(msg)
        return members

    def encode(self, values: Sequence[Any], source: str = REQUEST) -> np.ndarray:
        """Look up members; sets may be text or Python sets."""
        if wrong := [value for value in values if isinstance(value, list | tuple | np.ndarray)]:
            msg = f"{source} has {wrong[0]!r} for {self.name!r}; give {set(map(str, wrong[0]))!r}, or text."
            raise TypeError(msg)
        distinct = {value: self._columns(self.parts(value), source) for value in map(_hashable, values)}
        return np.array([distinct[_hashable(value)] for value in values], dtype=float).reshape(-1, self.largest)

    def describe(self, codes: np.ndarray) -> str:
        """Return one set as text, without the others that :meth:`decode` lists as categories."""
        return repr(self._text(tuple(codes)))

    def decode(self, codes: np.ndarray) -> pd.Categorical:
        """Return sets with their text in training; unseen ones in the order of members."""
        texts = [self._text(tuple(row)) for row in codes]
        categories = dict.fromkeys([*self._spelling.values(), *texts])
        return pd.Categorical(texts, categories=sorted(categories))

    def _columns(self, parts: frozenset[str], source: str = REQUEST) -> tuple[float, ...]:
        for part in parts:
            if part not in self._number:
                raise ValueError(_unknown(source, self.name, part, self.members, what="member"))
        if len(parts) > self.largest or not (parts or self.control is not None):
            fewest = 0 if self.control is not None else 1
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


def with_columns(by_key: Sequence[ConditionKey]) -> list[tuple[ConditionKey, slice]]:
    """Return each key with its columns among those of all keys."""
    ends = [0, *accumulate(key.n_columns for key in by_key)]
    return [(key, slice(*part)) for key, part in zip(by_key, pairwise(ends), strict=True)]


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


def have_labels(by_key: Sequence[ConditionKey], codes: np.ndarray) -> np.ndarray:
    """Mark the codes ``(cells, columns)`` that have a label for every categorical key, ``(cells,)``."""
    have = np.ones(len(codes), dtype=bool)
    for key, columns in with_columns(by_key):
        if isinstance(key, CategoricalKey):
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


def members_of(text: str, separator: str, control: str | None) -> frozenset[str]:
    """Return the members of a set written as text, without the control; spaces around members do not count."""
    return frozenset(part.strip() for part in text.split(separator)) - (set() if control is None else {control.strip()})


def mark_occurring(by_key: Sequence[ConditionKey], codes: np.ndarray) -> list[np.ndarray]:
    """Mark, for each key, the classes or members that occur in codes ``(n, columns)``; empty for numbers."""
    return [np.isin(np.arange(key.n_values), codes[:, columns]) for key, columns in with_columns(by_key)]


def _with_vectors(name: str, needed: Iterable[Any], table: pd.DataFrame) -> list[Any]:
    """Return all values with a row in an embedding table; raise if a needed value has none."""
    known, needed = list(table.index), set(needed)
    if missing := sorted(needed.difference(known), key=str):
        msg = f"The embedding of {name!r} has no row for {missing[0]!r}. {known_names(missing[0], known)}"
        raise ValueError(msg)
    return known


def check_array(name: str, array: Any) -> np.ndarray:
    """Return an array of ``obsm`` as numbers ``(cells, columns)``; raise unless it can be a condition."""
    where = f"obsm[{name!r}]"
    if isinstance(array, pd.DataFrame) and (with_slash := [column for column in array if "/" in str(column)]):
        msg = f"{where} has the column {with_slash[0]!r}; names in files have no '/', so rename it."
        raise ValueError(msg)
    numbers = array.to_numpy() if isinstance(array, pd.DataFrame) else array
    if not isinstance(numbers, np.ndarray) or numbers.dtype.kind not in "iuf":
        found = f"values of type {numbers.dtype}" if isinstance(numbers, np.ndarray) else f"a {type(array).__name__}"
        msg = f"{where} must be an array or table of numbers to be a condition, but holds {found}."
        raise ValueError(msg)
    if numbers.ndim != 2:
        msg = f"{where} must have a row per cell and a few columns, but has the shape {numbers.shape}."
        raise ValueError(msg)
    if not 0 < numbers.shape[1] <= MOST_COLUMNS:
        msg = f"{where} has {numbers.shape[1]} columns; a condition can have 1 to {MOST_COLUMNS}."
        raise ValueError(msg)
    numbers = numbers.astype(float)
    if n_bad := int((~np.isfinite(numbers).all(1)).sum()):
        msg = f"{where} has missing or infinite numbers in {n_bad} of {len(numbers)} cells; remove them."
        raise ValueError(msg)
    return numbers


def reach_of(places: np.ndarray) -> float:
    """Return the distance within which places ``(cells, columns)`` count as seen, see :class:`ArrayKey`."""
    distinct = np.unique(places, axis=0)
    if len(distinct) > N_PLACES:
        distinct = distinct[np.random.default_rng(0).choice(len(distinct), N_PLACES, replace=False)]
    if len(distinct) == 1:
        return LARGEST_DISTANCE
    distances, _ = NearestNeighbors(n_neighbors=1).fit(distinct).kneighbors()
    return max(LARGEST_DISTANCE, float(np.quantile(distances, 0.99)))


def _numbers_of(codes: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Return standardised numbers ``(n,)`` on their original scale."""
    n_digits = N_DIGITS - int(np.ceil(np.log10(max(std, abs(mean)))))
    return np.round(codes * std + mean, n_digits) + 0.0  # no negative zero


def as_numbers(values: Iterable[Any]) -> np.ndarray:
    """Return values as numbers ``(n,)``; NaN for what is none."""
    return np.array([_as_number(value) for value in values]) + 0.0  # no negative zero


def _as_number(value: Any) -> float:
    if isinstance(value, bool | np.bool_):  # which float() would take for 0 or 1
        return float("nan")
    try:
        return float(value if isinstance(value, float) else widen_number(value))
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def _hashable(value: Any) -> Any:
    return frozenset(value) if isinstance(value, AbstractSet) else value


def _unknown(source: str, name: str, value: Any, known: Sequence[Any], what: str = "value") -> str:
    shown = value.item() if isinstance(value, np.generic) else value
    advice = "" if source == REQUEST else f" Cells with a new {what} need a model from `load_query_data`."
    return f"{source} has the unknown {what} {shown!r} for {name!r}. {known_names(value, known)}{advice}"


def _plain(values: Iterable[Any]) -> list[Any]:
    """Return classes with Python's numbers and booleans, as they are after loading."""
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _no_control(name: str, control: Any, values: Sequence[Any]) -> str:
    return f"No cell has the control value {control!r} in obs[{name!r}]. {known_names(control, values)}"


# --- combinations of the training cells, and requests -----------------------------------------------------------------


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
        Arrays are those of at most 16 384 cells, a random sample among the cells with the same classes, sets and
        numbers (at least one of each).
    n_cells
        Number of training cells of each combination.
    """

    by_key: Sequence[ConditionKey]
    combinations: np.ndarray
    n_cells: np.ndarray
    # results of _matching, _search and _rows_with, by pattern
    _known_matches: dict[bytes, _Matches] = field(default_factory=dict, init=False, repr=False, compare=False)
    _known_searches: dict[bytes, tuple] = field(default_factory=dict, init=False, repr=False, compare=False)
    _known_rows: dict[bytes, dict[bytes, np.ndarray]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def from_codes(cls, by_key: Sequence[ConditionKey], codes: np.ndarray) -> Conditions:
        """Count the combinations among codes ``(cells, columns)``, of the cells that have all labels."""
        codes = codes[have_labels(by_key, codes)].astype(float)
        for key, columns in with_columns(by_key):
            if isinstance(key, ContinuousKey) and len(codes):
                codes[:, columns] = _round_to_quantiles(codes[:, columns])
        n_cells = np.ones(len(codes), dtype=int)
        are_arrays = _columns_where(by_key, lambda key: isinstance(key, ArrayKey))
        if are_arrays.any() and len(codes) > N_PLACES:
            kept, n_cells = _thin_out(codes[:, ~are_arrays])
            codes = codes[kept]
        return cls(by_key, codes[:0], n_cells[:0]).joined(codes, n_cells)

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
        if isinstance(request, pd.DataFrame) and not request.columns.is_unique:
            msg = f"`condition` has two columns named {request.columns[request.columns.duplicated()][0]!r}."
            raise ValueError(msg)
        requested = {} if request is None else {name: request[name] for name in request}
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
        keys = dict(zip(self.keys, self.by_key, strict=True))
        return {name: len(values) for name, values in requested.items() if not keys[name].is_single(values)}

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
        for name, values in requested.items():
            key, columns = self.parts[self.keys.index(name)]
            if isinstance(key, SetKey) and isinstance(values, tuple):
                msg = f"`condition[{name!r}]` is a tuple; give a set of members, {set(values)!r}, or a list of sets."
                raise TypeError(msg)
            listed = key.listed(values)
            if not 0 < len(listed) <= n_cells:
                msg = f"`condition[{name!r}]` has {len(listed)} values for {n_cells} cells; give 1 to {n_cells}."
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
                drawn[rows] = self.combinations[self._matching(pattern).draw(codes[rows], uniform[rows])]
        return np.where(codes == OPEN, drawn, codes)

    def to_obs(self, codes: np.ndarray, index: pd.Index) -> pd.DataFrame:
        """Return codes ``(n, columns)`` as a table, with classes and sets as categories."""
        values = {key.name: key.decode(codes[:, columns]) for key, columns in self.parts if key.source == "obs"}
        return pd.DataFrame(values, index=index)

    def to_obsm(self, codes: np.ndarray, index: pd.Index) -> dict[str, np.ndarray | pd.DataFrame]:
        """Return the arrays among codes ``(n, columns)``, as tables where they were tables in training."""
        obsm: dict[str, np.ndarray | pd.DataFrame] = {}
        for key, columns in self.parts:
            if isinstance(key, ArrayKey):
                array, names = key.decode(codes[:, columns]), key.columns
                obsm[key.name] = array if names is None else pd.DataFrame(array, index=index, columns=list(names))
        return obsm

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
        found = np.zeros(len(codes), dtype=bool)
        known = codes.copy()
        for key, columns in self.parts if len(self.combinations) else ():
            rows = np.flatnonzero(codes[:, columns.start] != OPEN)
            if isinstance(key, ArrayKey) and len(rows):
                known[rows, columns] = self._by_place(key).nearest(codes[rows])
        snapped = self._snapped(codes)
        for classes, members in _distinct(np.where(self._are_numbers & (codes != OPEN), 0, snapped)):
            rows, numbers, search = self._search(classes)
            if not len(rows):
                found[members] = True
                continue
            if search is not None:
                asked, place = np.unique(snapped[np.ix_(members, numbers)], axis=0, return_inverse=True)
                distances, _ = search.query(asked, p=np.inf)
                found[members] = (distances > LARGEST_DISTANCE)[place.ravel()]
            if (classes[self._are_arrays] == 0).any():
                near = members[~found[members]]
                for pattern, own in _distinct(snapped[near]):
                    found[near[own]] = self._matching(pattern).are_far(known[near[own]])
        return found

    def count_cells(self, codes: np.ndarray) -> np.ndarray:
        """Count the training cells with the classes and sets of codes ``(n, columns)``, ``(n,)``, of any numbers.

        What is open in the first of the codes must be open in all.
        """
        counted = ~(self._are_numbers | self._are_arrays) & (codes[:1] != OPEN).all(0)
        both = np.concatenate([self.combinations, codes])[:, counted]
        number = np.unique(both, axis=0, return_inverse=True)[1].ravel() if counted.any() else np.zeros(len(both), int)
        known, asked = np.split(number, [len(self.combinations)])
        return np.bincount(known, weights=self.n_cells, minlength=len(both))[asked].astype(int)

    def rare(self, codes: np.ndarray, fewest: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the classes and sets among codes ``(n, columns)`` with 1 to ``fewest - 1`` training cells.

        The rarest come first; their numbers of cells are returned, too. Values with known embeddings learn from each
        other, so their keys do not count.
        """
        left_out = _columns_where(self.by_key, lambda key: not key.needs_training_cells)
        codes = np.unique(np.where(left_out, OPEN, codes), axis=0)
        if (codes == OPEN).all():
            return codes[:0], np.zeros(0, dtype=int)
        n_cells = self.count_cells(codes)
        order = np.argsort(n_cells, kind="stable")
        found = order[(n_cells[order] > 0) & (n_cells[order] < fewest)]
        return codes[found], n_cells[found]

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
        found = np.zeros(len(codes), dtype=bool)
        for key, columns in self.parts:
            if key.is_numeric:
                found |= self._are_far(key, codes[:, columns])
        return found

    def _are_far(self, key: ConditionKey, values: np.ndarray) -> np.ndarray:
        """Mark the numbers or arrays ``(n, columns of the key)`` that no training cell is near, ``(n,)``."""
        if isinstance(key, ArrayKey):
            return self._by_place(key).distances(self._alone(key, values)) > key.reach
        known = np.unique(self.combinations[:, self.columns(key.name)])
        return np.abs(values - _nearest(known, values))[:, 0] > reach_of(known[:, None])

    @cached_property
    def _are_arrays(self) -> np.ndarray:
        return _columns_where(self.by_key, lambda key: isinstance(key, ArrayKey))

    @cached_property
    def _are_numbers(self) -> np.ndarray:
        return _columns_where(self.by_key, lambda key: isinstance(key, ContinuousKey))

    def _snapped(self, codes: np.ndarray) -> np.ndarray:
        """Replace numbers in codes ``(n, columns)`` by the nearest ones of the training cells, and arrays by zero."""
        snapped = np.where(self._are_arrays & (codes != OPEN), 0, codes)
        for key, columns in self.parts:
            if isinstance(key, ContinuousKey) and len(self.combinations):
                nearest = _nearest(self.combinations[:, columns], codes[:, columns])
                snapped[:, columns] = np.where(codes[:, columns] == OPEN, OPEN, nearest)
        return snapped

    def _matching(self, pattern: np.ndarray) -> _Matches:
        """Return the combinations that have a pattern's classes and sets and, of these, the nearest numbers.

        If fewer than 15 cells have the nearest numbers, those of the 15 nearest cells that are near count, too. If no
        cell has the classes and sets, all combinations count.
        """
        name = pattern.tobytes()
        if name not in self._known_matches:
            rows, columns = self._rows_like(pattern), np.flatnonzero((pattern != OPEN) & self._are_arrays)
            if not len(rows):
                return self._matching(np.where(self._are_arrays, pattern, OPEN))
            places = self.combinations[rows][:, columns]
            self._known_matches[name] = _Matches(rows, columns, places, self.n_cells[rows], self._reach(pattern))
        return self._known_matches[name]

    def _rows_like(self, pattern: np.ndarray) -> np.ndarray:
        """Return the combinations that :meth:`_matching` looks for; empty for none."""
        rows, numbers, search = self._search(pattern)
        if search is None:
            return rows
        distances, first = search.query(pattern[numbers], np.arange(min(N_NEIGHBOURS, len(rows))) + 1, p=np.inf)
        are_too_few = np.cumsum(self.n_cells[rows[first]])[:-1] < N_NEIGHBOURS
        nearest, enough = distances[[0, are_too_few.sum()]]
        radius = max(min(enough, LARGEST_DISTANCE), nearest)
        return rows[search.query_ball_point(pattern[numbers], radius, p=np.inf, return_sorted=True)]

    def _search(self, pattern: np.ndarray) -> tuple[np.ndarray, np.ndarray, KDTree | None]:
        """Return the combinations that have a pattern's classes and sets, and a search among their given numbers.

        Returns
        -------
        tuple
            The rows of the combinations, the columns of the numbers, and the search; None without rows or numbers.
        """
        are_numbers = (pattern != OPEN) & self._are_numbers
        name = np.where(are_numbers, 0, pattern).tobytes()
        if name not in self._known_searches:
            rows, numbers = self._rows_with(pattern), np.flatnonzero(are_numbers)
            search = KDTree(self.combinations[np.ix_(rows, numbers)]) if len(rows) and len(numbers) else None
            self._known_searches[name] = rows, numbers, search
        return self._known_searches[name]

    def _rows_with(self, pattern: np.ndarray) -> np.ndarray:
        """Return the combinations that have a pattern's classes and sets; empty for none."""
        given = (pattern != OPEN) & ~self._are_numbers & ~self._are_arrays
        name = given.tobytes()
        if name not in self._known_rows:
            classes = _distinct(self.combinations[:, given].astype(pattern.dtype))
            self._known_rows[name] = {values.tobytes(): rows for values, rows in classes}
        return self._known_rows[name].get(pattern[given].tobytes(), np.zeros(0, dtype=int))

    def _by_place(self, key: ArrayKey) -> _Matches:
        """Return all combinations, by the places of an array."""
        return self._matching(self._alone(key, np.zeros((1, key.n_columns)))[0])

    def _alone(self, key: ArrayKey, values: np.ndarray) -> np.ndarray:
        """Return codes with the values of an array ``(n, columns of the key)`` only."""
        codes = np.full((len(values), self.n_columns), OPEN)
        codes[:, self.columns(key.name)] = values
        return codes

    def _reach(self, pattern: np.ndarray) -> float:
        """Return the distance within which the arrays of a pattern count as seen."""
        reaches = [key.reach for key, own in self.parts if isinstance(key, ArrayKey) and pattern[own.start] == 0]
        return float(np.linalg.norm(reaches))


class _Matches:
    """Combinations that have what a request asks for, by the places of its arrays.

    Parameters
    ----------
    rows
        Their numbers, ``(n,)``.
    columns
        Columns of the arrays that were asked for.
    places
        Their codes in these columns, ``(n, columns)``.
    n_cells
        Their numbers of cells, ``(n,)``.
    reach
        Distance within which a place is near.
    """

    def __init__(
        self, rows: np.ndarray, columns: np.ndarray, places: np.ndarray, n_cells: np.ndarray, reach: float
    ) -> None:
        self.columns, self.reach = columns, reach
        self.places, place = np.unique(places, axis=0, return_inverse=True)
        order = np.argsort(place.ravel(), kind="stable")
        self.rows, self.ends = rows[order], np.cumsum(n_cells[order])
        self.n_cells = np.bincount(place.ravel(), weights=n_cells)
        self.starts = np.cumsum(self.n_cells) - self.n_cells

    @cached_property
    def search(self) -> NearestNeighbors | None:
        """Search for the nearest places, if there are several."""
        return NearestNeighbors().fit(self.places) if len(self.places) > 1 else None

    def draw(self, codes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Draw a combination for each of some codes ``(m, columns of all keys)``, from those around its place."""
        distances, nearest = self._neighbours(codes, N_NEIGHBOURS)
        weights = self.n_cells[nearest]
        are_enough = np.cumsum(weights, axis=1) - weights >= N_NEIGHBOURS
        weights[are_enough | (distances > np.maximum(self.reach, distances[:, :1]))] = 0
        cumulative = np.cumsum(weights, axis=1)
        total = cumulative[:, -1]
        targets = np.minimum(uniform * total, np.nextafter(total, 0))
        chosen = (cumulative <= targets[:, None]).sum(1, keepdims=True).clip(max=nearest.shape[1] - 1)
        before = np.take_along_axis(cumulative - weights, chosen, 1)[:, 0]
        place = np.take_along_axis(nearest, chosen, 1)[:, 0]
        found = np.searchsorted(self.ends, self.starts[place] + targets - before, side="right")
        return self.rows[found.clip(max=len(self.rows) - 1)]

    def distances(self, codes: np.ndarray) -> np.ndarray:
        """Return the distances from codes ``(m, columns of all keys)`` to the nearest place, ``(m,)``."""
        return self._neighbours(codes, 1)[0][:, 0]

    def are_far(self, codes: np.ndarray) -> np.ndarray:
        """Mark the codes ``(m, columns of all keys)`` that no place is near, ``(m,)``."""
        if len(codes) * len(self.places) <= FEW_DISTANCES:
            distances = cdist(codes[:, self.columns], self.places).min(1)
            if not np.isclose(distances, self.reach).any():  # else rounding decides, which differs between searches
                return distances > self.reach
        return self.distances(codes) > self.reach

    def nearest(self, codes: np.ndarray) -> np.ndarray:
        """Return the nearest place of each of some codes, ``(m, columns)``."""
        return self.places[self._neighbours(codes, 1)[1][:, 0]]

    def _neighbours(self, codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return distances and numbers of the ``n`` nearest places, or of all if they are fewer."""
        asked = codes[:, self.columns]
        if self.search is None:
            return np.linalg.norm(asked - self.places, axis=1)[:, None], np.zeros((len(asked), 1), dtype=int)
        return self.search.kneighbors(asked, min(n, len(self.places)))


def _columns_where(by_key: Sequence[ConditionKey], holds: Callable[[ConditionKey], bool]) -> np.ndarray:
    """Mark the columns of the keys for which a condition holds."""
    marks = [np.full(key.n_columns, holds(key)) for key in by_key]
    return np.concatenate(marks) if marks else np.zeros(0, dtype=bool)


def _distinct(codes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the distinct ones of codes ``(n, columns)``, with their rows."""
    if not len(codes):
        return
    patterns, members = np.unique(codes, axis=0, return_inverse=True)
    order = np.argsort(members.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(members.ravel()))
    yield from zip(patterns, np.split(order, ends[:-1]), strict=True)


def _thin_out(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose about 16 384 cells at random, and at least one with each of the codes ``(cells, columns)``.

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
    if n_cells is None:
        if not lengths:
            msg = "`n_cells` is needed unless `condition` is a table with columns, or has a list of values."
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
