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
    shift = ExpectedShift(conditions, SIZE, len(centres), control, perturbs)
    variances = torch.as_tensor(variance).expand(len(centres)).float()
    controls = [centre[None] for centre in centres]
    shift.fit(controls, centres, shifts, variances, torch.eye(SIZE), perturbations)

    def ask(x, condition):
        x, condition = torch.as_tensor(x).float(), torch.tensor([condition]).float()
        return shift(x.view(1, 1, SIZE), condition)[0, 0]

    return ask


@pytest.fixture(scope="module")
def of_two_kinds():
    """Cells near 0 respond by 1, and cells far away by -1; both to the same perturbation."""
    torch.manual_seed(0)
    centres = torch.randn(12, SIZE) + FAR * (torch.arange(12) % 2)[:, None]
    shifts = 1 - 2 * (torch.arange(12) % 2)[:, None] + 0.05 * torch.randn(12, SIZE)
    perturbations = torch.stack([torch.arange(12), torch.ones(12)], 1)
    return fitted((13, 2), perturbations, centres, shifts, control=torch.tensor([13.0, 0.0]))


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


@pytest.mark.parametrize(("place", "expected"), [(0.0, 1.0), (FAR, -1.0), (-4 * FAR, 0.0)])
def test_cells_respond_like_similar_ones_and_far_ones_like_the_mean(of_two_kinds, place, expected):
    found = of_two_kinds(torch.full((SIZE,), place), [12, 1])

    torch.testing.assert_close(found, torch.full((SIZE,), expected), atol=0.5, rtol=0)


def test_cells_are_as_alike_as_their_images_along_the_axes():
    centres = torch.zeros(2, SIZE)
    centres[0, 0], centres[1, 1] = FAR, FAR
    shifts, perturbations = torch.tensor([[1.0] * SIZE, [-1.0] * SIZE]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    control, asked = torch.tensor([2.0, 0.0]), torch.zeros(1, 1, SIZE)
    asked[..., 0], asked[..., 1] = FAR, FAR
    for ignored, expected in ((0, -1.0), (1, 1.0)):  # the latent that does not count
        axes = torch.eye(SIZE)
        axes[ignored] = 0
        shift = ExpectedShift((2, 2), SIZE, 2, control, PERTURBS)
        controls = [centre[None] for centre in centres]
        shift.fit(controls, centres, shifts, torch.full((2,), 1e-3), axes, perturbations)
        found = shift(asked, torch.tensor([[2.0, 1.0]]))
        assert (found.sign() == expected).all()


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


@pytest.mark.parametrize(
    ("dose", "expected"), [(-0.5, 0.0), (0.0, 0.5), (0.5, 1.0), (1.0, 1.5), (1.5, 2.0), (9.0, 2.0), (-3.0, 0.0)]
)
def test_effects_lie_on_lines_between_known_doses_and_stay_beyond_them(dose, expected):
    doses = torch.tensor([[0.0, 0.5], [0.0, 1.5]])
    shifts = torch.tensor([[1.0], [2.0]]).expand(2, SIZE)
    ask = fitted((1, Number()), doses, torch.zeros(2, SIZE), shifts, control=torch.tensor([1.0, -0.5]))

    torch.testing.assert_close(ask(torch.zeros(SIZE), [0, dose]), torch.full((SIZE,), expected), atol=0.01, rtol=0)


def test_groups_at_the_dose_of_control_cells_are_not_predictions_to_learn_from():
    """They shift by nothing, so that others predict them without any error."""
    torch.manual_seed(0)
    none, some = torch.tensor([[0.0, -0.5]]).repeat(4, 1), torch.tensor([[0.0, 1.0]]).repeat(6, 1)
    centres, shifts = torch.randn(10, SIZE), torch.cat([torch.zeros(4, SIZE), 1 + torch.randn(6, SIZE)])
    control, perturbs = torch.tensor([1.0, -0.5]), torch.tensor([True, True])

    def learn(of):
        shift = ExpectedShift((1, Number()), SIZE, len(of), control, perturbs)
        variances, cells = torch.full((len(of),), 1e-2), [centre[None] for centre in centres[of]]
        doses = torch.cat([none, some])[of]
        shift.fit(cells, centres[of], shifts[of], variances, torch.eye(SIZE), doses)
        return shift

    with_none, without = learn(torch.arange(10)), learn(torch.arange(4, 10))

    torch.testing.assert_close(with_none.options, without.options)
    assert with_none.left_out[:, 0].isfinite().tolist() == 4 * [False] + 6 * [True]


def test_a_class_never_seen_responds_like_classes_of_similar_embeddings():
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [1.05, 0.0]])
    groups, shifts = [[0, 1], [0, 2]], torch.eye(2, SIZE)
    ask = fitted((1, Classes(4, vectors)), groups, torch.zeros(2, SIZE), shifts, control=torch.tensor([1.0, 0.0]))

    found = ask(torch.zeros(SIZE), [0, 3])

    assert found[0] > 0.9
    assert found[1].abs() < 0.2
    assert not ask(torch.zeros(SIZE), [0, 0]).any()  # an unperturbed cell


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


