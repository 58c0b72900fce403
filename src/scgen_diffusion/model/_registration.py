"""Registering cells: checks of what is registered, and what the networks need to know about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS

from scgen_diffusion.data import (
    CellFiles,
    ConditionKey,
    SetKey,
    savable_columns,
)
from scgen_diffusion.module import CONDITIONS
from scgen_diffusion.nn import Classes, ConditionSpec, Members, Number


def check_in_memory(adata: object, kind: Any = AnnData | MuData) -> None:
    """Raise unless cells are in memory, and of a kind: AnnData, MuData or either."""
    if not isinstance(adata, kind):
        advice = ": read some with `cells.read(indices)`, or train on them as `datamodule`"
        found = type(adata).__name__ + (advice if isinstance(adata, CellFiles) else "")
        msg = f"`adata` must be cells in memory (AnnData; MuData for MULTISCLDM), but found {found}."
        raise TypeError(msg)


def check_readable(adata: Any) -> None:
    """Raise unless cells are an AnnData from which batches can be read."""
    check_in_memory(adata, AnnData)
    if adata.is_view and adata.isbacked:
        msg = "`adata` is a view of a file, from which batches cannot be read. Use `adata.to_memory()`."
        raise ValueError(msg)


def check_registry(registry: object, model_class: type) -> None:
    """Raise unless a model of a class can be built from the registry."""
    given = registry if isinstance(registry, Mapping) else {}
    if not {REGISTRY_KEYS.X_KEY, CONDITIONS} <= set(given.get("field_registries", {})):
        msg = "`registry` must be that of a model of this package, or of `CellFiles(...)`."
        raise ValueError(msg)
    if (given.get("setup_method_name") == "setup_mudata") != hasattr(model_class, "setup_mudata"):
        msg = (
            f"`registry` is of cells that {model_class.__name__} cannot read: only MULTISCLDM reads several modalities."
        )
        raise ValueError(msg)


def spec_of(key: ConditionKey, table: pd.DataFrame | None) -> ConditionSpec:
    vectors = None if table is None else torch.from_numpy(table.to_numpy(dtype=np.float32))
    if key.is_numeric:
        return Number(key.n_columns)
    if isinstance(key, SetKey):
        return Members(key.n_values, key.largest, vectors)
    return Classes(key.n_values, vectors)


def plain_columns(var: pd.DataFrame, known: pd.DataFrame | None = None) -> pd.DataFrame:
    """Keep what can be saved (text, numbers, booleans and categories), and the known columns that ``var`` lacks."""
    plain = savable_columns(var)
    plain.index = plain.index.astype(str)
    return plain if known is None else pd.DataFrame({**known, **plain}, index=plain.index)
