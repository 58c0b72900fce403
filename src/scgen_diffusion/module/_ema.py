"""Moving averages of weights."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

if TYPE_CHECKING:
    from collections.abc import Sequence


def averaged_copy(network: nn.Module, decay: float) -> AveragedModel:
    r"""Keep an exponential moving average of a network's weights, with a decay that warms up.

    After ``n`` updates the decay is :math:`\min(d, (1 + n) / (10 + n))`, so that short runs average too. The copy
    belongs to the module, so it is saved with it.
    """
    averaged = AveragedModel(network, multi_avg_fn=partial(_average_with_warm_up, decay))
    return averaged.requires_grad_(requires_grad=False)


class AverageUpdate:
    """Updates an averaged copy after every step, like ``averaged.update_parameters(network)`` without its GPU stalls.

    The original reads the number of updates from the device each time, which makes a GPU finish its work first. This
    class counts itself. It copies buffers once, since training does not change them.

    Parameters
    ----------
    averaged
        The averaged copy.
    network
        The network.
    """

    @torch.no_grad()
    def __init__(self, averaged: AveragedModel, network: nn.Module) -> None:
        self.averaged = averaged
        self.n_updates = int(averaged.n_averaged)  # read once
        self._pairs = [x.detach() for x in averaged.module.parameters()], [x.detach() for x in network.parameters()]
        for copy, buffer in zip(averaged.module.buffers(), network.buffers(), strict=True):
            copy.copy_(buffer)

    @torch.no_grad()
    def __call__(self) -> None:
        """Average the network's weights in; the first update copies them."""
        if self.n_updates == 0:
            for copy, current in zip(*self._pairs, strict=True):
                copy.copy_(current)
        else:
            self.averaged.multi_avg_fn(*self._pairs, self.n_updates)
        self.averaged.n_averaged.add_(1)
        self.n_updates += 1


def _average_with_warm_up(
    decay: float, averaged: Sequence[Tensor], current: Sequence[Tensor], n_averaged: Tensor | int
) -> None:
    n = float(n_averaged)
    get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, n)
