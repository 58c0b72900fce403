"""The conditions of cells as a field of scvi-tools' registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import rich.pretty  # with which scvi-tools prints registries; it does not import it, and rich 15 no longer does so by itself
import rich.table
from scvi.data.fields import BaseAnnDataField

from ._checks import check_conditions
from ._condition_extension import extend_key
from ._condition_keys import ConditionKey, columns_of, key_from_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    from ._condition_setup import ConditionSetup

WHERE = "_scgen_conditions"
CELLS_AT_A_TIME = 65_536


class ConditionField(BaseAnnDataField):
    """Writes the conditions of cells as numbers, ``(cells, columns)``, to ``obsm``, from where batches are made.

    Parameters
    ----------
    registry_key
        Name in the registry and in batches.
    setup
        Which columns of ``obs`` are conditions.
    """

    def __init__(self, registry_key: str, setup: ConditionSetup) -> None:
        super().__init__()
        self._registry_key = registry_key
        self.setup = setup
        self._learned: list[ConditionKey] | None = None

    @property
    def registry_key(self) -> str:
        """Name in the registry and in batches."""
        return self._registry_key

    @property
    def attr_name(self) -> str:
        """Where the numbers are kept."""
        return "obsm"

    @property
    def attr_key(self) -> str:
        """Name of the numbers there."""
        return WHERE

    @property
    def is_empty(self) -> bool:
        """Whether there are no keys."""
        return not (self.setup.categorical or self.setup.continuous or self.setup.sets)

    def validate_field(self, adata: AnnData | MuData) -> None:
        """Raise unless every cell has a value of every key."""
        check_conditions(adata.obs, [*self.setup.categorical, *self.setup.continuous, *self.setup.sets])

    def register_field(self, adata: AnnData | MuData) -> dict[str, Any]:
        """Learn the keys from cells, and write their conditions; scvi-tools does this again if the cells were set up for another model since."""
        super().register_field(adata)
        if self._learned is None:
            self._learned = self.setup.keys_of(adata.obs)
        return self._write(adata, self._learned)

    def transfer_field(
        self,
        state_registry: dict[str, Any],
        adata_target: AnnData | MuData,
        *,
        extend_categories: bool = False,
        **_: Any,
    ) -> dict[str, Any]:
        """Write the conditions of other cells with keys that are known already, or learn their new values too."""
        self.validate_field(adata_target)
        by_key = keys_of_state(state_registry)
        if extend_categories:
            obs, vectors = adata_target.obs, self.setup.vectors
            by_key = [extend_key(key, obs[key.name], vectors.get(key.name)) for key in by_key]
        return self._write(adata_target, by_key)

    def get_summary_stats(self, state_registry: dict[str, Any]) -> dict[str, int]:
        """Return the number of keys."""
        return {"n_conditions": len(state_registry.get("keys", {}))}

    def view_state_registry(self, state_registry: dict[str, Any]) -> rich.table.Table | None:
        """List the keys."""
        table = rich.table.Table("key", "kind", title="Conditions")
        for state in state_registry.get("keys", {}).values():
            table.add_row(state["name"], state["kind"])
        return table

    def _write(self, adata: AnnData | MuData, by_key: Sequence[ConditionKey]) -> dict[str, Any]:
        adata.obsm[WHERE] = encode_obs(adata.obs, by_key)
        return state_of_keys(by_key)


def encode_obs(obs: pd.DataFrame, by_key: Sequence[ConditionKey]) -> np.ndarray:
    """Return the columns of all keys side by side, ``(cells, columns)``; they are made part by part, since values become objects."""
    codes = np.zeros((len(obs), sum(key.n_columns for key in by_key)))
    for key, columns in zip(by_key, columns_of(by_key), strict=True):
        for start in range(0, len(obs), CELLS_AT_A_TIME):
            part = obs[key.name].iloc[start : start + CELLS_AT_A_TIME]
            codes[start : start + CELLS_AT_A_TIME, columns] = key.encode(part.to_numpy(), source="adata.obs")
    return codes


def state_of_keys(by_key: Sequence[ConditionKey]) -> dict[str, Any]:
    """Return what the registry keeps of keys. They are numbered: scvi-tools shows no mappings in lists, and no names with dots."""
    return {"keys": {str(number): key.state() for number, key in enumerate(by_key)}}


def keys_of_state(state_registry: dict[str, Any]) -> list[ConditionKey]:
    """Build the keys from what the registry keeps."""
    return [key_from_state(state) for state in state_registry.get("keys", {}).values()]