# --- how sure it is ---------------------------------------------------------------------------------------------------


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


def test_departures_are_from_what_the_other_groups_suggest():
    generator = torch.Generator().manual_seed(0)
    centres, shifts, perturbations = groups_of_cells(6)
    shift, changes = fitted_shift(centres, shifts, perturbations), torch.randn(4, 3, generator=generator).double()
    groups = torch.tensor([0, 1, 3, 5])

    departures, variances, sampling = shift.departures(groups, changes)

    for number, group in enumerate(groups.tolist()):
        others = torch.arange(4) != number
        weights = shift.suggest(groups[others], centres[[group]], perturbations[group]).weights
        torch.testing.assert_close(departures[number], changes[number] - weights @ changes[others])
        own = shift.variances[group].double()
        torch.testing.assert_close(sampling[number], own + shift.noise_of(groups[others], weights))
        assert sampling[number] < variances[number]


def test_it_is_less_sure_of_cells_that_are_far_and_knows_nothing_of_other_perturbations():
    centres, shifts, _ = groups_of_cells()
    perturbations = torch.stack([torch.arange(5), torch.ones(5)], 1)
    shift = ExpectedShift((10, 3), SIZE, 5, CONTROL, PERTURBS)
    cells, variances = [centre[None] for centre in centres], torch.full((5,), 1e-2)
    shift.fit(cells, centres, shifts, variances, torch.eye(SIZE), perturbations)
    near, far = torch.zeros(1, SIZE), torch.full((1, SIZE), FAR)

    found = shift.uncertainty([near, far, near], torch.tensor([[5.0, 1], [5, 1], [5, 2]]))

    assert found[0, 0] < 0.5 * found[1, 0] < found[1, 1]
    torch.testing.assert_close(found[2, 0], found[2, 1])


def test_groups_of_too_few_cells_are_not_predicted_from_others():
    shift = fitted_shift(*groups_of_cells(), variance=0.9)

    assert shift.left_out.tolist() == [[torch.inf, 0.0]] * 5


def test_the_expected_shift_is_the_weighted_mean_of_the_groups():
    centres, shifts, perturbations = groups_of_cells()
    shift, x = fitted_shift(centres, shifts, perturbations), torch.randn(3, SIZE)
    condition = torch.tensor([5.0, 1.0])

    weights = shift.suggest(torch.arange(5), x, condition).weights
    expected = shift(x[:, None], condition.expand(3, -1)).mean(0)

    torch.testing.assert_close((weights @ shifts.double()).float()[None], expected, atol=1e-4, rtol=1e-4)


