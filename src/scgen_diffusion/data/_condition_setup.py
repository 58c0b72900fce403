"""From what a user says of the columns of ``obs`` to condition keys, with every check at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgen_diffusion._arguments import known_names, warn_user

from ._anndata import SYNTHETIC
from ._checks import check_conditions
from ._condition_keys import CategoricalKey, ConditionKey, ContinuousKey, SetKey, split_set

if TYPE_CHECKING:
    from anndata import AnnData

SEPARATOR = "+"
NUMBERS = "numbers"
MANY_NUMBERS = 256  # beyond which classes that are numbers are rather amounts
MANY_CLASSES = 50  # beyond which as many classes as cells are no chance
ROOM = 2  # members that a set can have beyond the largest of training


@dataclass(frozen=True)
class ConditionSetup:
    """Which columns of ``obs`` are conditions, and of which kind.

    Parameters
    ----------
    categorical, continuous
        Columns of classes and of numbers.
    sets
        Columns of sets, with their separators.
    controls
        What is written for unperturbed cells in some of the columns.
    vectors
        Known embeddings of some of the keys: a row per class or member.
    """

    categorical: Sequence[str] = ()
    continuous: Sequence[str] = ()
    sets: Mapping[str, str] = field(default_factory=dict)
    controls: Mapping[str, Any] = field(default_factory=dict)
    vectors: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        adata: AnnData,
        categorical: Sequence[str] | None,
        continuous: Sequence[str] | None,
        sets: Sequence[str] | Mapping[str, str] | None,
        controls: Mapping[str, Any] | None,
        embeddings: Mapping[str, pd.DataFrame | str] | None,
    ) -> ConditionSetup:
        """Check what a user gave to ``setup_anndata``, and look up tables that are named.

        Raises
        ------
        KeyError
            For an unknown column of ``obs`` or entry of ``uns``.
        TypeError
            For what is no list of names, or no mapping.
        ValueError
            For cells without a value, and for names, values, separators and tables that do not fit.

        Warns
        -----
        UserWarning
            For a column that looks like amounts or names of cells rather than like classes.
        """
        for argument, given in (("control_values", controls), ("condition_embeddings", embeddings)):
            if given is not None and not isinstance(given, Mapping):
                msg = f"`{argument}` must be a mapping from condition keys, but found {type(given).__name__}."
                raise TypeError(msg)
        categorical, continuous, listed_sets = condition_names(categorical, continuous, sets)
        listed = [*categorical, *continuous, *listed_sets]
        separators = dict(sets) if isinstance(sets, Mapping) else dict.fromkeys(listed_sets, SEPARATOR)
        if SYNTHETIC in listed:
            msg = f"{SYNTHETIC!r} cannot be a condition key: generated cells have a column of that name. Rename adata.obs[{SYNTHETIC!r}]."
            raise ValueError(msg)
        check_conditions(adata.obs, listed)
        if repeated := [name for name in listed if listed.count(name) > 1]:
            msg = (
                f"The condition key {repeated[0]!r} is named more than once; one list, and one place in it, is enough."
            )
            raise ValueError(msg)
        for name in categorical:
            _check_classes(name, adata.obs[name])
        for name, separator in separators.items():
            _check_sets(name, adata.obs[name], separator, (controls or {}).get(name))
        for name in {**(controls or {}), **(embeddings or {})}:
            if name not in listed or name in continuous:
                allowed = [key for key in listed if key not in continuous]
                msg = f"{name!r} has a control value or an embedding, but is no categorical or set key. {known_names(name, allowed)}"
                raise ValueError(msg)
        tables = {name: _table(adata, name, table) for name, table in (embeddings or {}).items()}
        return cls(categorical, continuous, separators, dict(controls or {}), tables)

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> ConditionSetup:
        """Return the setup that these arguments of ``setup_anndata`` gave."""
        names = (
            "condition_keys",
            "continuous_condition_keys",
            "set_condition_keys",
            "control_values",
            "condition_embeddings",
        )
        return cls(*(arguments[name] for name in names))

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``setup_anndata`` that give this setup, without what lies in the cells' ``uns``."""
        return {
            "condition_keys": list(self.categorical),
            "continuous_condition_keys": list(self.continuous),
            "set_condition_keys": dict(self.sets),
            "control_values": dict(self.controls),
            "condition_embeddings": dict(self.vectors),
        }

    def keys_of(self, obs: pd.DataFrame) -> list[ConditionKey]:
        """Build the keys from the training cells' columns: categorical, continuous, sets."""
        categorical = [self._categorical(name, obs[name]) for name in self.categorical]
        continuous = [_continuous(name, obs[name]) for name in self.continuous]
        return [*categorical, *continuous, *(self._set(name, obs[name]) for name in self.sets)]

    def _categorical(self, name: str, column: pd.Series) -> CategoricalKey:
        classes = list(column.astype("category").cat.categories)
        control = self.controls.get(name)
        if control is not None and control not in classes:
            raise ValueError(_no_control(name, control, classes))
        if name not in self.vectors:
            return CategoricalKey(name, classes)
        known = list(self.vectors[name].index)
        _check_vectors_known(name, set(column.unique()), known)
        return CategoricalKey(name, known, has_vectors=True)

    def _set(self, name: str, column: pd.Series) -> SetKey:
        separator, control = self.sets[name], self.controls.get(name)
        spellings = sorted(column.unique())
        parts = [set(split_set(name, text, separator)) - {control} for text in spellings]
        found = set().union(*parts)
        if control is not None and all(parts):
            raise ValueError(_no_control(name, control, spellings))
        if not found:
            msg = f"adata.obs[{name!r}] holds nothing but the control value {control!r}; at least one perturbation is needed."
            raise ValueError(msg)
        members = sorted(found)
        if name in self.vectors:
            members = [str(member) for member in self.vectors[name].index]
            _check_no_separator(name, members, separator)
            _check_vectors_known(name, found, members)
        largest = max(map(len, parts)) + ROOM
        return SetKey(name, members, separator, largest, control, spellings, has_vectors=name in self.vectors)


