"""From arguments of ``setup_anndata`` to the conditions of cells, a field of scvi-tools' registry.

``setup_anndata`` makes a :class:`ConditionSetup`, which checks its arguments. Registering a :class:`ConditionField`
lets each key learn its column, and writes the codes of the cells ``(cells, columns)`` to ``obsm``, from which
scvi-tools' loaders read batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import rich.pretty  # scvi-tools uses it to print registries without importing it
import rich.table
from pandas.api.types import infer_dtype
from scvi import REGISTRY_KEYS
from scvi.data.fields import BaseAnnDataField

from scgen_diffusion._arguments import known_names, warn_user

from ._checks import check_names, check_unique_names
from ._condition_keys import (
    CLASSES,
    CategoricalKey,
    ConditionKey,
    ContinuousKey,
    SetKey,
    are_unlabeled,
    key_from_state,
    labeled_part,
    with_columns,
)
from ._generated import SYNTHETIC
from ._plain import NAME_OF_INDEX

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

OBSM_KEY = "_scgen_conditions"
CONDITIONS = "conditions"
"""Name of the cells' conditions in the registry and in batches; the same as in the modules."""
SEPARATOR = "+"
MANY_CLASSES = 50  # more classes than this, and than half of the cells, are probably not classes
LIKE_MISSING = ("", "nan", "<na>", "na", "n/a", "null")  # text that columns with gaps turn into; "none" names controls


