"""Condition keys: columns of ``obs`` with classes, numbers or sets, arrays of numbers in ``obsm``, and their codes.

A key learns its values from the training cells (``of``), and turns values into columns of codes and back (``encode``,
``decode``). For fine-tuning it learns more values (``extended``); the codes of the old ones do not change.
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
from pandas.api.types import is_scalar
from sklearn.neighbors import NearestNeighbors

from scgen_diffusion._arguments import is_number, known_names, warn_user

from ._anndata import widen, widen_number
from ._plain import to_plain

OPEN = -np.inf  # code of a condition that is still to be drawn
REQUEST = "`condition`"
NUMBERS = "numbers"
FEWEST_DIGITS, MOST_DIGITS = 10, 17  # digits that a number may need to survive standardising and back
LARGEST_DISTANCE = 0.25  # standard deviations within which a number counts as seen in training
LARGEST_NUMBER = 1e6  # standard deviations from the mean; no training cell can be that far
ROUNDING = 1e-6  # relative to the range; numbers that were computed may differ in their last digits
N_VALUES = 256  # distinct values kept of a number
MOST_COLUMNS = 50  # of an array
UNLIKE = 20  # times the spread of another column; more than this are columns of different kinds
WIDEST_RATIO = 50  # of distances from the control, such as doses
LOGARITHMIC = 2.0  # typical ratio of neighbouring doses, from which on they look equidistant on a logarithmic scale
N_PLACES = 16_384  # values kept of an array
N_SHOWN = 60  # characters of a wrong value
EXTRA_MEMBERS = 2  # members that a set can have beyond the largest training set


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

    def check_learned(self, codes: np.ndarray, seen: np.ndarray) -> None:  # noqa: B027 - numbers need no check
        """Raise if columns ``(n, n_columns)`` hold a class or member that is not among those ``seen`` in training.

        Every number is allowed: the model inter- or extrapolates.
        """

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
        if new and len(kinds := kinds_of(values)) > 1:
            msg = (
                f"With the reference's classes, such as {self.values[0]!r}, obs[{self.name!r}] mixes "
                f"{' and '.join(sorted(kinds))}, such as {new[0]!r}; use the reference's type for all cells."
            )
            raise ValueError(msg)
        values = values if table is None else _with_vectors(self.name, values, table)
        return replace(self, values=values, ordered=self.ordered and not new)

    @property
    def labels(self) -> Sequence[Any]:
        """The classes."""
        return self.values

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
            msg = (
                f"{source} has {value!r} for {self.name!r}; give one value for all cells, or a list with one value per "
                "cell or fewer (each for an equal share of the cells: ['A'] * 7 + ['B'] * 3 makes 70 % of A)."
            )
            raise TypeError(msg) from error
        except OverflowError as error:
            msg = f"{source} has a number for {self.name!r} that is too large to be a class."
            raise ValueError(msg) from error
        if (codes < 0).any():
            value = list(values)[int(np.argmin(codes))]
            if is_scalar(value) and (pd.isna(value) or value == self.unlabeled_category):
                msg = (
                    f"{source} has {value!r} for {self.name!r}, which means that a cell has no label. "
                    f"{known_names(self.unlabeled_category, self.values)}"
                )
                raise ValueError(msg)
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

    def check_learned(self, codes: np.ndarray, seen: np.ndarray) -> None:
        """Raise for a class without training cells and without a known embedding."""
        missing = np.setdiff1d(codes, seen)
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
        Mean and standard deviation of the training cells, which standardise values.
    low, high
        Range of the training cells.
    numbers
        The distinct numbers of the training cells, in order, unless they are more than 256: as a standardised number
        may be that of several, they come back as they were. After fine-tuning, those of the new cells alone if the
        reference kept none.
    """

    kind = "continuous"
    is_numeric = True
    name: str
    mean: float
    std: float
    low: float
    high: float
    numbers: Sequence[float] = field(default=(), compare=False, repr=False)

    @classmethod
    def of(cls, name: str, column: pd.Series, control: Any = None) -> ContinuousKey:
        """Take range and scale from the values of training cells, of which one must be the control value if given."""
        if column.dtype.kind not in "iuf":
            msg = (
                f"obs[{name!r}] holds {column.dtype} instead of numbers. List it in `condition_keys`, or convert "
                "it: `.astype(float)`."
            )
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
        numbers = np.unique(values)
        kept = numbers.tolist() if len(numbers) <= N_VALUES else ()
        key = cls(name, mean, std, float(values.min()), float(values.max()), kept)
        if control is None:
            return key
        if not is_number(control):
            msg = f"The control value of {name!r} must be a number, as in obs, but found {control!r}."
            raise ValueError(msg)
        is_control = are_same_codes(key.encode(numbers.tolist()), key.encode([control], "`control_values`")).ravel()
        if not is_control.any():
            nearest = float(values[np.abs(values - control).argmin()])
            msg = f"No cell has the control value {control} in obs[{name!r}]; the nearest number is {nearest}."
            raise ValueError(msg)
        distances = np.unique(np.abs(numbers[~is_control] - control))
        ratios = distances[1:] / distances[:-1]
        if len(ratios) and distances[-1] > WIDEST_RATIO * distances[0] and np.median(ratios) >= LOGARITHMIC:
            warn_user(
                f"The values of {name!r} are {distances[0]:g} to {distances[-1]:g} away from the control value "
                f"{control}. Those near it look untreated to the model, and their effects come out too small: register "
                "the logarithm, with the control just below the smallest dose."
            )
        return key

    def extended(self, column: pd.Series, table: pd.DataFrame | None = None) -> ContinuousKey:
        """Widen the range and keep the scale."""
        self.encode(column.to_numpy(), source="obs")
        new = np.unique(as_numbers(column.to_numpy()))
        numbers = np.union1d(self.numbers, new).tolist()
        numbers = numbers if len(numbers) <= N_VALUES else self.numbers
        return replace(self, low=min(self.low, float(new[0])), high=max(self.high, float(new[-1])), numbers=numbers)

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
            msg = (
                f"{source} has the value {value!r} for {self.name!r}, too far from the range of the training cells, "
                f"{self.low:g} to {self.high:g}."
            )
            raise ValueError(msg)
        return codes[:, None]

    @cached_property
    def _codes_of_numbers(self) -> np.ndarray:
        return self.encode(self.numbers)[:, 0]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return numbers on their original scale: those of the training cells, or those with the fewest digits."""
        numbers = _numbers_of(codes[:, 0], self.mean, self.std)
        if not self.numbers:
            return numbers
        known = self._codes_of_numbers
        place = np.searchsorted(known, codes[:, 0]).clip(max=len(known) - 1)
        return np.where(known[place] == codes[:, 0], np.asarray(self.numbers)[place], numbers)

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
        """Take range and scale from the values of training cells.

        Warns
        -----
        UserWarning
            If the spreads of the columns are so different that the smaller hardly count.
        """
        numbers = check_array(name, array)
        with np.errstate(over="ignore", invalid="ignore"):
            low, high, spread = numbers.min(0), numbers.max(0), numbers.std(0)
        if (low == high).all():
            msg = f"obsm[{name!r}] is the same in every cell; a condition must vary. Leave it out."
            raise ValueError(msg)
        varying = spread[low < high]
        if not (varying > 0).all() or not np.isfinite(np.square(spread).sum()):
            msg = f"obsm[{name!r}] has numbers from {low.min():g} to {high.max():g}; give them in another unit."
            raise ValueError(msg)
        if varying.max() > UNLIKE * varying.min():
            warn_user(
                f"The columns of obsm[{name!r}] have standard deviations from {varying.min():.3g} to "
                f"{varying.max():.3g}. They share one scale, so the smaller ones hardly count. Unless they are "
                "coordinates, standardise them first."
            )
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
            why = "finite numbers are needed"
            if np.isfinite(value).all():
                why = (
                    f"too far from the range of the training cells, {self._listed(self.low)} to "
                    f"{self._listed(self.high)}"
                )
            msg = f"{source} has the value {self._listed(value)} for {self.name!r}; {why}."
            raise ValueError(msg)
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return rows on their original scale, with the fewest digits that give these codes."""
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
                msg = (
                    f"{source}: the table {self.name!r} has the columns {list(values.columns)}, but the model was "
                    f"trained with {list(self.columns)}."
                )
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
            msg = (
                f"{source}: {self.name!r} has {self.n_columns} numbers per cell; give a row of {self.n_columns} for "
                f"all cells, or an array with a row per cell, but found {found}."
            )
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
            msg = (
                f"The member {within[0]!r} of {name!r} contains the separator {separator!r}. Choose another separator "
                f"by `set_condition_keys={{{name!r}: '...'}}`, and use it in obs."
            )
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
        if not str(value).strip() and self.control != "":
            control = "" if self.control is None else f", or {self.control!r} for none of them"
            msg = f"A value of {self.name!r} is empty; give members{control}."
            raise ValueError(msg)
        members = members_of(str(value), self.separator, self.control)
        if "" in members:
            msg = f"The set {value!r} of {self.name!r} has an empty member; {self.separator!r} separates members."
            raise ValueError(msg)
        return members

    def encode(self, values: Sequence[Any], source: str = REQUEST) -> np.ndarray:
        """Look up members; sets may be text or Python sets."""
        if wrong := [value for value in values if isinstance(value, list | tuple | np.ndarray)]:
            members = set(map(str, wrong[0]))
            msg = f"{source} has {wrong[0]!r} for {self.name!r}; give a set of members, {members!r}, or text."
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

    def check_learned(self, codes: np.ndarray, seen: np.ndarray) -> None:
        """Raise for a member without training cells and without a known embedding."""
        missing = np.setdiff1d(codes[codes < len(self.members)], seen)
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
        msg = (
            f"The embedding of {name!r} has no row for {len(missing)} of the {len(needed)} values in obs, for "
            f"example {missing[0]!r}; give rows for all in `condition_embeddings`. {known_names(missing[0], known)}"
        )
        raise ValueError(msg)
    return known


