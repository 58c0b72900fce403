"""Moving averages of weights."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING:
    from collections.abc import Sequence


def averaged_copy(network: nn.Module, decay: float) -> AveragedModel:
    r"""Keep an exponential moving average of a network's weights, with a decay that warms up.

    After ``n`` updates the decay is :math:`\min(d, (1 + n) / (10 + n))`, so that short runs average too. The copy is part
    of the module that holds it, and so of what is saved.
    """
    averaged = AveragedModel(network, multi_avg_fn=partial(_average_with_warm_up, decay))
    return averaged.requires_grad_(requires_grad=False)


@torch.no_grad()
def _average_with_warm_up(
    decay: float, averaged: Sequence[Tensor], current: Sequence[Tensor], n_averaged: Tensor | int
) -> None:
    n = float(n_averaged)
    torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, (1 + n) / (10 + n)))
