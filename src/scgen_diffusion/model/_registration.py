"""Registering cells: checks of what is registered, and what the networks need to know about it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS

from scgen_diffusion._arguments import check_argument_names
from scgen_diffusion.data import (
    CellFiles,
    ConditionKey,
    SetKey,
    savable_columns,
)
from scgen_diffusion.module import CONDITIONS
from scgen_diffusion.nn import Classes, ConditionSpec, Members, Number

if TYPE_CHECKING:
    from collections.abc import Callable


NOT_ASKED = {"adata", "mdata", "kwargs", "source_registry", "extend_categories"}  # the last two are scvi-tools' own
OF_SCVI_TOOLS = (
    *("batch_key", "labels_key", "categorical_covariate_keys"),
    *("continuous_covariate_keys", "size_factor_key"),
)


def check_setup_arguments(method: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise TypeError for arguments that a setup method does not have."""
    if others := [name for name in given if name in OF_SCVI_TOOLS]:
        msg = (
            f"`{method.__name__}` has no argument {others[0]!r}: give columns of classes as `condition_keys` and of "
            "numbers as `continuous_condition_keys`. Total counts are learned."
        )
        raise TypeError(msg)
    known = [name for name in inspect.signature(method).parameters if name not in NOT_ASKED]
    check_argument_names(method.__name__, [name for name in given if name not in NOT_ASKED], known)


def check_is_no_view(cells: AnnData | MuData, name: str) -> None:
    """Raise if cells are a view of others; ``name`` is the user's name for them."""
    if cells.is_view:
        msg = f"`{name}` is a view, which cannot be registered. Give a copy: `{name} = {name}.copy()`."
        raise ValueError(msg)


def check_is_in_memory(adata: object) -> None:
    """Raise for cells in files."""
    if isinstance(adata, CellFiles):
        msg = (
            f"`adata` must be cells in memory, but found {type(adata).__name__}: read some with `cells.read(indices)`. "
            "To train on files, give them as `datamodule`."
        )
        raise TypeError(msg)


def check_is_set_up(adata: object) -> None:
    """Raise for objects that cannot be set up; scvi-tools checks whether the others were."""
    check_is_in_memory(adata)
    if not isinstance(adata, AnnData | MuData):
        msg = f"`adata` must be an AnnData or MuData that was set up, but found {type(adata).__name__}."
        raise TypeError(msg)


def check_readable(adata: object) -> None:
    """Raise unless cells are an AnnData from which batches can be read."""
    check_is_in_memory(adata)
    if not isinstance(adata, AnnData):
        msg = f"Cells must be an AnnData, such as mdata['rna'], but found {type(adata).__name__}."
        raise TypeError(msg)
    if adata.is_view and adata.isbacked:
        msg = "`adata` is a view of a file, from which batches cannot be read. Use `adata.to_memory()`."
        raise ValueError(msg)


def check_registry(registry: object, model_class: type) -> None:
    """Raise unless a model of a class can be built from the registry."""
    given = registry if isinstance(registry, Mapping) else {}
    fields = given.get("field_registries", {})
    if not {REGISTRY_KEYS.X_KEY, CONDITIONS} <= set(fields) or "setup_args" not in given:
        owner = f"that of {given['model_name']!r}" if "model_name" in given else type(registry).__name__
        msg = f"`registry` must be that of a model of this package, or of `CellFiles(...)`, but found {owner}."
        raise ValueError(msg)
    method = given.get("setup_method_name", "setup_anndata")
    reads_several = hasattr(model_class, "setup_mudata")
    if (method == "setup_mudata") != reads_several:
        number = "several modalities" if reads_several else "one modality"
        msg = f"`registry` was made by `{method}`, but {model_class.__name__} reads cells with {number}."
        raise ValueError(msg)


def check_datamodule(datamodule: object) -> None:
    """Raise unless cells for ``train`` work like ``CellFiles``."""
    members = ("check", "codes", "digest", "loader", "n_cells", "names", "registry", "var")
    if not all(hasattr(datamodule, name) for name in members):
        msg = f"`datamodule` must be scgen_diffusion.data.CellFiles, but found {type(datamodule).__name__}."
        raise TypeError(msg)


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
