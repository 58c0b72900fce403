"""Training some parameters of a module, or some rows of them, while all others stay bit for bit as they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class TrainedRows:
    """What is trained of a module.

    Parameters
    ----------
    masks
        Parameters, each with a mask ``(rows, 1)`` of what is trained of it; None for all.
    """

    masks: Mapping[nn.Parameter, Tensor | None]

    def of(self, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Restrict an optimiser's groups of parameters to what is trained.

        Adam leaves rows alone whose gradients were always zero, but weight decay does not: tables of which only some rows are
        trained go without.
        """
        restricted = []
        for group in groups:
            trained = [parameter for parameter in group["params"] if parameter in self.masks]
            whole = [parameter for parameter in trained if self.masks[parameter] is None]
            partly = [parameter for parameter in trained if self.masks[parameter] is not None]
            restricted += [{**group, "params": whole}, {**group, "params": partly, "weight_decay": 0.0}]
        return [group for group in restricted if group["params"]]

    def mask_gradients(self) -> list[RemovableHandle]:
        """Make the gradients of all other rows zero, until the handles are removed; frozen parameters have none."""
        partly = {parameter: mask for parameter, mask in self.masks.items() if mask is not None}
        return [
            parameter.register_hook(partial(_masked, mask))
            for parameter, mask in partly.items()
            if parameter.requires_grad
        ]


def _masked(mask: Tensor, gradient: Tensor) -> Tensor:
    return torch.where(mask.to(gradient.device), gradient, 0)