@dataclass(frozen=True)
class ConditionSetup:
    """The columns of ``obs`` and arrays of ``obsm`` that are conditions, by kind.

    Parameters
    ----------
    condition_keys, continuous_condition_keys
        Columns of classes; columns and arrays of numbers.
    set_condition_keys
        Columns of sets, with their separators.
    control_values
        Values of unperturbed cells, by column.
    condition_embeddings
        Known embeddings, by column: a row per class or member.
    unlabeled_category
        Value of cells without a label in the columns of classes, which may then also have missing values.
    """

    condition_keys: Sequence[str]
    continuous_condition_keys: Sequence[str]
    set_condition_keys: Mapping[str, str]
    control_values: Mapping[str, Any]
    condition_embeddings: Mapping[str, pd.DataFrame]
    unlabeled_category: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ConditionSetup:
        """Return the setup of the arguments of a function or a registry, which may have others, or lack new ones.

        Raises
        ------
        TypeError
            For arguments that are not lists of names, not mappings, or not text.
        ValueError
            For a name that is listed twice, or that generated cells use; for control values and embeddings that do not
            fit; for ``unlabeled_category`` without classes.
        """
        categorical, continuous = (
            check_names(given.get(name), name) for name in ("condition_keys", "continuous_condition_keys")
        )
        controls, embeddings = given.get("control_values"), given.get("condition_embeddings")
        unlabeled = given.get("unlabeled_category")
        if not isinstance(sets := given.get("set_condition_keys"), Mapping):
            sets = dict.fromkeys(check_names(sets, "set_condition_keys"), SEPARATOR)
        listed = [*categorical, *continuous, *sets]
        if reserved := [name for name in (SYNTHETIC, NAME_OF_INDEX) if name in listed]:
            msg = f"{reserved[0]!r} cannot be a condition key, because the name is in use. Rename obs[{reserved[0]!r}]."
            raise ValueError(msg)
        if repeated := [name for name in listed if listed.count(name) > 1]:
            msg = f"The condition key {repeated[0]!r} is listed more than once; list it once."
            raise ValueError(msg)
        for argument, by_name, known in (
            ("control_values", controls, listed),
            ("condition_embeddings", embeddings, [*categorical, *sets]),
        ):
            if not isinstance(by_name, Mapping | None):
                msg = f"`{argument}` must be a mapping from condition keys, but found {type(by_name).__name__}."
                raise TypeError(msg)
            if wrong := [name for name in by_name or () if name not in known]:
                msg = f"`{argument}` cannot be given for {wrong[0]!r}. {known_names(wrong[0], known)}"
                raise ValueError(msg)
        if not isinstance(unlabeled, str | None):
            msg = f"`unlabeled_category` must be text, such as 'Unknown', but found {unlabeled!r}."
            raise TypeError(msg)
        if unlabeled is not None and not categorical:
            msg = "`unlabeled_category` needs `condition_keys`; only these can lack labels."
            raise ValueError(msg)
        tables = {name: _checked_table(name, table) for name, table in (embeddings or {}).items()}
        for name in tables.keys() & set(categorical):
            tables[name] = tables[name].drop(index=[unlabeled], errors="ignore")
        return cls(categorical, continuous, dict(sets), dict(controls or {}), tables, unlabeled)

    @property
    def names(self) -> list[str]:
        """Names of the columns and arrays of classes, of numbers and of sets, in this order."""
        return [*self.condition_keys, *self.continuous_condition_keys, *self.set_condition_keys]

    def keys_of(self, cells: AnnData | MuData) -> list[ConditionKey]:
        """Learn the keys from the training cells, in the order of :attr:`names`.

        Raises
        ------
        KeyError
            For an unknown column of ``obs`` or array of ``obsm``.
        ValueError
            For missing labels, also if no cell has all, and for values, controls and embeddings that do not fit.

        Warns
        -----
        UserWarning
            If a column of classes looks like numbers, cell names or missing labels, or if every cell has all labels,
            although ``unlabeled_category`` is given.
        """
        unlabeled, values = self.unlabeled_category, {}
        for name in self.names:
            may_be_missing = unlabeled is not None and name in self.condition_keys
            sources = ("obs", "obsm") if name in self.continuous_condition_keys else ("obs",)
            values[name] = condition_values(cells, name, sources, may_be_missing=may_be_missing)
        for name in self.condition_keys:
            _check_classes(name, labeled_part(values[name], unlabeled))
        for name, separator in self.set_condition_keys.items():
            _check_sets(name, values[name], separator, self.control_values.get(name))
        are_missing = np.any([are_unlabeled(values[name], unlabeled) for name in self.condition_keys], axis=0)
        if unlabeled is not None and not are_missing.any():
            warn_user(f"`unlabeled_category` is {unlabeled!r}, which no cell has in {self.condition_keys}.")
        if are_missing.all():
            msg = f"No cell has a label in all of {self.condition_keys}; each is {unlabeled!r} or missing in one."
            raise ValueError(msg)
        known = {name: (self.control_values.get(name), self.condition_embeddings.get(name)) for name in self.names}
        return [
            *(CategoricalKey.of(name, values[name], *known[name], unlabeled) for name in self.condition_keys),
            *(ContinuousKey.of(name, values[name], known[name][0]) for name in self.continuous_condition_keys),
            *(SetKey.of(name, values[name], mark, *known[name]) for name, mark in self.set_condition_keys.items()),
        ]


class ConditionField(BaseAnnDataField):
    """Writes the condition codes of cells, ``(cells, columns)``, to ``obsm``, for batches.

    Parameters
    ----------
    setup
        The columns and arrays that are conditions.
    by_key
        The keys, if known; default: learn them from the first registered cells.
    """

    registry_key = CONDITIONS
    attr_name = "obsm"
    attr_key = OBSM_KEY
    is_empty = False

    def __init__(self, setup: ConditionSetup, by_key: Sequence[ConditionKey] | None = None) -> None:
        super().__init__()
        self.setup = setup
        self.by_key = by_key
        self.is_empty = not setup.names

    def validate_field(self, adata: AnnData | MuData) -> None:
        """Do nothing: values are checked when they are encoded."""

    def register_field(self, adata: AnnData | MuData) -> dict[str, Any]:
        """Learn the keys and write the codes; scvi-tools repeats this if the cells were set up for another model."""
        if self.by_key is None:
            self.by_key = self.setup.keys_of(adata)
        return self._write(adata, self.by_key)

    def transfer_field(
        self,
        state_registry: dict[str, Any],
        adata_target: AnnData | MuData,
        *,
        extend_categories: bool = False,
        **_: Any,
    ) -> dict[str, Any]:
        """Write the codes of other cells with known keys; for fine-tuning, the keys learn new values first."""
        by_key = keys_of_state(state_registry)
        if extend_categories:
            by_key = extend_keys(by_key, adata_target, self.setup.condition_embeddings)
        return self._write(adata_target, by_key)

    def _write(self, adata: AnnData | MuData, by_key: Sequence[ConditionKey]) -> dict[str, Any]:
        """Write codes, and return keys by number: scvi-tools cannot show mappings in lists or names with dots."""
        adata.obsm[OBSM_KEY] = encode_conditions(adata, by_key)
        return {"keys": {str(number): key.state() for number, key in enumerate(by_key)}}

    def get_summary_stats(self, state_registry: dict[str, Any]) -> dict[str, int]:
        """Return the number of keys."""
        return {"n_conditions": len(state_registry.get("keys", {}))}

    def view_state_registry(self, state_registry: dict[str, Any]) -> rich.table.Table | None:
        """List the keys."""
        table = rich.table.Table("key", "kind", title="Conditions")
        for state in state_registry.get("keys", {}).values():
            table.add_row(state["name"], state["kind"])
        return table