def check_array(name: str, array: Any) -> np.ndarray:
    """Return an array of ``obsm`` as numbers ``(cells, columns)``; raise unless it can be a condition."""
    where = f"obsm[{name!r}]"
    if isinstance(array, pd.DataFrame) and (with_slash := [column for column in array if "/" in str(column)]):
        msg = (
            f"{where} has the column {with_slash[0]!r}, whose name has a '/', which names in .h5ad and .zarr files "
            f"cannot have. Rename it: {where}.columns = {where}.columns.str.replace('/', '_')."
        )
        raise ValueError(msg)
    numbers = array.to_numpy() if isinstance(array, pd.DataFrame) else array
    if not isinstance(numbers, np.ndarray) or numbers.dtype.kind not in "iuf":
        found = f"values of type {numbers.dtype}" if isinstance(numbers, np.ndarray) else f"a {type(array).__name__}"
        msg = f"{where} must be an array or table of numbers to be a condition, but holds {found}."
        raise ValueError(msg)
    if numbers.ndim != 2:
        advice = f"Copy it to obs: obs[{name!r}] = {where}; del {where}." if numbers.ndim == 1 else "Reshape it."
        msg = f"{where} must have a row per cell and a few columns, but has the shape {numbers.shape}. {advice}"
        raise ValueError(msg)
    if not 0 < numbers.shape[1] <= MOST_COLUMNS:
        msg = (
            f"{where} has {numbers.shape[1]} columns; a condition can have 1 to {MOST_COLUMNS}. Keep a few, such as "
            "the first principal components."
        )
        raise ValueError(msg)
    numbers = numbers.astype(float)
    are_bad = ~np.isfinite(numbers).all(1)
    if are_bad.any():
        msg = (
            f"{where} has missing or infinite numbers in {are_bad.sum()} of {len(numbers)} cells. Remove these cells, "
            "or fill them in."
        )
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
    """Return standardised numbers ``(n,)`` on their original scale, with the fewest digits that give these codes."""
    distinct, which = np.unique(codes, return_inverse=True)
    numbers = distinct * std + mean
    is_found = np.zeros(len(distinct), dtype=bool)
    most = -int(np.ceil(np.log10(max(std, abs(mean)))))
    for n_digits in range(FEWEST_DIGITS, MOST_DIGITS + 1):
        rounded = np.round(numbers, n_digits + most)
        is_new = ~is_found & ((rounded - mean) / std == distinct)
        numbers, is_found = np.where(is_new, rounded, numbers), is_found | is_new
    return numbers[which] + 0.0  # no negative zero


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
    advice = _of_same_text(shown, known) or known_names(value, known)
    if source.startswith(("adata.", "mdata.", "files.")):
        advice += f" Cells with a new {what} need a model from `load_query_data`."
    return f"{source} has the unknown {what} {shown!r} for {name!r}. {advice}"


def _of_same_text(value: Any, known: Sequence[Any]) -> str:
    """Say which known value is written like this one, but of another type; "" for none."""
    kinds = {str: "text", bool: "truth value"}
    same = [k for k in _plain(known) if str(k) == str(value) and type(k) is not type(value)]
    return f"Give the {kinds.get(type(same[0]), 'number')} {same[0]!r}." if same else ""


def _plain(values: Iterable[Any]) -> list[Any]:
    """Return classes with Python's numbers and booleans, as they are after loading."""
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _no_control(name: str, control: Any, values: Sequence[Any]) -> str:
    advice = _of_same_text(control, values) or known_names(control, values)
    return f"No cell has the control value {control!r} in obs[{name!r}]. {advice}"


def _not_learned(name: str, value: Any, what: str) -> str:
    return (
        f"The model does not know {value!r} of {name!r}: its last training had no cell of this {what} that has all "
        "labels. Train with cells of it (after `load_query_data`, call `train`), or give its embedding in "
        "`condition_embeddings` of setup_anndata."
    )
