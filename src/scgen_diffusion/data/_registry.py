"""What scvi-tools registered of a model's cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from scvi import REGISTRY_KEYS

from ._condition_setup import CONDITIONS, keys_of_state

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._condition_keys import ConditionKey


def expression_state(registry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was registered of the values that the model reads."""
    return registry["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]


def registered_genes(registry: Mapping[str, Any]) -> pd.Index:
    """Return the names of the genes, or of the features of all modalities."""
    return pd.Index([str(name) for name in expression_state(registry)["column_names"]])


def registered_keys(registry: Mapping[str, Any]) -> list[ConditionKey]:
    """Return the condition keys."""
    return keys_of_state(registry["field_registries"][CONDITIONS]["state_registry"])