def keys_of_state(state_registry: dict[str, Any]) -> list[ConditionKey]:
    """Build the keys from the registry."""
    return [key_from_state(state) for state in state_registry.get("keys", {}).values()]


def values_of_key(cells: AnnData | MuData, key: ConditionKey) -> Any:
    """Return the values of cells for a known key, after the checks of :func:`condition_values`."""
    return condition_values(cells, key.name, (key.source,), may_be_missing=key.may_be_missing)


def encode_conditions(cells: AnnData | MuData, by_key: Sequence[ConditionKey]) -> np.ndarray:
    """Return the codes of all keys, ``(cells, columns)``."""
    codes = np.zeros((len(cells.obs), sum(key.n_columns for key in by_key)))
    for key, columns in with_columns(by_key):
        codes[:, columns] = key.encode_cells(values_of_key(cells, key), key.source)
    return codes


def extend_keys(
    by_key: Sequence[ConditionKey], cells: AnnData | MuData, tables: Mapping[str, pd.DataFrame]
) -> list[ConditionKey]:
    """Return keys that have learned the values of other cells, or of the rows of extended embedding tables."""
    return [key.extended(values_of_key(cells, key), tables.get(key.name)) for key in by_key]


def extend_tables(
    tables: Mapping[str, pd.DataFrame], further: Mapping[str, pd.DataFrame] | None
) -> dict[str, pd.DataFrame]:
    """Add rows for new values to embedding tables, by condition; rows for known values must not differ.

    Raises
    ------
    ValueError
        For a condition without a table, and for different columns or vectors.
    """
    extended = dict(tables)
    for name, given in (further or {}).items():
        if name not in tables:
            msg = f"`condition_embeddings`: the reference has none of {name!r}. {known_names(name, list(tables))}"
            raise ValueError(msg)
        table, more = tables[name], _checked_table(name, given)
        shared = more.index.intersection(table.index)
        if list(more.columns) != list(table.columns) or not np.allclose(more.loc[shared], table.loc[shared]):
            msg = f"The embedding of {name!r} must have the columns and the known rows of the reference's."
            raise ValueError(msg)
        extended[name] = pd.concat([table, more.drop(index=shared)])
    return extended


