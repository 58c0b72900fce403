"""The expected shift: what it learns from groups of cells, and what it expects of others."""

import pytest
import torch

from scgen_diffusion.nn import Members, Number
from scgen_diffusion.perturbation import ExpectedShift

SIZE = 4
PERTURBS = torch.tensor([False, True])


def fitted(conditions, perturbations, centres, shifts, *, control, variance=1e-3, perturbs=PERTURBS):
    """Learn from groups; the shifts of all others are asked of the returned function."""
    centres, shifts = torch.as_tensor(centres).float(), torch.as_tensor(shifts).float()
    perturbations = torch.as_tensor(perturbations).float()
    shift = ExpectedShift(conditions, SIZE, len(centres), control, perturbs)
    variances = torch.as_tensor(variance).expand(len(centres)).float()
    controls = [centre[None] for centre in centres]
    shift.fit(controls, centres, shifts, variances, torch.eye(SIZE), perturbations)

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
    shift = ExpectedShift((100, 2), SIZE, 100, torch.tensor([100.0, 0.0]), PERTURBS)
    perturbations = torch.stack([torch.arange(100), torch.ones(100)], 1)
    cells, variances = [centre[None] for centre in centres], torch.full((100,), 1e-3)

    shift.fit(cells, centres, shifts, variances, torch.eye(SIZE), perturbations)

    assert length / 1.5 < shift.options[2] < 1.5 * length


def test_effects_of_members_add_up():
    empty, single = 3.0, torch.eye(3, SIZE)
    sets = [[0, 0, empty], [0, 1, empty], [0, 2, empty]]
    control, perturbs = torch.tensor([1.0, empty, empty]), torch.tensor([False, True, True])
    ask = fitted((1, Members(3, largest=2)), sets, torch.zeros(3, SIZE), single, control=control, perturbs=perturbs)

    torch.testing.assert_close(ask(torch.zeros(SIZE), [0, 0, 2]), single[0] + single[2], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("dose", "expected"), [(-0.5, 0.0), (0.0, 0.5), (0.5, 1.0), (1.0, 1.5), (1.5, 2.0), (9.0, 2.0), (-3.0, 0.0)]
)
def test_effects_lie_on_lines_between_known_doses_and_stay_beyond_them(dose, expected):
    doses = torch.tensor([[0.0, 0.5], [0.0, 1.5]])
    shifts = torch.tensor([[1.0], [2.0]]).expand(2, SIZE)
    ask = fitted((1, Number()), doses, torch.zeros(2, SIZE), shifts, control=torch.tensor([1.0, -0.5]))

    torch.testing.assert_close(ask(torch.zeros(SIZE), [0, dose]), torch.full((SIZE,), expected), atol=0.01, rtol=0)


CONTROL = torch.tensor([9.0, 0.0])


def groups_of_cells(n=5):
    torch.manual_seed(0)
    centres, shifts = torch.randn(n, SIZE), 1 + 0.1 * torch.randn(n, SIZE)
    return centres, shifts, torch.stack([torch.arange(n), torch.ones(n)], 1).float()


def fitted_shift(centres, shifts, perturbations, variance=1e-2):
    shift = ExpectedShift((10, 2), SIZE, len(centres), CONTROL, PERTURBS)
    variances = torch.full((len(centres),), variance)
    cells = [centre[None] for centre in centres]
    shift.fit(cells, centres, shifts, variances, torch.eye(SIZE), perturbations)
    return shift


def test_of_one_group_the_variance_is_that_of_two_gaussian_numbers():
    centres, shifts, perturbations = groups_of_cells(1)
    shift, x = fitted_shift(centres, shifts, perturbations), torch.full((1, SIZE), 2.0)
    a, b, length = shift.options.double()
    covariance = a + b * (-(x - centres).double().square().sum() / (2 * length**2)).exp()

    variance, prior = shift.uncertainty([x], torch.tensor([[5.0, 1.0]]))[0]

    torch.testing.assert_close(prior, a + b)
    torch.testing.assert_close(variance, a + b - covariance**2 / (a + b + shift.variances[0].double()))


def test_a_group_left_out_is_a_group_never_seen():
    centres, shifts, perturbations = groups_of_cells()
    shift = fitted_shift(centres, shifts, perturbations)
    others = torch.tensor([0, 1, 3, 4])
    without = ExpectedShift((10, 2), SIZE, 4, CONTROL, PERTURBS)
    state = shift.state_dict()
    for name in ("centres", "perturbations", "variances", "control_variances", "control_sets", "left_out"):
        state[name] = state[name][others]
    covariance = shift._covariance(slice(None))[others][:, others]
    state["weights"] = torch.linalg.solve(covariance, shifts[others].double())
    without.load_state_dict(state)

    (weights,) = shift.weights_without([2])
    x = centres[2].view(1, 1, SIZE)
    expected = without(x, perturbations[[2]])
    uncertainty = without.uncertainty([centres[[2]]], perturbations[[2]])[0]

    found = shift(x, perturbations[[2]], weights)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shift.left_out[2].double(), uncertainty, atol=1e-5, rtol=1e-4)


def test_the_expected_shift_is_the_weighted_mean_of_the_groups():
    centres, shifts, perturbations = groups_of_cells()
    shift, x = fitted_shift(centres, shifts, perturbations), torch.randn(3, SIZE)
    condition = torch.tensor([5.0, 1.0])

    weights = shift.suggest(torch.arange(5), x, condition).weights
    expected = shift(x[:, None], condition.expand(3, -1)).mean(0)

    torch.testing.assert_close((weights @ shifts.double()).float()[None], expected, atol=1e-4, rtol=1e-4)
