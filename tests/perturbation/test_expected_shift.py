"""The expected shift: what it learns from groups of cells, and what it expects of others."""

import pytest
import torch

from scgen_diffusion.nn import Classes, Members, Number
from scgen_diffusion.perturbation import ExpectedShift

SIZE = 4
PERTURBS = torch.tensor([False, True])


def fitted(conditions, perturbations, centres, shifts, *, control, variance=1e-3, perturbs=PERTURBS):
    """Learn from groups; the shifts of all others are asked of the returned function."""
    centres, shifts = torch.as_tensor(centres).float(), torch.as_tensor(shifts).float()
    perturbations = torch.as_tensor(perturbations).float()
    shift = ExpectedShift(conditions, SIZE, len(centres), control, perturbs)
    variances = torch.as_tensor(variance).expand(len(centres)).float()
    own_controls = 0 * variances, torch.arange(len(centres))
    shift.fit(centres, shifts, variances, torch.eye(SIZE), perturbations, *own_controls)

    def ask(x, condition):
        x, condition = torch.as_tensor(x).float(), torch.tensor([condition]).float()
        return shift(x.view(1, 1, SIZE), condition)[0, 0]

    return ask


@pytest.mark.parametrize("length", [2.0, 8.0])  # 1 and 4 standard deviations along an axis
def test_it_finds_out_how_alike_cells_respond_that_differ(length):
    torch.manual_seed(0)
    centres = 8 * torch.rand(100, SIZE)
    alike = (-torch.cdist(centres, centres).square() / (2 * length**2)).exp()
    shifts = torch.linalg.cholesky(1 + alike + 1e-3 * torch.eye(100)) @ torch.randn(100, SIZE)
    shift = ExpectedShift((Classes(100), Classes(2)), SIZE, 100, torch.tensor([100.0, 0.0]), PERTURBS)
    perturbations = torch.stack([torch.arange(100), torch.ones(100)], 1)

    own_controls = torch.zeros(100), torch.arange(100)
    shift.fit(centres, shifts, torch.full((100,), 1e-3), torch.eye(SIZE), perturbations, *own_controls)

    assert length / 1.5 < shift.options[2] < 1.5 * length


def test_effects_of_members_add_up():
    empty, single = 3.0, torch.eye(3, SIZE)
    sets = [[0, 0, empty], [0, 1, empty], [0, 2, empty]]
    control, perturbs = torch.tensor([1.0, empty, empty]), torch.tensor([False, True, True])
    keys, at_zero = (Classes(1), Members(3, largest=2)), torch.zeros(3, SIZE)
    ask = fitted(keys, sets, at_zero, single, control=control, perturbs=perturbs)

    torch.testing.assert_close(ask(torch.zeros(SIZE), [0, 0, 2]), single[0] + single[2], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("dose", "expected"), [(-0.5, 0.0), (0.0, 0.5), (0.5, 1.0), (1.0, 1.5), (1.5, 2.0), (9.0, 2.0), (-3.0, 0.0)]
)
def test_effects_lie_on_lines_between_known_doses_and_stay_beyond_them(dose, expected):
    doses = torch.tensor([[0.0, 0.5], [0.0, 1.5]])
    shifts = torch.tensor([[1.0], [2.0]]).expand(2, SIZE)
    ask = fitted((Classes(1), Number()), doses, torch.zeros(2, SIZE), shifts, control=torch.tensor([1.0, -0.5]))

    torch.testing.assert_close(ask(torch.zeros(SIZE), [0, dose]), torch.full((SIZE,), expected), atol=0.01, rtol=0)


@pytest.mark.parametrize(("trust", "alike"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_embeddings_make_perturbations_as_alike_as_they_are_trusted(trust, alike):
    vectors = torch.tensor([[-9.0], [1.0], [1.0]])
    shift = ExpectedShift((Classes(3, vectors),), SIZE, 1, torch.tensor([0.0]), torch.tensor([True]))

    assert float(shift.similarity(torch.tensor([[1.0]]), torch.tensor([[2.0]]), trust)) == pytest.approx(alike)
    assert float(shift.own_similarity(torch.tensor([[1.0]]), trust)) == 1
