"""Moving averages of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

if TYPE_CHECKING:
    from torch import nn


def averaged_copy(network: nn.Module) -> AveragedModel:
    """Return a copy for the averaged weights; it belongs to the module, so it is saved with it."""
    return AveragedModel(network).requires_grad_(requires_grad=False)


class AverageUpdate:
    r"""Updates the exponential moving average of a network's weights after every step.

    After ``n`` updates the decay is :math:`\min(d, (1 + n) / (10 + n))`, so that short runs average too. It is counted
    here: ``AveragedModel.update_parameters`` asks the device each time, which makes a GPU finish its work first.
    Buffers are copied once, since training does not change them.

    Parameters
    ----------
    averaged
        The averaged copy.
    network
        The network.
    decay
        Largest decay :math:`d`.
    """

    @torch.no_grad()
    def __init__(self, averaged: AveragedModel, network: nn.Module, decay: float) -> None:
        self.averaged, self.decay = averaged, decay
        self.n_updates = int(averaged.n_averaged)  # read once
        self._pairs = [x.detach() for x in averaged.module.parameters()], [x.detach() for x in network.parameters()]
        for copy, buffer in zip(averaged.module.buffers(), network.buffers(), strict=True):
            copy.copy_(buffer)

    @torch.no_grad()
    def __call__(self) -> None:
        """Average the network's weights in; the first update copies them."""
        n = self.n_updates
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        get_ema_multi_avg_fn(decay)(*self._pairs, n)
        self.averaged.n_averaged.add_(1)
        self.n_updates += 1