def extended_table(adata: AnnData, name: str, table: pd.DataFrame, further: pd.DataFrame | str) -> pd.DataFrame:
    """Add rows for new values to a table of known embeddings; rows that it has already must be the same.

    Raises
    ------
    ValueError
        For other columns or other vectors.
    """
    further = _table(adata, name, further)
    if list(further.columns) != list(table.columns):
        msg = f"The embedding of {name!r} must have the {table.shape[1]} columns of the reference's, but has {list(further.columns)[:5]} ..."
        raise ValueError(msg)
    shared = [value for value in further.index if value in table.index]
    if not np.allclose(further.loc[shared], table.loc[shared]):
        msg = f"The embedding of {name!r} has other vectors than the reference's for values that it knows; leave these out."
        raise ValueError(msg)
    return pd.concat([table, further.drop(index=shared)])


def condition_names(
    categorical: Sequence[str] | None,
    continuous: Sequence[str] | None,
    sets: Sequence[str] | Mapping[str, str] | None,
) -> tuple[list[str], list[str], list[str]]:
    """Return the columns of each kind."""
    return (
        listed_names(categorical, "condition_keys"),
        listed_names(continuous, "continuous_condition_keys"),
        listed_names(list(sets) if isinstance(sets, Mapping) else sets, "set_condition_keys"),
    )


def listed_names(names: Collection[str] | None, argument: str) -> list[str]:
    """Return names as a list, of which None is an empty one, or raise TypeError for what is no list of names."""
    if isinstance(names, str):
        msg = f"`{argument}` must be a list of names, but found the string {names!r}. Did you mean [{names!r}]?"
        raise TypeError(msg)
    if names is None:
        return []
    if not isinstance(names, Collection) or isinstance(names, Mapping | AbstractSet):  # a set has no order to rely on
        msg = f"`{argument}` must be a list of names, but found {type(names).__name__}."
        raise TypeError(msg)
    listed = list(names)
    if strange := [name for name in listed if not isinstance(name, str)]:
        msg = (
            f"`{argument}` must be a list of names, but found {strange[0]!r} of type {type(strange[0]).__name__} in it."
        )
        raise TypeError(msg)
    return [str(name) for name in listed]  # plain ones, of whatever type of text


def _check_classes(name: str, column: pd.Series) -> None:
    """Raise unless a column holds what classes can be, and warn if it looks like something else."""
    types = (str, int, float, np.integer, np.floating, np.bool_)
    kinds = {_kind_of(value) for value in _checked_values(name, column, types, "text, numbers or truth values")}
    if len(kinds) > 1:
        msg = f"adata.obs[{name!r}] holds {' and '.join(sorted(kinds))} together; write it alike in all cells."
        raise ValueError(msg)
    n_classes, n_cells = column.nunique(), len(column)
    if kinds == {NUMBERS} and n_classes > MANY_NUMBERS:
        advice = "If they are amounts, name it in `continuous_condition_keys`; if they are names, turn them into text."
        msg = (
            f"adata.obs[{name!r}] has {n_classes} distinct numbers, each of which becomes a class of its own. {advice}"
        )
        warn_user(msg)
    elif n_classes > max(MANY_CLASSES, n_cells / 2):
        advice = "Leave it out, or, if they are amounts, name it in `continuous_condition_keys` as numbers."
        msg = (
            f"adata.obs[{name!r}] has {n_classes} classes for {n_cells} cells, too few to learn a class from. {advice}"
        )
        warn_user(msg)