def test_groups_with_the_same_control_cells_share_their_noise():
    centres, shifts, _ = groups_of_cells(6)
    sets, perturbations = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([[g // 2, 1.0] for g in range(6)])
    shift = ExpectedShift((10, 2), SIZE, 6, CONTROL, PERTURBS)
    given = centres[:, None], centres, shifts, torch.full((6,), 0.3), torch.eye(SIZE), perturbations
    shift.fit(*given, control_variances=0.2, control_sets=sets)

    covariance = shift.covariance_of(slice(None)) + 0.1 * torch.eye(6) + 0.2 * (sets[:, None] == sets)
    some, asked = torch.tensor([0, 1, 4]), perturbations[0]
    to_some = shift.covariance_with_groups(centres[:1], asked[None])[0, some]
    of_some = torch.linalg.solve(covariance[some][:, some], to_some)
    of_all = torch.linalg.solve(covariance, shifts.double())
    torch.testing.assert_close(shift.weights.double(), of_all, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shift.suggest(some, centres[:1], asked).weights, of_some, rtol=1e-4, atol=1e-4)


# --- perturbations never seen -----------------------------------------------------------------------------------------


def test_a_set_is_new_if_one_of_its_members_is():
    empty = 3.0
    control, perturbs = torch.tensor([empty, empty]), torch.tensor([True, True])
    shift = ExpectedShift((Members(3, largest=2),), SIZE, 2, control, perturbs)
    shift.perturbations.copy_(torch.tensor([[0, empty], [0, 1]]))

    asked = torch.tensor([[1, empty], [1, 0], [2, empty], [0, 2], [empty, empty]])

    assert shift.are_new(asked).tolist() == [False, False, True, True, False]


def test_the_share_explained_by_others_is_that_of_refits_without_each_class():
    torch.manual_seed(0)
    vectors, n = torch.randn(5, 2), 8
    centres, shifts = torch.randn(n, SIZE), torch.randn(n, SIZE)
    perturbations = torch.stack([torch.zeros(n), torch.tensor([1.0, 1, 2, 2, 3, 3, 4, 4])], 1)
    shift = ExpectedShift((10, Classes(5, vectors)), SIZE, n, CONTROL, PERTURBS)
    variances, cells = torch.full((n,), 0.1), [centre[None] for centre in centres]
    shift.fit(cells, centres, shifts, variances, torch.eye(SIZE), perturbations)

    noise, errors = 0.1 * n * SIZE, 0.0
    for name in range(1, 5):
        is_out = perturbations[:, 1] == name
        weights = torch.zeros(n, SIZE, dtype=torch.double)
        kept = shift._covariance(~is_out)
        weights[~is_out] = torch.linalg.solve(kept, shifts[~is_out].double())
        found = shift(centres[is_out], perturbations[is_out], weights)
        errors += (found - shifts[is_out]).square().sum().item()

    expected = 1 - (errors - noise) / (shifts.square().sum().item() - noise)
    assert shift.explained_by_others() == pytest.approx(expected, rel=1e-3)


def test_groups_without_a_class_explain_nothing_of_others():
    torch.manual_seed(0)
    n, control = 40, torch.tensor([0.0, -0.5])
    perturbations = torch.stack([torch.arange(n) % 20 + 1.0, torch.ones(n)], 1)
    perturbations[20:, 0] = 0  # only the dose is that of treated cells
    centres, shifts = torch.randn(n, SIZE), torch.randn(n, SIZE)
    shift = ExpectedShift((21, Number()), SIZE, n, control, torch.tensor([True, True]))
    variances, cells = torch.full((n,), 1e-3), [centre[None] for centre in centres]
    shift.fit(cells, centres, shifts, variances, torch.eye(SIZE), perturbations)

    assert abs(shift.explained_by_others()) < 0.1


def test_a_drug_is_not_related_to_groups_without_any_however_near_their_embeddings():
    drugs = Classes(3, torch.tensor([[0.0], [0.1], [9.0]]))
    shift = ExpectedShift((drugs, 2), SIZE, 1, torch.zeros(2), torch.tensor([True, True]))
    shift.perturbations.copy_(torch.tensor([[0.0, 1.0]]))

    assert shift.related(torch.tensor([[1.0, 1.0], [1.0, 0.0]])).tolist() == [[True], [False]]


def test_sets_that_share_one_of_four_members_are_related():
    sets = torch.tensor([[0.0, 1, 2, 3], [3, 4, 5, 6], [4, 5, 6, 7]])
    control, perturbs = torch.full((4,), 8.0), torch.ones(4, dtype=torch.bool)
    shift = ExpectedShift((Members(8, largest=4),), SIZE, 1, control, perturbs)
    shift.perturbations.copy_(sets[:1])

    assert shift.related(sets).tolist() == [[True], [True], [False]]


@pytest.mark.parametrize("distance", [0.05, 0.01, 0.001])
def test_a_number_near_the_controls_is_related_to_itself(distance):
    """Of doses on a plain scale, the smallest hardly differ from no dose; groups with them still tell about them."""
    doses = torch.tensor([[0.0, distance - 0.65], [0.0, -0.4], [0.0, 1.5]]).repeat(2, 1)
    control, perturbs = torch.tensor([0.0, -0.65]), torch.tensor([False, True])
    shift, centres = ExpectedShift((2, Number(1)), SIZE, 6, control, perturbs), torch.randn(6, SIZE)
    variances = torch.full((6,), 1e-3)
    shift.fit([c[None] for c in centres], centres, centres, variances, torch.eye(SIZE), doses)

    related = shift.related(doses[:3])

    assert related[:, :3].diagonal().all()
    assert not shift.related(control[None]).any()


def test_a_dose_is_that_of_a_group_but_for_rounding():
    shift = ExpectedShift((2, Number()), SIZE, 2, torch.tensor([0.0, -1.0]), torch.tensor([True, True]))
    shift.perturbations.copy_(torch.tensor([[1.0, 0.1], [1.0, 2.5]]))

    asked = torch.tensor([[1.0, 0.1], [1.0, 0.1000001], [1.0, 0.11], [0.0, 0.1]])
    assert shift.have_groups(asked).tolist() == [True, True, False, False]
