"""Plain forms of Python objects: what a file may hold so that reading it never executes code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

TAG = "__type__"


def to_plain(value: Any) -> Any:
    """Turn a value into dicts, lists, tensors, strings and numbers, from which :func:`from_plain` builds it again.

    Raises
    ------
    TypeError
        For values of other kinds than mappings, sequences, arrays, tables and scalars.
    """
    if isinstance(value, np.generic):  # first, for some of them are numbers and text of Python's too
        return value.item()
    if value is None or isinstance(value, bool | int | float | str | torch.Tensor):
        return value
    if isinstance(value, Mapping):
        return {TAG: "dict", "items": [[to_plain(k), to_plain(v)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {TAG: "tuple", "items": [to_plain(v) for v in value]}
    if isinstance(value, list):
        return [to_plain(v) for v in value]
    if isinstance(value, pd.DataFrame):
        columns = {str(name): to_plain(value[name].to_numpy()) for name in value.columns}
        return {TAG: "frame", "columns": columns, "index": to_plain(value.index.to_numpy()), "name": value.index.name}
    if isinstance(value, pd.Index | pd.Series):
        return to_plain(value.to_numpy())
    if isinstance(value, np.ndarray):
        return {TAG: "array", "dtype": _dtype_name(value), "shape": list(value.shape), "items": _items(value)}
    msg = f"A {type(value).__name__} cannot be saved; only numbers, text, lists, mappings, arrays and tables can."
    raise TypeError(msg)


def from_plain(value: Any) -> Any:
    """Undo :func:`to_plain`."""
    if isinstance(value, list):
        return [from_plain(v) for v in value]
    if not isinstance(value, dict) or TAG not in value:
        return value
    return _BUILDERS[value[TAG]](value)


def _dtype_name(array: np.ndarray) -> str:
    return array.dtype.name if array.dtype.kind in "biuf" else "object"


def _items(array: np.ndarray) -> torch.Tensor | list:
    if array.dtype.kind in "bif":
        return torch.from_numpy(np.ascontiguousarray(array).reshape(-1).copy())
    return [to_plain(item) for item in array.ravel().tolist()]


def _build_array(plain: Mapping[str, Any]) -> np.ndarray:
    items = plain["items"]
    if isinstance(items, torch.Tensor):
        return items.cpu().numpy().astype(plain["dtype"]).reshape(plain["shape"])
    array = np.empty(len(items), dtype=object)
    array[:] = [from_plain(item) for item in items]
    return array.astype(plain["dtype"]).reshape(plain["shape"])


def _build_frame(plain: Mapping[str, Any]) -> pd.DataFrame:
    columns = {name: from_plain(column) for name, column in plain["columns"].items()}
    return pd.DataFrame(columns, index=pd.Index(from_plain(plain["index"]), name=plain["name"]))


_BUILDERS = {
    "dict": lambda plain: {from_plain(key): from_plain(item) for key, item in plain["items"]},
    "tuple": lambda plain: tuple(from_plain(item) for item in plain["items"]),
    "array": _build_array,
    "frame": _build_frame,
}
