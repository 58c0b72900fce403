"""Means of an epoch's losses: kept on the device, over the cells of all processes, and through interruptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from ._distributed import collective_device, is_distributed, process_rank

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
        """Give the first process the sums of all, and the others zeros, so that one checkpoint holds everything."""
        sums, n_cells = self._totals()
        self._sums, self._n_cells = _of_first_process(sums, round(float(n_cells)))

    @property
    def is_finite(self) -> bool:
        """Whether all sums are numbers; waits for the device."""
        return all(bool(torch.isfinite(value)) for value in self._sums.values())

    def _totals(self) -> tuple[dict[str, Tensor], Tensor | int]:
        if not is_distributed() or not self._sums:
            return self._sums, self._n_cells
        table = torch.stack([*self._sums.values(), torch.full_like(next(iter(self._sums.values())), self._n_cells)])
        table = table.to(collective_device())
        distributed.all_reduce(table)
        return dict(zip(self._sums, table[:-1].unbind(), strict=True)), table[-1]

    def state_dict(self) -> dict[str, Any]:
        """Return the sums for a checkpoint."""
        return {"sums": dict(self._sums), "n_cells": self._n_cells}

    def load_state_dict(self, state_dict: Mapping[str, Any], device: torch.device | None = None) -> None:
        """Go on from a checkpoint's sums; the first process has them, and the others the same names, since all of them add together."""
        sums = {name: value.to(device) for name, value in state_dict["sums"].items()}
        self._sums, self._n_cells = _of_first_process(sums, state_dict["n_cells"])


def _of_first_process(sums: Mapping[str, Tensor], n_cells: int) -> tuple[dict[str, Tensor], int]:
    """Return the sums in the first process, and zeros in the others."""
    if process_rank() == 0:
        return dict(sums), n_cells
    return {name: torch.zeros_like(value) for name, value in sums.items()}, 0