def condition_values(
    cells: AnnData | MuData, name: str, sources: Sequence[str] = ("obs",), *, may_be_missing: bool = False
) -> Any:
    """Return an array of ``obsm``, or a column of ``obs`` with a value for every cell, unless these ``may_be_missing``.

    Raises
    ------
    KeyError
        If none of the ``sources`` has it.
    ValueError
        If several have it, cells lack a value, or files cannot have the name.
    """
    if "/" in str(name):
        msg = f"The key {name!r} has a '/', which names in .h5ad and .zarr files cannot have. Rename it."
        raise ValueError(msg)
    found = [source for source in sources if name in getattr(cells, source)]
    if not found:
        known = known_names(name, [one for source in sources for one in getattr(cells, source)])
        msg = f"The condition key {name!r} is not in {' or '.join(sources)}. {known}"
        raise KeyError(msg)
    if len(found) > 1:
        msg = f"The condition key {name!r} is in {' and in '.join(found)}; rename one of them."
        raise ValueError(msg)
    if found == ["obsm"]:
        return cells.obsm[name]
    check_unique_names(cells.obs[[name]].columns, "obs")
    n_missing = cells.obs[name].isna().sum()
    if n_missing and not may_be_missing:
        msg = (
            f"obs[{name!r}] has no value for {n_missing} cells. Remove them, or give them one; `condition_keys` may "
            "lack labels with `unlabeled_category='Unknown'`."
        )
        raise ValueError(msg)
    return cells.obs[name]


def complete_columns(cells: AnnData | MuData, names: Sequence[str]) -> pd.DataFrame:
    """Return columns of ``obs`` with a label for every cell."""
    return pd.DataFrame({name: condition_values(cells, name) for name in names}, index=cells.obs.index)


def _check_classes(name: str, column: pd.Series) -> None:
    """Raise unless a column can hold classes, and warn if it looks like something else."""
    if (kind := infer_dtype(column.astype(object))) not in CLASSES:
        msg = f"obs[{name!r}] must hold text, numbers or booleans, and only one of these, but is {kind}."
        raise ValueError(msg)
    texts = [value for value in column.unique() if isinstance(value, str)]
    if missing := sorted(text for text in texts if text.strip().casefold() in LIKE_MISSING):
        warn_user(
            f"obs[{name!r}] has the class {missing[0]!r}. If cells of it lack a label, leave them out, or give "
            f"`unlabeled_category={missing[0]!r}`."
        )
    if (n_classes := column.nunique()) > max(MANY_CLASSES, len(column) / 2):
        warn_user(
            f"obs[{name!r}] has {n_classes:,} classes in {len(column):,} cells, too many to learn. "
            "`continuous_condition_keys` takes numbers."
        )


def _check_sets(name: str, column: pd.Series, separator: str, control: Any) -> None:
    """Raise unless a column holds text, and the separator is not part of the control value."""
    if not isinstance(separator, str) or not separator.strip():
        msg = f"The separator of {name!r} in `set_condition_keys` must be text such as '+', but found {separator!r}."
        raise ValueError(msg)
    if control is not None and (not isinstance(control, str) or separator in control):
        msg = f"The control value of {name!r} must be text without the separator {separator!r}, but found {control!r}."
        raise ValueError(msg)
    if (kind := infer_dtype(column.astype(object))) != "string":
        msg = f"obs[{name!r}] must hold text such as 'A{separator}B', but is {kind}."
        raise ValueError(msg)


def _checked_table(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Return an embedding table with values of type float32; raise unless it has rows of distinct names and numbers."""
    if not isinstance(table, pd.DataFrame):
        msg = f"The embedding of {name!r} must be a DataFrame, not {type(table).__name__}."
        raise TypeError(msg)
    with np.errstate(over="ignore"):
        numbers = table.select_dtypes("number").astype("float32").rename(columns=str)
    is_whole = table.index.is_unique and numbers.columns.is_unique and numbers.shape == table.shape
    if not is_whole or not numbers.size or not np.isfinite(numbers.to_numpy()).all():
        msg = f"The embedding of {name!r} must have distinct rows and columns, and only finite numbers (float32)."
        raise ValueError(msg)
    return numbers


# --- what scvi-tools registered of a model's cells --------------------------------------------------------------------


def expression_state(registry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was registered of the values that the model reads."""
    return registry["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]


def registered_genes(registry: Mapping[str, Any]) -> pd.Index:
    """Return the names of the genes, or of the features of all modalities."""
    return pd.Index([str(name) for name in expression_state(registry)["column_names"]])


def registered_keys(registry: Mapping[str, Any]) -> list[ConditionKey]:
    """Return the condition keys."""
    return keys_of_state(registry["field_registries"][CONDITIONS]["state_registry"])
