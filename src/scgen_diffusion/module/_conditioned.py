"""What modules of conditional models have in common: the columns of conditions, and how training drops them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from scvi.module.base import BaseModuleClass

from scgen_diffusion.diffusion import ConditionColumns, condition_strategy
from scgen_diffusion.nn import keys_of_columns, null_condition

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn
    from torch.optim.swa_utils import AveragedModel

    from scgen_diffusion.diffusion import ConditionStrategy
    from scgen_diffusion.nn import ConditionSpec

CONDITIONS = "conditions"
"""Name of the cells' conditions in the registry and in batches."""


class ConditionedModule(BaseModuleClass):
    """A module that generates under conditions, tensors ``(cells, columns)``."""

    architecture: Any
    null_condition: Tensor
    key_of_column: Tensor
    n_keys: int

    def _register_conditions(self, conditions: Sequence[ConditionSpec], key_groups: Sequence[Sequence[int]]) -> None:
        self.n_keys = len(conditions)
        self.key_groups = tuple(tuple(group) for group in key_groups)
        self.register_buffer("null_condition", null_condition(conditions))
        self.register_buffer("key_of_column", keys_of_columns(conditions), persistent=False)

    @property
    @abstractmethod
    def network_and_average(self) -> tuple[nn.Module, AveragedModel]:
        """The network that learns how conditions and cells go together, and the average of its weights."""

    @property
    def condition_columns(self) -> ConditionColumns:
        """What the columns of a condition mean."""
        return ConditionColumns(self.null_condition, self.key_of_column, self.n_keys)

    @property
    def strategy(self) -> ConditionStrategy:
        """How conditions are dropped in training and composed in guidance."""
        return condition_strategy(self.architecture.condition_strategy, self.key_groups)

    def condition_of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the conditions of a batch, ``(cells, columns)``."""
        null = self.null_condition
        if CONDITIONS not in tensors:
            n_cells = len(next(iter(tensors.values())))
            return null.new_zeros(n_cells, 0)
        return tensors[CONDITIONS].to(null.dtype)
