"""scvi-tools' registry of cells that are in no AnnData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import anndata
import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField

from ._condition_setup import WHERE, ConditionField, keys_of_state, state_of_keys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._condition_keys import ConditionKey
    from ._condition_setup import ConditionSetup

CONDITIONS = "conditions"
"""Name of the cells' conditions in the registry and in batches, as the modules know it."""


class _KnownConditions(ConditionField):
    """Conditions whose keys are known."""

    def __init__(self, setup: ConditionSetup, by_key: Sequence[ConditionKey]) -> None:
        super().__init__(CONDITIONS, setup)
        self.by_key = by_key

    def validate_field(self, adata: anndata.AnnData) -> None:
        """All is checked already."""

    def register_field(self, adata: anndata.AnnData) -> dict[str, Any]:
        """Keep the keys."""
        adata.obsm[WHERE] = np.zeros((1, sum(key.n_columns for key in self.by_key)))
        return state_of_keys(self.by_key)


def file_registry(
    genes: pd.Index,
    n_cells: int,
    setup: ConditionSetup,
    by_key: Sequence[ConditionKey],
    *,
    layer: str | None,
    values: Literal["counts", "log1p"],
) -> dict[str, Any]:
    """Return the registry that ``setup_anndata`` would make of the same cells in memory, but for the name of a model.

    It is made by scvi-tools, of one cell in place of all.
    """
    one = np.ones((1, len(genes)), dtype=np.float32)
    adata = anndata.AnnData(one, var=pd.DataFrame(index=genes), layers={} if layer is None else {layer: one})
    arguments = {"layer": layer, **setup.arguments, "values": values}
    manager = AnnDataManager(
        fields=[LayerField(REGISTRY_KEYS.X_KEY, layer), _KnownConditions(setup, by_key)],
        setup_method_args={"setup_method_name": "setup_anndata", "setup_args": arguments},
    )
    manager.register_fields(adata)
    registry = dict(manager.registry)
    expression = registry["field_registries"][REGISTRY_KEYS.X_KEY]
    expression["state_registry"]["n_obs"] = expression["summary_stats"]["n_cells"] = n_cells
    return registry


def check_same_registry(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ValueError unless cells were registered as those of a model: with the same genes, conditions and kind of values."""
    for what, part in {"genes": _genes, "conditions": _keys, "values": _values}.items():
        if part(found) != part(expected):
            msg = (
                f"The cells were not set up as those of the model: their {what} differ. Build the model with `registry=cells.registry`, or open "
                "the files as it knows them: `CellFiles.like(model.registry, paths)`."
            )
            raise ValueError(msg)


def _genes(registry: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in registry["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]["column_names"]]


def _keys(registry: Mapping[str, Any]) -> list[ConditionKey]:
    return keys_of_state(registry["field_registries"][CONDITIONS]["state_registry"])


def _values(registry: Mapping[str, Any]) -> str | None:
    return registry["setup_args"].get("values")
