"""The expected shift: what it learns from groups of cells, and what it expects of others."""

import pytest
import torch

from scgen_diffusion.module._expected_shift import ExpectedShift
from scgen_diffusion.nn import Classes, Members, Number

SIZE = 4
FAR = 50.0  # standard deviations
PERTURBS = torch.tensor([False, True])


def fitted(conditions, perturbations, centres, shifts, *, control, variance=1e-3, perturbs=PERTURBS):
    """Learn from groups; the shifts of all others are asked of the returned function."""
    centres, shifts = torch.as_tensor(centres).float(), torch.as_tensor(shifts).float()
    perturbations = torch.as_tensor(perturbations).float()
    shift = ExpectedShift(conditions, SIZE, len(centres), len(control))
    variances = torch.as_tensor(variance).expand(len(centres)).float()
    controls = [centre[None] for centre in centres]
    shift.fit(controls, centres, shifts, variances, torch.ones(SIZE), perturbations, control, perturbs)

    def ask(x, condition):
        x, condition = torch.as_tensor(x).float(), torch.tensor([condition]).float()
        return shift(x.view(1, 1, SIZE), condition, control, perturbs)[0, 0]

    return ask


@pytest.fixture(scope="module")
def of_two_kinds():
    """Cells near 0 respond by 1, and cells far away by -1; both to the same perturbation."""
    torch.manual_seed(0)
    centres = torch.randn(12, SIZE) + FAR * (torch.arange(12) % 2)[:, None]
    shifts = 1 - 2 * (torch.arange(12) % 2)[:, None] + 0.05 * torch.randn(12, SIZE)
    perturbations = torch.stack([torch.arange(12), torch.ones(12)], 1)
    return fitted((13, 2), perturbations, centres, shifts, control=torch.tensor([13.0, 0.0]))


@pytest.mark.parametrize(("place", "expected"), [(0.0, 1.0), (FAR, -1.0), (-4 * FAR, 0.0)])
def test_cells_respond_like_similar_ones_and_far_ones_like_the_mean(of_two_kinds, place, expected):
    found = of_two_kinds(torch.full((SIZE,), place), [12, 1])

    torch.testing.assert_close(found, torch.full((SIZE,), expected), atol=0.5, rtol=0)


def test_unperturbed_cells_stay(of_two_kinds):
    assert not of_two_kinds(torch.zeros(SIZE), [12, 0]).any()


def test_effects_of_members_add_up():
    empty, single = 3.0, torch.eye(3, SIZE)
    sets = [[0, 0, empty], [0, 1, empty], [0, 2, empty]]
    control, perturbs = torch.tensor([1.0, empty, empty]), torch.tensor([False, True, True])
    ask = fitted((1, Members(3, largest=2)), sets, torch.zeros(3, SIZE), single, control=control, perturbs=perturbs)

    torch.testing.assert_close(ask(torch.zeros(SIZE), [0, 0, 2]), single[0] + single[2], atol=0.02, rtol=0)


def test_a_set_that_was_seen_is_more_than_its_members():
    empty, seen = 2.0, torch.tensor([1.0, 1.0, 2.0, 0.0])
    sets, shifts = [[0, 0, empty], [0, 1, empty], [0, 0, 1]], torch.stack([*torch.eye(2, SIZE), seen])
    control, perturbs = torch.tensor([1.0, empty, empty]), torch.tensor([False, True, True])
    ask = fitted((1, Members(2, largest=2)), sets, torch.zeros(3, SIZE), shifts, control=control, perturbs=perturbs)

    torch.testing.assert_close(ask(torch.zeros(SIZE), [0, 0, 1]), seen, atol=0.05, rtol=0)


def test_a_dose_lies_between_its_neighbours_and_none_does_nothing():
    doses = torch.tensor([[0.0, 0.5], [0.0, 1.5]])
    shifts = torch.tensor([[1.0], [2.0]]).expand(2, SIZE)
    ask = fitted((1, Number()), doses, torch.zeros(2, SIZE), shifts, control=torch.tensor([1.0, -0.5]))

    assert 1.1 < ask(torch.zeros(SIZE), [0, 1.0])[0] < 2.2
    assert not ask(torch.zeros(SIZE), [0, -0.5]).any()


def test_a_class_never_seen_responds_like_classes_of_similar_embeddings():
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [1.05, 0.0]])
    groups, shifts = [[0, 1], [0, 2]], torch.eye(2, SIZE)
    ask = fitted((1, Classes(4, vectors)), groups, torch.zeros(2, SIZE), shifts, control=torch.tensor([1.0, 0.0]))

    found = ask(torch.zeros(SIZE), [0, 3])

    assert found[0] > 0.9
    assert found[1].abs() < 0.2


def test_noisy_groups_shift_less():
    groups, shifts = [[0, 1]], torch.ones(1, SIZE)
    options = {"control": torch.tensor([1.0, 0.0])}
    sure, unsure = (
        fitted((1, 2), groups, torch.zeros(1, SIZE), shifts, variance=variance, **options)(torch.zeros(SIZE), [0, 1])
        for variance in (1e-3, 0.9)
    )

    assert (unsure < 0.7 * sure).all()


def test_perturbations_without_any_effect_shift_nothing():
    ask = fitted(
        (1, 2), [[0, 1]], torch.zeros(1, SIZE), torch.zeros(1, SIZE), variance=0.0, control=torch.tensor([1.0, 0.0])
    )

    assert not ask(torch.zeros(SIZE), [0, 1]).any()
