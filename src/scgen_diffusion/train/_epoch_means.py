"""Means of an epoch's losses: kept on the device, over the cells of all processes, and through interruptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from ._distributed import is_distributed

if TYPE_CHECKING:
    from collections.abc import Mapping


class EpochMeans:
    """Sums of losses, weighted by numbers of cells.

    Nothing is waited for while they grow: no value leaves the device before :meth:`compute`.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.train import EpochMeans
    >>> means = EpochMeans()
    >>> means.add({"loss": torch.tensor(1.0)}, 30)
    >>> means.add({"loss": torch.tensor(5.0)}, 10)
    >>> {name: float(mean) for name, mean in means.compute().items()}
    {'loss': 2.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._n_cells = 0

    def add(self, losses: Mapping[str, Tensor], n_cells: int) -> None:
        """Add a batch's means over ``n_cells`` cells."""
        for name, value in losses.items():
            weighted = value.detach().float() * n_cells
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        self._n_cells += n_cells

    def compute(self) -> dict[str, Tensor]:
        """Return the means over the cells of all processes, and start anew; nothing if there were none."""
        sums, n_cells = self._sums, self._n_cells
        self._sums, self._n_cells = {}, 0
        if not sums:
            return {}
        table = torch.stack([*sums.values(), torch.full_like(next(iter(sums.values())), n_cells)]).double()
        if is_distributed():
            distributed.all_reduce(table)
        return dict(zip(sums, (table[:-1] / table[-1]).float().unbind(), strict=True))

    def state_dict(self) -> dict[str, dict[str, Tensor] | int]:
        """Return the sums over the cells of all processes, for a checkpoint in the middle of an epoch."""
        return {"sums": dict(self._sums), "n_cells": self._n_cells}

    def load_state_dict(self, state_dict: Mapping[str, dict[str, Tensor] | int]) -> None:
        """Go on from a checkpoint's sums."""
        self._sums, self._n_cells = dict(state_dict["sums"]), state_dict["n_cells"]
