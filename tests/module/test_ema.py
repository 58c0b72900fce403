"""The moving average of weights warms up by a known formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scgen_diffusion.module._ema import AverageUpdate, averaged_copy


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.999])
def test_the_average_follows_the_formula(decay):
    network = nn.Linear(1, 1, bias=False)
    averaged = averaged_copy(network, decay)
    expected = None
    for n, value in enumerate([4.0, -2.0, 7.0, 1.0, 0.5]):
        with torch.no_grad():
            network.weight.fill_(value)
        averaged.update_parameters(network)
        share = min(decay, (1 + n) / (10 + n))
        expected = value if n == 0 else share * expected + (1 - share) * value  # the first update copies

        assert averaged.module.weight.item() == pytest.approx(expected, rel=1e-6)  # single precision


def test_the_average_has_no_gradients_and_is_part_of_the_state():
    holder = nn.Module()
    holder.average = averaged_copy(nn.Linear(2, 2), 0.9)

    assert not any(p.requires_grad for p in holder.parameters())
    assert {"average.n_averaged", "average.module.weight"} <= set(holder.state_dict())


@pytest.mark.parametrize("decay", [0.0, 0.999])
@pytest.mark.parametrize("continued", [False, True])
def test_counting_updates_on_the_host_changes_nothing(decay, continued):
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    one, other = averaged_copy(network, decay), averaged_copy(network, decay)
    if continued:  # from a saved state
        one.update_parameters(network)
        other.load_state_dict(one.state_dict())
    update = AverageUpdate(other, network)

    for _ in range(4):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_()
        one.update_parameters(network)
        update()

    torch.testing.assert_close(other.state_dict(), one.state_dict(), rtol=0, atol=0)
