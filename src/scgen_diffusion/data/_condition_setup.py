"""From what a user says of the columns of ``obs`` to condition keys, with every check at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ._anndata import SYNTHETIC
from ._checks import check_conditions, known_names
from ._condition_keys import CategoricalKey, ConditionKey, ContinuousKey, SetKey, split_set

if TYPE_CHECKING:
    from anndata import AnnData

SEPARATOR = "+"
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
        categorical: Sequence[str],
        continuous: Sequence[str],
        sets: Sequence[str] | Mapping[str, str],
        controls: Mapping[str, Any] | None,
        embeddings: Mapping[str, pd.DataFrame | str] | None,
    ) -> ConditionSetup:
        """Check what a user gave to ``setup_anndata``, and look up tables that are named.

        Raises
        ------
        KeyError
            For an unknown column of ``obs`` or entry of ``uns``.
        TypeError
            For a string in place of a list.
        ValueError
            For cells without a value, and for names, separators and tables that do not fit.
        """
        for argument, given in (("control_values", controls), ("condition_embeddings", embeddings)):
            if given is not None and not isinstance(given, Mapping):
                msg = f"`{argument}` must be a mapping from condition keys, but found {type(given).__name__}."
                raise TypeError(msg)
        separators = (
            dict(sets)
            if isinstance(sets, Mapping)
            else dict.fromkeys(listed_names(sets, "set_condition_keys"), SEPARATOR)
        )
        listed = [
            *listed_names(categorical, "condition_keys"),
            *listed_names(continuous, "continuous_condition_keys"),
            *separators,
        ]
        if SYNTHETIC in listed:
            msg = f"{SYNTHETIC!r} cannot be a condition key: generated cells have a column of that name. Rename adata.obs[{SYNTHETIC!r}]."
            raise ValueError(msg)
        check_conditions(adata.obs, listed)
        _check_separators(separators)
        for name in {**(controls or {}), **(embeddings or {})}:
            if name not in listed or name in continuous:
                allowed = [key for key in listed if key not in continuous]
                msg = f"{name!r} has a control value or an embedding, but is no categorical or set key. {known_names(name, allowed)}"
                raise ValueError(msg)
        tables = {name: _table(adata, name, table) for name, table in (embeddings or {}).items()}
        return cls(list(categorical), list(continuous), separators, dict(controls or {}), tables)

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
        _check_plain(name, classes, (str, int, float, bool, np.generic), "text, numbers or truth values")
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
        _check_plain(name, column.unique(), (str,), f"text such as 'A{separator}B'")
        if isinstance(control, str) and separator in control:
            msg = f"The control value {control!r} of {name!r} contains the separator {separator!r}. Choose another separator."
            raise ValueError(msg)
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


def listed_names(names: Iterable[str], argument: str) -> list[str]:
    """Return names as a list, or raise TypeError for a string."""
    if isinstance(names, str):
        msg = f"`{argument}` must be a list of names, but found the string {names!r}. Did you mean [{names!r}]?"
        raise TypeError(msg)
    return list(names)


def _check_separators(separators: Mapping[str, str]) -> None:
    for name, separator in separators.items():
        if not isinstance(separator, str) or not separator.strip():
            msg = (
                f"The separator of {name!r} in `set_condition_keys` must be text such as '+', but found {separator!r}."
            )
            raise ValueError(msg)


def _check_plain(name: str, values: Sequence[Any], types: tuple[type, ...], allowed: str) -> None:
    if strange := [value for value in values if not isinstance(value, types)]:
        msg = f"adata.obs[{name!r}] holds {strange[0]!r} of type {type(strange[0]).__name__}; {allowed} are needed."
        raise ValueError(msg)


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
        msg = f"adata.obs[{name!r}] holds {column.dtype} and not numbers. Name it in `condition_keys`, or turn it into numbers."
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
