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
from pandas.api.types import infer_dtype
from scipy.spatial import KDTree

from scgen_diffusion._arguments import known_names, list_first

from ._labels import widen, widen_number

REQUEST = "`condition`"
CLASSES = ("string", "boolean", "integer", "floating", "mixed-integer-float", "empty")  # kinds of values, for pandas
N_DIGITS = 14  # of a number, relative to the scale of its key, that survive standardising and back
LARGEST_DISTANCE = 0.25  # standard deviations within which a number counts as seen in training
LARGEST_NUMBER = 1e6  # standard deviations from the mean; no training cell can be that far
ROUNDING = 1e-6  # numbers that were computed, or in single precision, may differ in their last digits
MOST_COLUMNS = 50  # of an array
MOST_CELLS = 16_384  # whose numbers are kept
N_COMPARED = 1_000  # cells whose nearest neighbours tell how near is near
EXTRA_MEMBERS = 2  # members that a set can have beyond the largest training set


@dataclass(frozen=True)
class ConditionKey(ABC):
    """One key: its name, its kind, and its values in the training cells."""

    kind: ClassVar[str]
    source = "obs"
    """Where cells have their values, ``"obs"`` or ``"obsm"``."""
    is_numeric: ClassVar[bool] = False
    """Whether values have distances."""
    has_vectors = False
    """Whether classes or members have known embeddings."""
    reach = 1.0
    """Distance of numbers that count as the same."""
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

    @cached_property
    def _number(self) -> dict[Any, int]:
        return {label: number for number, label in enumerate(self.labels)}

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
        """Return whether this is one value for all cells, such as a set or a row of an array, not several."""
        return np.asarray(values, dtype=object).ndim <= (self.is_numeric and self.n_columns > 1)

    def listed(self, values: Any) -> Any:
        """Return one or several values as a list or array."""
        if self.is_single(values):
            return [values[()] if isinstance(values, np.ndarray) else values]  # an array may have no axes
        return values

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
        value = self.decode(codes[None])[0]
        return repr(value.tolist() if isinstance(value, np.generic | np.ndarray) else value)

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
        if new and infer_dtype(values) not in CLASSES:
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
    """A column of numbers, or an array of ``obsm`` whose columns are one condition, such as positions.

    Parameters
    ----------
    name
        Name of the column or array.
    mean
        Mean of each column in the training cells.
    std
        Root mean square of the columns' standard deviations. All columns are divided by it, which keeps their
        proportions.
    low, high
        Range of each column in the training cells.
    reach
        Distance in each column, in units of ``std``, within which numbers count as seen in training
        (:func:`reach_of`).
    source
        Where cells have their numbers: ``"obs"`` for a column, ``"obsm"`` for an array.
    """

    kind = "continuous"
    is_numeric = True
    name: str
    mean: Sequence[float]
    std: float
    low: Sequence[float]
    high: Sequence[float]
    reach: float
    source: str = "obs"

    @classmethod
    def of(cls, name: str, values: pd.Series | np.ndarray, control: Any = None) -> ContinuousKey:
        """Take range and scale from the values of training cells, of which one must be the control value if given."""
        source = "obs" if isinstance(values, pd.Series) else "obsm"
        numbers, where = check_numbers(name, values), f"{source}[{name!r}]"
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = numbers.mean(0), float(np.sqrt(numbers.var(0).mean()))
        low, high = numbers.min(0), numbers.max(0)
        if (low == high).all() or not 0 < std < np.inf:
            msg = f"{where} must vary, with a finite variance; it ranges from {low.min():g} to {high.max():g}."
            raise ValueError(msg)
        codes = (numbers - mean) / std
        key = cls(name, mean.tolist(), std, low.tolist(), high.tolist(), reach_of(codes), source)
        if control is not None and not are_same_codes(codes, key.encode([control], "`control_values`")).any():
            msg = f"No cell has the control value {control} in {where}."
            raise ValueError(msg)
        return key

    def extended(self, column: Any, table: pd.DataFrame | None = None) -> ContinuousKey:
        """Widen the range and keep the scale."""
        codes, numbers = self.encode(column, self.source), check_numbers(self.name, column)
        low, high = np.minimum(self.low, numbers.min(0)).tolist(), np.maximum(self.high, numbers.max(0)).tolist()
        return replace(self, low=low, high=high, reach=max(self.reach, reach_of(codes)))

    @property
    def n_columns(self) -> int:
        """Number of columns of the array; 1 for a column."""
        return len(self.mean)

    @property
    def summary(self) -> str:
        """The range of each column."""
        return list_first([f"{low:.4g} to {high:.4g}" for low, high in zip(self.low, self.high, strict=True)])

    def encode(self, values: Any, source: str = REQUEST) -> np.ndarray:
        """Standardise numbers, or rows of numbers."""
        try:
            numbers = np.array(widen(pd.Series(values)) if np.ndim(values) == 1 else values, dtype=float)
        except (TypeError, ValueError, OverflowError):
            numbers = np.full(1, np.nan)
        rows = numbers[:, None] if numbers.ndim == 1 and self.n_columns == 1 else numbers
        if rows.ndim != 2 or rows.shape[1] != self.n_columns:
            msg = f"{source}: {self.name!r} needs {self.n_columns} numbers per cell, not the shape {numbers.shape}."
            raise ValueError(msg)
        codes = (rows - np.asarray(self.mean)) / self.std
        are_wrong = ~(np.abs(codes) <= LARGEST_NUMBER).all(1)  # also NaN
        if are_wrong.any():
            found = rows[int(np.argmax(are_wrong))].tolist()
            msg = f"{source} has {found} for {self.name!r}, where numbers are needed like {self.summary} in training."
            raise ValueError(msg)
        return codes

    def encode_cells(self, column: Any, source: str) -> np.ndarray:
        """Standardise the numbers of cells."""
        return self.encode(column, source)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return numbers on their original scale: ``(n,)`` for a column, ``(n, n_columns)`` for an array."""
        n_digits = N_DIGITS - int(np.ceil(np.log10(max(self.std, *np.abs(self.mean)))))
        rows = np.round(codes * self.std + np.asarray(self.mean), n_digits) + 0.0  # no negative zero
        return rows[:, 0] if self.source == "obs" else rows


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
    def _spelling(self) -> dict[tuple[float, ...], str]:
        """Text of each set in training, by its columns."""
        texts = self.spellings[::-1]  # of several texts of a set, the first one stays
        return dict(zip(map(tuple, self.encode(texts)), texts, strict=True))

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

    def encode(self, values: Sequence[Any], source: str = REQUEST) -> np.ndarray:
        """Look up members; sets may be text or Python sets."""
        if wrong := [value for value in values if isinstance(value, list | tuple | np.ndarray)]:
            msg = f"{source} has {wrong[0]!r} for {self.name!r}; give a set of members, or text."
            raise TypeError(msg)
        codes = np.full((len(values), self.largest), float(self.n_values))
        fewest = 1 if self.control is None else 0
        for row, parts in zip(codes, map(self.parts, values), strict=True):
            if unknown := sorted(parts - self._number.keys()):
                raise ValueError(_unknown(source, self.name, unknown[0], self.members))
            if not fewest <= len(parts) <= self.largest:
                msg = f"{source}: a set of {self.name!r} has {fewest} to {self.largest} members, not {sorted(parts)}."
                raise ValueError(msg)
            row[: len(parts)] = sorted(self._number[part] for part in parts)
        return codes

    def describe(self, codes: np.ndarray) -> str:
        """Return one set as text, without the others that :meth:`decode` lists as categories."""
        return repr(self._text(tuple(codes)))

    def decode(self, codes: np.ndarray) -> pd.Categorical:
        """Return sets with their text in training; unseen ones in the order of members."""
        texts = [self._text(tuple(row)) for row in codes]
        return pd.Categorical(texts, categories=sorted({*self._spelling.values(), *texts}))

    def _text(self, columns: tuple[float, ...]) -> str:
        if columns in self._spelling:
            return self._spelling[columns]
        return self.separator.join(self.members[int(n)] for n in columns if n < len(self.members)) or str(self.control)


KINDS: dict[str, type[ConditionKey]] = {key.kind: key for key in (CategoricalKey, ContinuousKey, SetKey)}


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
    """Mark the codes ``(n, columns)`` that are the same but for rounding, ``(n,)``."""
    return np.isclose(codes, others, rtol=ROUNDING, atol=ROUNDING).all(1)


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


def check_numbers(name: str, values: Any) -> np.ndarray:
    """Return a column of ``obs`` or an array of ``obsm`` as numbers ``(cells, columns)``; raise if it has others."""
    if not isinstance(values, pd.Series | np.ndarray) or values.dtype.kind not in "iuf":
        found = getattr(values, "dtype", type(values).__name__)
        msg = f"{name!r} must hold numbers to be one of `continuous_condition_keys`, not {found}; see `condition_keys`."
        raise ValueError(msg)
    column = widen(values).to_numpy(float, na_value=np.nan)[:, None] if isinstance(values, pd.Series) else values
    if column.ndim != 2 or not 0 < column.shape[1] <= MOST_COLUMNS:
        msg = f"The condition {name!r} must have 1 to {MOST_COLUMNS} columns, but has the shape {values.shape}."
        raise ValueError(msg)
    numbers = column.astype(float) + 0.0  # no negative zero
    if not np.isfinite(numbers).all():
        msg = f"{name!r} has missing or infinite numbers; remove these cells."
        raise ValueError(msg)
    return numbers


def reach_of(codes: np.ndarray) -> float:
    """Return the distance within which numbers ``(cells, columns)`` count as seen in training.

    It is a quarter of the standard deviation, or as far as the nearest neighbours of 99 % of the cells. No column may
    differ by more.
    """
    if len(codes) == 1:
        return LARGEST_DISTANCE
    cells = np.random.default_rng(0).permutation(codes)[:MOST_CELLS]
    distances, _ = KDTree(cells).query(cells[:N_COMPARED], k=[2], p=np.inf)  # the nearest one is the cell itself
    return max(LARGEST_DISTANCE, float(np.quantile(distances, 0.99)))


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


def _unknown(source: str, name: str, value: Any, known: Sequence[Any]) -> str:
    return f"{source} has {value!r} for {name!r}, which only `load_query_data` could add. {known_names(value, known)}"


def _no_control(name: str, control: Any, values: Sequence[Any]) -> str:
    return f"No cell has the control value {control!r} in obs[{name!r}]. {known_names(control, values)}"
