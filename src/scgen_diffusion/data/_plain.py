"""Arrays and tables as plain values, which can be read from a file without executing code, and as digests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

NAME_OF_INDEX = "_index"  # in files of anndata, which takes it for no column
TEXT = pd.Series(["text"]).dtype  # "str" since pandas 3; before, an object, as anndata 0.12 writes no "str"
MASKED = (pd.arrays.BooleanArray, pd.arrays.IntegerArray, pd.arrays.FloatingArray)


def to_plain(value: Any) -> Any:
    """Turn a value into dicts, lists, tensors and scalars; :func:`to_array` and :func:`to_table` are the inverse.

    Raises
    ------
    TypeError
        For anything but mappings with string keys, sequences, arrays, tables and scalars.
    """
    if isinstance(value, np.generic):
        return value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, pd.DataFrame):
        columns = {name: _column(value[name]) for name in value}
        return {"index": _column(value.index), "index_name": value.index.name, "columns": to_plain(columns)}
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        native = value.dtype.newbyteorder("=")
        return torch.from_numpy(np.array(value, native))  # a copy, since a view would be saved with its whole base
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return to_plain(value.tolist())
    msg = f"{type(value).__name__} cannot be saved; use numbers, text, lists, mappings by text, arrays or tables."
    raise TypeError(msg)


def to_array(plain: torch.Tensor | list[Any]) -> np.ndarray:
    """Rebuild an array from a tensor or a list of :func:`to_plain`."""
    if isinstance(plain, torch.Tensor):
        check_is_stored(plain, "an array")
        return plain.numpy()
    array = np.empty(len(plain), dtype=object)
    array[:] = plain
    return array


def check_is_stored(tensor: torch.Tensor, name: str) -> None:
    """Raise ValueError if a tensor repeats its values, so that a small file could fill the memory."""
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        msg = f"{name} has the shape {tuple(tensor.shape)}, but fewer values"
        raise ValueError(msg)


def to_table(plain: Mapping[str, Any]) -> pd.DataFrame:
    """Rebuild a table from a dict of :func:`to_plain`, with the same column types."""
    values = _read_column(plain["index"])
    index = pd.Index(values, dtype=values.dtype, name=plain["index_name"])
    columns = {name: _read_column(column) for name, column in plain["columns"].items()}
    return pd.DataFrame({name: pd.Series(c, index=index, dtype=c.dtype) for name, c in columns.items()}, index=index)


def savable_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Keep only columns of text, numbers, booleans and categories of these, in types that every anndata writes.

    ``.zarr`` files, and ``.h5ad`` files since anndata 0.13, take no names with a "/", and anndata reserves a name for
    itself: generated cells could not be written.
    """
    names = [name for name in table if isinstance(name, str) and "/" not in name and name != NAME_OF_INDEX]
    columns = {name: _as_writable(table[name]) for name in names if _is_savable(table[name])}
    kept = pd.DataFrame(columns, index=table.index)
    kept.index = kept.index.astype(str)
    return kept.rename_axis(None) if kept.index.name in kept else kept  # which anndata would take for the same


def _is_savable(column: pd.Series | pd.Index) -> bool:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return _is_savable(column.dtype.categories)
    kind = pd.api.types.infer_dtype(column, skipna=True)
    return kind in ("string", "empty") or (column.dtype != object and kind in ("integer", "floating", "boolean"))


def _as_writable(column: pd.Series) -> pd.Series:
    """Return text with gaps as categories, other text in this pandas' usual type, and its own fractions as NumPy's."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.rename_categories(_as_writable(column.dtype.categories.to_series()).to_numpy())
    if column.dtype == object or isinstance(column.dtype, pd.StringDtype):
        text = column.astype(object)
        return text.astype("category") if text.isna().any() else text.infer_objects()
    if isinstance(column.array, pd.arrays.FloatingArray):
        return pd.Series(column.to_numpy(column.dtype.numpy_dtype, na_value=np.nan), column.index)
    return column


def _column(values: pd.Series | pd.Index) -> Any:
    """Return a column as a tensor, a list, or (for pandas' own types) a dict."""
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        codes = pd.Categorical(values).codes
        return {"codes": to_plain(codes), "categories": _column(dtype.categories), "ordered": bool(dtype.ordered)}
    if isinstance(dtype, pd.StringDtype) or isinstance(values.array, MASKED):
        known = [None if missing else item for item, missing in zip(values, values.isna(), strict=True)]
        return {"values": to_plain(known), "dtype": dtype.name}
    return to_plain(values.to_numpy() if isinstance(dtype, np.dtype) else values.array)


def _read_column(plain: Any) -> Any:
    if not isinstance(plain, Mapping):
        return to_array(plain)
    if "codes" in plain:
        values = _read_column(plain["categories"])
        categories = pd.Index(values, dtype=values.dtype)
        return pd.Categorical.from_codes(to_array(plain["codes"]), categories, ordered=plain["ordered"])
    return pd.array(plain["values"], dtype=TEXT if plain["dtype"] == "str" else plain["dtype"])


def digest_of(*parts: object) -> str:
    """Return a digest of dataclasses, plain values and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()