def _checked_values(name: str, column: pd.Series, types: tuple[type, ...], allowed: str) -> Iterable[Any]:
    """Return the values of a column, more than once if they are objects, or raise if any is of another type."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        values = column.cat.categories
    else:
        values = column if column.dtype == object else column.unique()  # objects may have no hash
    if strange := [value for value in values if not isinstance(value, types)]:
        msg = (
            f"adata.obs[{name!r}] holds {strange[0]!r} of type {type(strange[0]).__name__}; it may hold {allowed} only."
        )
        raise ValueError(msg)
    return values


def _kind_of(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    return "truth values" if isinstance(value, bool | np.bool_) else NUMBERS


def _check_sets(name: str, column: pd.Series, separator: str, control: Any) -> None:
    if not isinstance(separator, str) or not separator.strip():
        msg = f"The separator of {name!r} in `set_condition_keys` must be text such as '+', but found {separator!r}."
        raise ValueError(msg)
    if control is not None and not isinstance(control, str):
        msg = f"The control value of {name!r} must be text, as its sets are, but found {control!r}."
        raise ValueError(msg)
    if control is not None and separator in control:
        msg = (
            f"The control value {control!r} of {name!r} contains the separator {separator!r}. Choose another separator."
        )
        raise ValueError(msg)
    _checked_values(name, column, (str,), f"text such as 'A{separator}B'")


def _table(adata: AnnData, name: str, table: pd.DataFrame | str) -> pd.DataFrame:
    """Return a table of embeddings, looked up in ``uns`` where it is named, checked and of type float32."""
    if isinstance(table, str):
        if table not in adata.uns:
            msg = f"The embedding {table!r} of {name!r} is not in adata.uns. {known_names(table, list(adata.uns))}"
            raise KeyError(msg)
        table = adata.uns[table]
    if not isinstance(table, pd.DataFrame):
        msg = (
            f"The embedding of {name!r} must be a DataFrame with one row per value, or the name of one in adata.uns, but found "
            f"{type(table).__name__}."
        )
        raise TypeError(msg)
    if not table.index.is_unique:
        msg = f"The embedding of {name!r} has more than one row for {table.index[table.index.duplicated()][0]!r}."
        raise ValueError(msg)
    numbers = table.select_dtypes("number")
    if numbers.shape[1] < table.shape[1] or not table.shape[1] or not np.isfinite(numbers.to_numpy(dtype=float)).all():
        msg = f"The embedding of {name!r} must hold finite numbers only, in at least one column."
        raise ValueError(msg)
    renamed = table.astype("float32").rename(columns=str)
    if not renamed.columns.is_unique:
        msg = f"The embedding of {name!r} has two columns of the name {renamed.columns[renamed.columns.duplicated()][0]!r}."
        raise ValueError(msg)
    return renamed


def _check_vectors_known(name: str, needed: set[Any], known: Sequence[Any]) -> None:
    if missing := sorted(needed - set(known), key=str):
        msg = (
            f"The embedding of {name!r} has no row for {len(missing)} of the {len(needed)} values in adata.obs, for example "
            f"{missing[0]!r}. {known_names(missing[0], known)}"
        )
        raise ValueError(msg)


def _check_no_separator(name: str, members: Sequence[str], separator: str) -> None:
    if within := [member for member in members if separator in member]:
        msg = (
            f"The member {within[0]!r} of {name!r} contains the separator {separator!r}. Choose another with "
            f"`set_condition_keys={{{name!r}: '...'}}`, and write the sets in adata.obs with it."
        )
        raise ValueError(msg)


def _continuous(name: str, column: pd.Series) -> ContinuousKey:
    if column.dtype.kind not in "iuf":
        msg = f"adata.obs[{name!r}] holds {column.dtype} and not numbers. Name it in `condition_keys`, or turn it into numbers: `.astype(float)`."
        raise ValueError(msg)
    values = column.to_numpy(dtype=float)
    if not np.isfinite(values).all():
        msg = f"adata.obs[{name!r}] holds infinite numbers; every value must be finite."
        raise ValueError(msg)
    if values.min() == values.max():
        msg = f"adata.obs[{name!r}] is {values[0]:g} in every cell; a number that never varies is no condition."
        raise ValueError(msg)
    return ContinuousKey.of(name, values)


def _no_control(name: str, control: Any, values: Sequence[Any]) -> str:
    return f"No cell has the control value {control!r} in adata.obs[{name!r}]. {known_names(control, values)}"
