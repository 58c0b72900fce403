"""Labels of cells as text, and numbers of single precision as the ones that they look like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgen_diffusion._arguments import is_number, known_names

if TYPE_CHECKING:
    from collections.abc import Sequence

JOIN = "|"
NO_LABEL = "no label"


def as_label(value: Any) -> str:
    """Return a value of `obs` as text: 1 for 1.0, since a missing value makes floats of integers, and "no label".

    Numbers of single precision are those that they look like (:func:`widen_number`).
    """
    if isinstance(value, str):  # most are; the other checks take ten times as long
        return str(value)
    if pd.isna(value):
        return NO_LABEL
    if not is_number(value):
        return str(value)
    if float(value).is_integer():
        return str(int(value))
    return str(widen_number(value))


def as_labels(column: pd.Series) -> pd.Series:
    """Return a column of `obs` as text (:func:`as_label`)."""
    numbers, values = pd.factorize(column, use_na_sentinel=False)
    texts = np.array([as_label(value) for value in values], dtype=object)
    return pd.Series(texts[numbers], column.index)


def widen_number(value: Any) -> Any:
    """Return a number of single precision as the one that it looks like: 0.1, also for 0.10000000149011612.

    Others stay as they are.
    """
    if not isinstance(value, float | np.floating):
        return value
    with np.errstate(over="ignore"):
        single = value if isinstance(value, np.float16) else np.float32(value)
    return float(str(single)) if float(single) == float(value) else value


def widen(column: pd.Series) -> pd.Series:
    """Return a column of less than double precision as the numbers that it looks like, as :func:`widen_number`."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        found = pd.Series(column.cat.categories)
        wide = widen(found)
        return column if wide is found else column.cat.rename_categories(wide.to_numpy())
    if not pd.api.types.is_float_dtype(column.dtype) or getattr(column.dtype, "itemsize", 8) >= 8:
        return column
    numbers = column.to_numpy(f"f{column.dtype.itemsize}", na_value=np.nan)
    return pd.Series(numbers.astype(str).astype(float), column.index)


def join_labels(obs: pd.DataFrame, keys: Sequence[str]) -> np.ndarray:
    r"""Return one label per cell, `(cells,)`: the values of several columns (:func:`as_label`), joined by ``|``.

    With several columns, a ``|`` or ``\`` within a value is escaped by a ``\``, so that different values give different
    labels.
    """
    if repeated := [key for key in keys if keys.count(key) > 1]:
        msg = f"The column of labels {repeated[0]!r} is listed more than once; list it once."
        raise ValueError(msg)
    if missing := [key for key in keys if key not in obs]:
        msg = f"`obs` has no column {missing[0]!r}. {known_names(missing[0], list(obs))}"
        raise KeyError(msg)
    columns = [as_labels(obs[key]) for key in keys]
    if len(columns) > 1:
        columns = [column.str.replace(r"([|\\])", r"\\\1", regex=True) for column in columns]
    return np.array([JOIN.join(values) for values in zip(*columns, strict=True)], dtype=str)
