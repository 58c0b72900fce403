"""Condition keys that learn new values from further cells, so that the numbers of the old ones keep their meaning."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ._checks import known_names
from ._condition_keys import CategoricalKey, ConditionKey, ContinuousKey, SetKey, columns_of
from ._condition_setup import ROOM

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


def extend_key(key: ConditionKey, column: pd.Series, table: pd.DataFrame | None = None) -> ConditionKey:
    """Add what a key does not know yet.

    Parameters
    ----------
    key
        As other cells gave it. Its classes or members keep their numbers, and its numbers their scale.
    column
        The key's values in the new cells.
    table
        Known embeddings, a row per class or member, those that the key knows first.

    Raises
    ------
    ValueError
        For values that look like others but are of another type, and for values without a known embedding where others have one.
    """
    match key:
        case CategoricalKey():
            values = [*key.values, *_new_classes(key, column)]
            return replace(key, values=_with_embedding(key, values, table))
        case ContinuousKey():
            numbers = key.decode(key.encode(column.to_numpy(), source="adata.obs"))
            return replace(key, low=float(min(key.low, *numbers)), high=float(max(key.high, *numbers)))
        case SetKey():
            return _extend_set(key, column, table)
    msg = f"A condition of the kind {type(key).__name__} cannot be extended."
    raise TypeError(msg)


def recode(codes: np.ndarray, before: Sequence[ConditionKey], after: Sequence[ConditionKey]) -> np.ndarray:
    """Write codes ``(n, columns)`` of keys as those of the extended keys; what is negative stands for any value.

    Only sets change: their empty places have the number after the last member, and there may be more places.
    """
    blocks = [codes[:, columns] for columns in columns_of(before)]
    written = [_recode_key(block, *keys) for block, keys in zip(blocks, zip(before, after, strict=True), strict=True)]
    return np.concatenate(written, axis=1) if written else codes


def occurring(by_key: Sequence[ConditionKey], codes: np.ndarray) -> list[np.ndarray]:
    """Tell, for each key, which of its classes or members are among codes ``(n, columns)``; nothing for numbers."""
    blocks = [codes[:, columns] for columns in columns_of(by_key)]
    return [np.isin(np.arange(_n_values(key)), block) for key, block in zip(by_key, blocks, strict=True)]


def _n_values(key: ConditionKey) -> int:
    match key:
        case CategoricalKey():
            return len(key.values)
        case SetKey():
            return len(key.members)
    return 0


def _new_classes(key: CategoricalKey, column: pd.Series) -> list[Any]:
    found = column.astype("category").cat.remove_unused_categories().cat.categories
    new = [value for value in found if value not in set(key.values)]
    as_text = {str(value): value for value in key.values}
    for value in new:
        if str(value) in as_text:
            known = as_text[str(value)]
            msg = (
                f"adata.obs[{key.name!r}] holds {value!r} of the type {type(value).__name__}, which the reference knows as "
                f"{known!r} of the type {type(known).__name__}. Turn the column into that type."
            )
            raise ValueError(msg)
    return new


def _extend_set(key: SetKey, column: pd.Series, table: pd.DataFrame | None) -> SetKey:
    spellings = sorted(map(str, column.unique()))
    parts = [key.parts(text) for text in spellings]
    new = sorted(set().union(*parts) - set(key.members))
    return replace(
        key,
        members=_with_embedding(key, [*key.members, *new], table),
        largest=max(key.largest, max(map(len, parts)) + ROOM),
        spellings=list(dict.fromkeys([*key.spellings, *spellings])),
    )


def _with_embedding(key: CategoricalKey | SetKey, values: list[Any], table: pd.DataFrame | None) -> list[Any]:
    """Return the values, or all that have a row if the key has known embeddings."""
    if not key.has_vectors or table is None:
        return values
    known = list(table.index) if isinstance(key, CategoricalKey) else [str(member) for member in table.index]
    if missing := [value for value in values if value not in set(known)]:
        msg = (
            f"{missing[0]!r} of {key.name!r} has no known embedding. The reference was built with embeddings of this key: give "
            f"rows for new values with `condition_embeddings`. {known_names(missing[0], known)}"
        )
        raise ValueError(msg)
    return known


def _recode_key(block: np.ndarray, before: ConditionKey, after: ConditionKey) -> np.ndarray:
    if not (isinstance(before, SetKey) and isinstance(after, SetKey)):
        return block
    block = np.where(block == len(before.members), len(after.members), block)
    filling = np.where(block[:, -1:] < 0, block[:, -1:], len(after.members))
    return np.concatenate([block, np.repeat(filling, after.largest - before.largest, axis=1)], axis=1)
