"""Arrays and tables as plain values, which can be read from a file without executing code, and as digests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

NAME_OF_INDEX = "_index"  # in files of anndata, which takes it for no column


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
    return plain.numpy() if isinstance(plain, torch.Tensor) else np.array(plain, dtype=object)


def to_table(plain: Mapping[str, Any]) -> pd.DataFrame:
    """Rebuild a table of NumPy's types and categories from a dict of :func:`to_plain`."""
    index = pd.Index(_read_column(plain["index"]), name=plain["index_name"])
    columns = {name: _read_column(column) for name, column in plain["columns"].items()}
    return pd.DataFrame(columns, index=index).infer_objects()  # pandas has its own type of text since version 3


def savable_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Keep only columns of text, numbers, booleans and categories of these, in types that every anndata writes.

    ``.zarr`` files, and ``.h5ad`` files since anndata 0.13, take no names with a "/", and anndata reserves a name for
    itself: generated cells could not be written.
    """
    names = [name for name in table if isinstance(name, str) and "/" not in name and name != NAME_OF_INDEX]
    columns = {name: column for name in names if (column := _as_savable(table[name])) is not None}
    kept = pd.DataFrame(columns, index=table.index)
    kept.index = kept.index.astype(str)
    return kept.rename_axis(None) if kept.index.name in kept else kept  # which anndata would take for the same


def _as_savable(column: pd.Series) -> pd.Series | None:
    """Return numbers in NumPy's types, and text with gaps as categories; None for anything else."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        categories = _as_savable(column.cat.categories.to_series())
        return None if categories is None else column.cat.rename_categories(categories.to_numpy())
    if column.dtype.kind in "biuf":
        if isinstance(column.dtype, np.dtype):
            return column
        return column.astype(float if column.isna().any() else column.dtype.numpy_dtype)
    if pd.api.types.infer_dtype(column, skipna=True) not in ("string", "empty"):
        return None
    text = column.astype(object)
    return text.astype("category") if text.isna().any() else text.infer_objects()


def _column(values: pd.Series | pd.Index) -> Any:
    """Return a column as a tensor, a list, or (for categories) a dict."""
    if isinstance(dtype := values.dtype, pd.CategoricalDtype):
        codes = pd.Categorical(values).codes
        return {"codes": to_plain(codes), "categories": _column(dtype.categories), "ordered": bool(dtype.ordered)}
    return to_plain(values.to_numpy())


def _read_column(plain: Any) -> Any:
    if not isinstance(plain, Mapping):
        return to_array(plain)
    categories = pd.Index(_read_column(plain["categories"]))
    return pd.Categorical.from_codes(to_array(plain["codes"]), categories, ordered=plain["ordered"])


def digest_of(*parts: object) -> str:
    """Return a digest of dataclasses, plain values and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()
