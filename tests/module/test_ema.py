"""The moving average of weights warms up by a known formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scgen_diffusion.module._ema import AverageUpdate, averaged_copy


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.999])
def test_the_average_follows_the_formula(decay):
    network = nn.Linear(1, 1, bias=False)
    averaged = averaged_copy(network)
    update = AverageUpdate(averaged, network, decay)
    expected = None
    for n, value in enumerate([4.0, -2.0, 7.0, 1.0, 0.5]):
        with torch.no_grad():
            network.weight.fill_(value)
        update()
        share = min(decay, (1 + n) / (10 + n))
        expected = value if n == 0 else share * expected + (1 - share) * value  # the first update copies

        assert averaged.module.weight.item() == pytest.approx(expected, rel=1e-6)  # single precision
