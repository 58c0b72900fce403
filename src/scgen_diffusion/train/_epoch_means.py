"""Means of an epoch's losses: kept on the device, over the cells of all processes, and through interruptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from ._distributed import is_distributed, process_rank

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
            weighted = value.detach().double() * n_cells
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        self._n_cells += n_cells

    def compute(self) -> dict[str, Tensor]:
        """Return the means over the cells of all processes, and start anew; nothing if there were none."""
        sums, n_cells = self._totals()
        self._sums, self._n_cells = {}, 0
        return {name: (value / n_cells).float() for name, value in sums.items()}

    def pool(self) -> None:
        """Give the first process the sums of all, and the others nothing, so that one checkpoint holds everything."""
        sums, n_cells = self._totals()
        is_first = process_rank() == 0
        self._sums, self._n_cells = (sums, round(float(n_cells))) if is_first else ({}, 0)

    def _totals(self) -> tuple[dict[str, Tensor], Tensor | int]:
        if not is_distributed() or not self._sums:
            return self._sums, self._n_cells
        table = torch.stack([*self._sums.values(), torch.full_like(next(iter(self._sums.values())), self._n_cells)])
        distributed.all_reduce(table)
        return dict(zip(self._sums, table[:-1].unbind(), strict=True)), table[-1]

    def state_dict(self) -> dict[str, Any]:
        """Return the sums for a checkpoint."""
        return {"sums": dict(self._sums), "n_cells": self._n_cells}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's sums; the first process has them."""
        if process_rank() == 0:
            self._sums, self._n_cells = dict(state_dict["sums"]), state_dict["n_cells"]
