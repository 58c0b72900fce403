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


def move(transport, condition, strength=1.0):
    start = torch.zeros(1, 1, 2)
    with torch.no_grad():
        moved = transport.move(start, torch.tensor([condition]), sampler=FLOW_SAMPLERS["midpoint"], strength=strength)
    return moved[0, 0]


@pytest.mark.parametrize("perturbation", [1, 2])
def test_it_learns_what_each_perturbation_does(trained_transport, perturbation):
    torch.testing.assert_close(move(trained_transport, [0, perturbation]), SHIFTS[perturbation], atol=0.2, rtol=0)


def test_what_does_not_perturb_is_not_known(trained_transport):
    torch.testing.assert_close(move(trained_transport, [0, 1]), move(trained_transport, [3, 1]), atol=0, rtol=0)


def test_latents_are_compared_as_far_as_they_change_the_expected_expression():
    transport = make_transport()
    x, other = torch.zeros(1, 1, 2), torch.tensor([[[0.0, 9.0]]])
    assert not torch.equal(transport.along_axes(x), transport.along_axes(other))

    transport.add_shift(1).axes.copy_(torch.diag(torch.tensor([1.0, 0.0])))

    assert torch.equal(transport.along_axes(x), transport.along_axes(other))


def test_the_network_sees_no_place_far_from_the_groups():
    shift = make_transport().add_shift(2)
    shift.centres.copy_(torch.tensor([[1.0, 1.0], [1.0, -3.0]]))  # the mean square distance is 4, and 2 within groups
    near, far = shift.place(torch.tensor([[1.0, -0.99], [1.0, 1e6]]))

    torch.testing.assert_close(near, torch.tensor([0.0, 0.01]), atol=1e-5, rtol=0)
    torch.testing.assert_close(far, torch.tensor([0.0, 12**0.5]))


def test_half_the_strength_is_half_the_way(trained_transport):
    torch.testing.assert_close(move(trained_transport, [0, 1], 0.5), SHIFTS[1] / 2, atol=0.2, rtol=0)


def test_it_starts_as_the_identity():
    torch.testing.assert_close(move(make_transport(), [0, 2]), torch.zeros(2))


@pytest.mark.parametrize(
    ("own", "new", "expected"),
    [
        ([1, 0], [1, 2], True),
        ([1, 0], [1, 0], True),
        ([1, 1], [1, 2], False),  # perturbed already
        ([1, 0], [2, 2], False),  # becomes another type, too
    ],
)
def test_it_explains_perturbations_of_unperturbed_cells_alone(own, new, expected):
    assert make_transport().explains(torch.tensor([own]), torch.tensor([new])) is expected


def test_numbers_can_perturb():
    transport = make_transport((4, Number()), torch.tensor([float("-inf"), -0.5]))

    assert transport.explains(torch.tensor([[1.0, -0.5]]), torch.tensor([[1.0, 2.0]]))
    assert not transport.explains(torch.tensor([[1.0, 0.5]]), torch.tensor([[1.0, 2.0]]))
