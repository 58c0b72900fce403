"""The flow from control cells: what it learns, and what of a condition it knows."""

import pytest
import torch

from scgen_diffusion.diffusion import FLOW_SAMPLERS
from scgen_diffusion.nn import Classes, Number
from scgen_diffusion.perturbation import PerturbationFlow

SHIFTS = torch.tensor([[0.0, 0.0], [2.0, -1.0], [-1.0, 3.0]])  # of each class of the key that perturbs
CONTROL = torch.tensor([float("-inf"), 0.0])


def make_perturbation_flow(conditions=(Classes(4), Classes(3)), control=CONTROL):
    """Key 0 says what a cell is, key 1 what was done to it."""
    torch.manual_seed(0)
    flow = PerturbationFlow((1, 2), conditions, width=32)
    flow.start_from(control)
    return flow


@pytest.fixture(scope="module")
def trained_perturbation_flow():
    """Learn from pairs that a class shifts."""
    flow, generator = make_perturbation_flow(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(200):
        start = torch.randn(64, 1, 2, generator=generator)
        condition = torch.stack([torch.randint(n, (64,), generator=generator) for n in (4, 3)], dim=1)
        end = start + SHIFTS[condition[:, 1]][:, None]
        optimizer.zero_grad()
        flow.loss(start, end, condition, generator).mean().backward()
        optimizer.step()
    return flow


def move(flow, condition):
    start = torch.zeros(1, 1, 2)
    with torch.no_grad():
        moved = flow.move(start, torch.tensor([condition]), sampler=FLOW_SAMPLERS["midpoint"])
    return moved[0, 0]


@pytest.mark.parametrize("perturbation", [1, 2])
def test_it_learns_what_each_perturbation_does(trained_perturbation_flow, perturbation):
    torch.testing.assert_close(
        move(trained_perturbation_flow, [0, perturbation]), SHIFTS[perturbation], atol=0.2, rtol=0
    )


def test_what_does_not_perturb_is_not_seen(trained_perturbation_flow):
    torch.testing.assert_close(
        move(trained_perturbation_flow, [0, 1]), move(trained_perturbation_flow, [3, 1]), atol=0, rtol=0
    )
    flow, (start, end) = make_perturbation_flow(), torch.randn(2, 5, 1, 2)
    assert not move(flow, [0, 2]).any()  # it starts as the identity
    for network in flow.networks:
        torch.nn.init.normal_(network.last.weight)

    first, other = (
        flow.loss(start, end, torch.tensor([[kind, 1]] * 5), torch.Generator().manual_seed(0)) for kind in (0, 3)
    )

    assert torch.equal(first, other)


def fit_shift(flow, shifts, centres):
    """Let the expected shift of the first perturbation be learned from groups of cells."""
    n = len(centres)
    perturbed = torch.tensor([[0.0, 1.0]]).expand(n, -1)
    given = centres, shifts, torch.full((n,), 1e-6), torch.eye(2), perturbed, torch.zeros(n), torch.arange(n)
    flow.add_shift(n).fit(*given)


@pytest.mark.parametrize(
    ("deviation", "share"),
    [
        (0.0, 1.0),
        (0.1 * (3 / 4) ** 0.5, 0.5),  # the variance between four flows, of which two deviate so either way, is 0.01
        (10.0, 0.0),
    ],
)
def test_flows_count_as_far_as_they_agree(deviation, share):
    flow = make_perturbation_flow()
    shift, expected = torch.tensor([0.6, 0.8]), torch.tensor([-3.0, 5.0])
    with torch.no_grad():
        for network, sign in zip(flow.networks, (1, 1, -1, -1), strict=True):
            network.last.bias.copy_(shift + sign * deviation * torch.tensor([0.0, 1.0]))
    fit_shift(flow, expected.expand(1, 2), torch.zeros(1, 2))

    moved = move(flow, [0, 1])

    torch.testing.assert_close(moved, share * shift + (1 - share) * expected, atol=2e-3, rtol=0)


def test_cells_that_are_perturbed_already_or_change_in_other_keys_are_unfit():
    own = torch.tensor([[1, 0], [1, 0], [1, 1], [1, 0], [1, 1]])
    new = torch.tensor([[1, 2], [1, 0], [1, 2], [2, 2], [2, 1]])

    assert make_perturbation_flow().unfit(own, new).tolist() == [False, False, True, True, True]
    flow = make_perturbation_flow((Classes(4), Number()), torch.tensor([float("-inf"), -0.5]))
    unfit = flow.unfit(torch.tensor([[1.0, -0.5], [1.0, 0.5]]), torch.tensor([[1.0, 2.0]] * 2))
    assert unfit.tolist() == [False, True]
