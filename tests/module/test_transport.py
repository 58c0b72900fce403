"""The flow from control cells: what it learns, and what of a condition it knows."""

import pytest
import torch

from scgen_diffusion.diffusion import FLOW_SAMPLERS
from scgen_diffusion.module._transport import LatentTransport
from scgen_diffusion.nn import Number

SHIFTS = torch.tensor([[0.0, 0.0], [2.0, -1.0], [-1.0, 3.0]])  # of each class of the key that perturbs
CONTROL = torch.tensor([float("-inf"), 0.0])


def make_transport(conditions=(4, 3), control=CONTROL):
    """Key 0 says what a cell is, key 1 what was done to it."""
    torch.manual_seed(0)
    transport = LatentTransport((1, 2), conditions, width=32)
    transport.start_from(control)
    return transport


@pytest.fixture(scope="module")
def trained_transport():
    """Learn from pairs that a class shifts."""
    transport, generator = make_transport(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(transport.parameters(), lr=1e-2)
    for _ in range(200):
        start = torch.randn(64, 1, 2, generator=generator)
        condition = torch.stack([torch.randint(n, (64,), generator=generator) for n in (4, 3)], dim=1)
        end = start + SHIFTS[condition[:, 1]][:, None]
        optimizer.zero_grad()
        transport.loss(start, end, condition, generator).mean().backward()
        optimizer.step()
    return transport


def move(transport, condition):
    start = torch.zeros(1, 1, 2)
    with torch.no_grad():
        moved = transport.move(start, torch.tensor([condition]), sampler=FLOW_SAMPLERS["midpoint"])
    return moved[0, 0]


@pytest.mark.parametrize("perturbation", [1, 2])
def test_it_learns_what_each_perturbation_does(trained_transport, perturbation):
    torch.testing.assert_close(move(trained_transport, [0, perturbation]), SHIFTS[perturbation], atol=0.2, rtol=0)


def test_what_does_not_perturb_is_not_seen(trained_transport):
    torch.testing.assert_close(move(trained_transport, [0, 1]), move(trained_transport, [3, 1]), atol=0, rtol=0)
    transport, (start, end) = make_transport(), torch.randn(2, 5, 1, 2)
    assert not move(transport, [0, 2]).any()  # it starts as the identity
    for network in transport.networks:
        torch.nn.init.normal_(network.last.weight)

    first, other = (
        transport.loss(start, end, torch.tensor([[kind, 1]] * 5), torch.Generator().manual_seed(0)) for kind in (0, 3)
    )

    assert torch.equal(first, other)


def fit_shift(transport, shifts, centres):
    """Let the expected shift of the first perturbation be learned from groups of cells."""
    n = len(centres)
    perturbed = torch.tensor([[0.0, 1.0]]).expand(n, -1)
    given = centres, shifts, torch.full((n,), 1e-6), torch.eye(2), perturbed
    transport.add_shift(n).fit([centre[None] for centre in centres], *given)


@pytest.mark.parametrize(
    ("deviation", "share"),
    [
        (0.0, 1.0),
        (0.1 * (3 / 4) ** 0.5, 0.5),  # the variance between four flows, of which two deviate so either way, is 0.01
        (10.0, 0.0),
    ],
)
def test_flows_count_as_far_as_they_agree(deviation, share):
    transport = make_transport()
    flow, expected = torch.tensor([0.6, 0.8]), torch.tensor([-3.0, 5.0])
    with torch.no_grad():
        for network, sign in zip(transport.networks, (1, 1, -1, -1), strict=True):
            network.last.bias.copy_(flow + sign * deviation * torch.tensor([0.0, 1.0]))
    fit_shift(transport, expected.expand(1, 2), torch.zeros(1, 2))

    moved = move(transport, [0, 1])

    torch.testing.assert_close(moved, share * flow + (1 - share) * expected, atol=2e-3, rtol=0)


def test_cells_that_are_perturbed_already_or_change_in_other_keys_are_unfit():
    own, new = (
        torch.tensor([[1, 0], [1, 0], [1, 1], [1, 0], [1, 1]]),
        torch.tensor([[1, 2], [1, 0], [1, 2], [2, 2], [2, 1]]),
    )

    perturbed, would_change = make_transport().unfit(own, new)

    assert perturbed.tolist() == [False, False, True, False, True]
    assert would_change.tolist() == [False, False, False, True, True]

    transport = make_transport((4, Number()), torch.tensor([float("-inf"), -0.5]))
    perturbed, would_change = transport.unfit(torch.tensor([[1.0, -0.5], [1.0, 0.5]]), torch.tensor([[1.0, 2.0]] * 2))

    assert perturbed.tolist() == [False, True]
    assert not would_change.any()
