"""Distributions of total counts: per group, extrapolated, and read off the latent."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from scgen_diffusion.module import ANY, LibrarySizeModel
from scgen_diffusion.module._library_size import MultimodalLibrarySize
from scgen_diffusion.nn import Members, Number

Z = torch.zeros(1, 2, 3)


@pytest.fixture
def cells():
    """Return log totals of two keys' groups: (0, 0) near e^6, (0, 1) near e^7, (1, 0) near e^8, never (1, 1)."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([6.0, 7.0, 8.0]).repeat_interleave(400)
    condition = torch.tensor([[0, 0], [0, 1], [1, 0]]).repeat_interleave(400, 0)
    skewed = torch.randn(1200, generator=generator).exp() / 4
    return centres + skewed, condition


@pytest.fixture
def fitted(cells):
    model = LibrarySizeModel((9, 9), 6)
    model.fit(*cells)
    return model


def evenly(n):
    """Numbers that fill the unit interval, in place of random ones."""
    return (torch.arange(n) + 0.5) / n


def draw(model, kind, condition, n=2000):
    return model.draw(kind, torch.tensor([condition]).expand(n, -1), Z.expand(n, -1, -1), evenly(n))


def fit(conditions, log_totals, condition):
    model = LibrarySizeModel(conditions, 6)
    model.fit(log_totals, condition)
    return model


def mean_of(model, condition):
    """Return the mean log total; whole counts add an error of 2e-3 at most, and shrunk effects 5e-3."""
    return draw(model, "normal", condition).log().mean().item()


@pytest.mark.parametrize(("condition", "rows"), [([0, 0], slice(0, 400)), ([1, 0], slice(800, 1200))])
def test_empirical_draws_reproduce_the_distribution_of_the_group(fitted, cells, condition, rows):
    drawn = draw(fitted, "empirical", condition)

    assert torch.equal(drawn, drawn.round())
    distance = stats.ks_2samp(drawn.log(), cells[0][rows]).statistic
    assert distance < 0.01  # quantiles are kept at 257 levels, and totals are rounded to whole counts


def test_a_low_and_a_high_total_enclose_95_percent_of_the_cells():
    condition = torch.zeros(1001, 1, dtype=torch.long)
    bounds = fit((2,), torch.arange(1000.0, 2001).log(), condition).bounds(condition[:1])
    torch.testing.assert_close(torch.cat(bounds), torch.tensor([1000.0, 1025, 1975, 2000]), atol=1, rtol=0)


def test_limits_are_those_of_all_training_cells():
    """Of those that fine-tuning adds, and those without a label."""
    condition = torch.zeros(100, 1, dtype=torch.long)
    model = fit((2,), torch.arange(100.0, 200).log(), condition)
    assert model.limits().tolist() == [[100, 199]]
    model.n_kept.fill_(len(model.codes))
    model.fit(torch.arange(20.0, 120).log(), condition + 1)
    assert model.limits().tolist() == [[20, 199]]

    unlabeled = torch.tensor([[0], [1], [2]]).repeat(50, 1)
    model = fit((2,), torch.tensor([1000.0, 2000, 50_000]).log().repeat(50), unlabeled)
    assert model.limits().tolist() == [[1000, 50_000]]
    assert model.bounds(torch.tensor([[ANY]]))[-1] == 2000


def test_normal_draws_have_the_mean_and_deviation_of_the_group(fitted, cells):
    drawn = draw(fitted, "normal", [0, 1]).log()

    group = cells[0][400:800]
    assert drawn.mean().item() == pytest.approx(group.mean().item(), abs=1e-3)  # totals are rounded
    spread = group.std(correction=0).item()
    assert drawn.std().item() == pytest.approx(spread, rel=0.01)  # 2000 levels have no far tails
    assert stats.kstest(drawn, stats.norm(drawn.mean().item(), drawn.std().item()).cdf).statistic < 0.01


@pytest.mark.parametrize("kind", ["empirical", "normal", "latent"])
def test_a_combination_of_few_cells_has_the_totals_that_its_parts_tell(kind):
    """Each combination of a class and two of 16 numbers has about six cells."""
    condition = torch.cartesian_prod(torch.arange(2.0), evenly(40), evenly(40))
    log_totals = 7 + condition[:, 0] + 0.3 * torch.randn(3200, generator=torch.Generator().manual_seed(0))
    model = LibrarySizeModel((2, Number(), Number()), 6)
    model.fit(log_totals, condition)
    model.fit_predicted(log_totals.repeat_interleave(10), condition.repeat_interleave(10, 0), n_draws=10)
    noise = 0.3 * torch.randn(2000, generator=torch.Generator().manual_seed(1))
    model.predict = lambda z: (8 + noise, torch.tensor(1e-3))

    drawn = draw(model, kind, [1.0, 0.55, 0.15]).log()

    assert drawn.mean().item() == pytest.approx(8.0, abs=0.1)  # effects of numbers have 200 cells each
    assert drawn.std().item() == pytest.approx(0.3, rel=0.2)


def test_a_combination_of_fifteen_cells_lies_half_way_between_its_own_totals_and_what_its_parts_tell():
    sizes = torch.tensor([3000, 3000, 3000, 15])
    condition = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]]).repeat_interleave(sizes, 0)
    model = fit((2, 2), torch.tensor([7.0, 8.0, 8.0, 7.0]).repeat_interleave(sizes), condition)
    assert mean_of(model, [1, 1]) == pytest.approx((9 + 7) / 2, abs=0.02)


@pytest.mark.parametrize("kind", ["empirical", "normal"])
@pytest.mark.parametrize("n_modalities", [None, 2])
def test_confounded_conditions_do_not_count_twice(kind, n_modalities):
    """Value 0 of one key goes with value 0 of the other in nearly all cells; both have effects on totals."""
    first, second, spread = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 1.0, -0.5]), 0.3
    sizes = {(0, 0): 900, (0, 1): 60, (1, 1): 900, (1, 2): 60, (2, 2): 900}
    condition = torch.tensor(list(sizes)).repeat_interleave(torch.tensor(list(sizes.values())), 0)
    noise = torch.cat([torch.special.ndtri(evenly(n)) for n in sizes.values()])
    log_totals = 7 + first[condition[:, 0]] + second[condition[:, 1]] + spread * noise
    model = LibrarySizeModel((3, 3), 6) if n_modalities is None else MultimodalLibrarySize(n_modalities, (3, 3), 6)
    model.fit(log_totals if n_modalities is None else log_totals[:, None].expand(-1, n_modalities), condition)

    for asked in [(0, 2), (1, 0), (2, 0), (2, 1)]:
        uniform = evenly(1000) if n_modalities is None else evenly(1000)[:, None].expand(-1, n_modalities)
        drawn = model.draw(kind, torch.tensor([asked]).expand(1000, -1), Z.expand(1000, -1, -1), uniform).log()
        expected = 7 + first[asked[0]] + second[asked[1]]
        torch.testing.assert_close(drawn.mean(0), expected.expand(drawn.shape[1:]), rtol=0, atol=0.01)
        assert drawn.std(0).max().item() == pytest.approx(spread, rel=0.03)


def test_quantiles_of_an_unseen_combination_are_extrapolated_additively_and_stay_in_order():
    model = LibrarySizeModel((9, 9), 6)
    codes = torch.tensor([[ANY, ANY], [0, ANY], [1, ANY], [ANY, 0], [ANY, 1]])
    levels = torch.linspace(0, 1, 257)
    slopes, offsets = torch.tensor([1.0, 1.0, 0.5, 1.0, 0.2]), torch.tensor([5.0, 4.0, 6.0, 4.0, 7.0])
    quantiles = offsets[:, None] + slopes[:, None] * levels
    model.set_groups(codes, means=offsets, stds=torch.ones(5), quantiles=quantiles)

    drawn = draw(model, "empirical", [1, 1], n=1000)

    # 5 + u + (6 + u/2 - 5 - u) + (7 + u/5 - 5 - u) falls with u: sorted, it is 8 - 0.3 (1 - u)
    torch.testing.assert_close(drawn.log(), 8 - 0.3 * (1 - evenly(1000)), atol=1e-3, rtol=0)  # whole counts near 2000
    assert (drawn.diff() >= 0).all()


def test_effects_that_add_up_far_beyond_what_was_observed_are_bounded():
    model = LibrarySizeModel((9, 9), 6)
    codes = torch.tensor([[ANY, ANY], [0, ANY], [ANY, 0]])
    model.set_groups(codes, means=torch.tensor([5.0, 9.0, 9.0]), stds=torch.zeros(3))

    assert mean_of(model, [0, 0]) == pytest.approx(9 + 1.4, abs=1e-3)  # not 13


def test_totals_of_later_modalities_follow_given_ones():
    torch.manual_seed(0)
    model = MultimodalLibrarySize(2, (3,), 6)
    for part in model.parts:
        part.set_groups(torch.tensor([[ANY]]), means=torch.tensor([6.0]), stds=torch.tensor([0.5]))
    z, condition, uniform = torch.randn(50, 2, 3), torch.zeros(50, 1, dtype=torch.long), torch.rand(50, 2)
    drawn = model.draw("latent", condition, z, uniform)

    def with_first(totals):
        given = torch.stack([totals, torch.full_like(totals, torch.nan)], dim=1)
        return model.draw("latent", condition, z, uniform, given)

    torch.testing.assert_close(with_first(drawn[:, 0]), drawn)
    more = with_first(10 * drawn[:, 0])
    torch.testing.assert_close(more[:, 0], 10 * drawn[:, 0])
    assert (more[:, 1] != drawn[:, 1]).float().mean() > 0.9


def test_given_totals_of_moved_cells_tell_as_much_of_later_modalities_as_usual_ones_of_their_starts():
    torch.manual_seed(0)
    model = MultimodalLibrarySize(2, (2,), 6)
    for part in model.parts:  # condition 1 has threefold totals
        part.set_groups(torch.tensor([[ANY], [0], [1]]), means=8 + torch.tensor([0, 0, 2]).log1p(), stds=torch.ones(3))
    z, uniform = torch.randn(50, 2, 3), torch.rand(50, 2)
    control = torch.zeros(50, 1, dtype=torch.long)
    given = torch.stack([torch.linspace(1000, 9000, 50), torch.full((50,), torch.nan)], dim=1)

    expected = 3 * model.draw("latent", control, z, uniform, given)
    moved = model.draw("latent", control + 1, z, uniform, 3 * given, control)

    torch.testing.assert_close(moved, expected, rtol=0.01, atol=1)  # whole counts


def test_the_latent_loss_is_the_negative_log_likelihood_of_a_normal(fitted):
    z, log_totals = torch.randn(5, 2, 3), torch.tensor([5.0, 6.0, 7.0, 8.0, 9.0])
    mean, std = fitted.predict(z)

    expected = -torch.distributions.Normal(mean, std).log_prob(log_totals)
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi))

    torch.testing.assert_close(fitted.loss(z, log_totals) + constant, expected)


def test_cells_of_equal_totals_give_a_finite_loss():
    model = fit((), torch.full((20,), 4.6), torch.zeros(20, 0, dtype=torch.long))
    assert draw(fit((9,), torch.zeros(3), torch.zeros(3, 1).long()), "normal", [0]).unique() == 1  # the least total
    loss = model.loss(torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(0)), torch.full((20,), 4.6))

    assert loss.isfinite().all()


def test_the_latent_decides_about_a_cells_place_among_its_groups_totals():
    n = 20_000
    z = torch.randn(n, 1, 1, generator=torch.Generator().manual_seed(0))
    condition = torch.zeros(n, 0, dtype=torch.long)
    totals = (7 + 0.5 * z.flatten().abs()).exp()  # far from normal
    model = LibrarySizeModel((), 1)
    model.fit(totals.log(), condition)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
        model.head[0].weight[0, 0], model.head[2].weight[0, 0] = 1.0, 1.0  # the mean rises with z
        mean, std = model.predict(z)
        noise = torch.randn(n, generator=torch.Generator().manual_seed(1))
        model.fit_predicted(mean + std * noise, condition)
        uniform = torch.rand(n, generator=torch.Generator().manual_seed(2))
        drawn = model.draw("latent", condition, z, uniform)

    assert torch.corrcoef(torch.stack([drawn.log(), mean]))[0, 1] > 0.1
    levels = torch.tensor([0.1, 0.5, 0.9])
    found, expected = drawn.log().quantile(levels), totals.log().quantile(levels)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)  # 20 000 draws


def test_the_latent_tells_the_total_of_a_cell_without_a_condition():
    """Its level among the cells of another condition would be the lowest or the highest."""
    condition = torch.arange(2).repeat_interleave(500)[:, None]
    totals, noise = 5 + 2.0 * condition[:, 0], torch.randn(1000, generator=torch.Generator().manual_seed(0))
    model = LibrarySizeModel((2, Number()), 1)
    condition = torch.cat([condition.float(), noise[:, None]], dim=1)
    model.fit(totals + 0.1 * noise, condition)
    with torch.no_grad():
        model.head[2].weight.zero_()
        model.head[2].bias[:] = torch.tensor([0.0, -2.0])
        mean, std = model.predict(torch.zeros(1000, 1, 1))
        model.fit_predicted(totals - totals.mean() + mean + std * noise, condition)
        model.predict = lambda z: (z.flatten() + mean, std)  # of latents that tell the condition
        uniform = torch.rand(1000, generator=torch.Generator().manual_seed(1))
        z = (totals - totals.mean())[:, None, None]
        for hidden in ([0], [1], [0, 1]):
            shown = condition.clone()
            shown[:, hidden] = torch.tensor([2, -math.inf])[hidden]
            drawn = model.draw("latent", shown, z, uniform).log()
            torch.testing.assert_close(drawn, totals, rtol=0, atol=0.6)  # six deviations


def test_groups_that_are_kept_stay_and_new_ones_are_added():
    model = LibrarySizeModel([2, Number()], n_latent=3)
    condition = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).repeat(30, 1)
    model.fit(torch.tensor([1.0, 2.0, 3.0]).repeat(30), condition)
    model.fit_predicted(torch.tensor([1.5, 2.5, 3.5]).repeat(30), condition)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model.n_kept.fill_(len(model.codes))

    further = torch.tensor([[0.0, 0.0], [1.0, 5.0]]).repeat(30, 1)
    for _ in range(2):  # the same cells again change nothing
        model.fit(torch.tensor([8.0, 9.0]).repeat(30), further)
        model.fit_predicted(torch.tensor([8.5, 9.5]).repeat(30), further)

    for name in ("codes", "quantiles", "predicted_quantiles", "means", "stds"):
        assert torch.equal(getattr(model, name)[: len(before[name])], before[name])
    assert torch.equal(model.standardise(model.head_mean), torch.tensor(0.0))
    assert torch.equal(model.head_mean, before["head_mean"])
    assert model.codes[len(before["codes"]) :].tolist() == [[ANY, 2], [1, 2]]  # the number 5 has a place of its own
    assert model.means[-1] == 9.0
    assert model.predicted_quantiles[-1].unique().tolist() == [9.5]
    assert model.centres[0, :3].tolist() == [0.0, 1.0, 5.0]
    assert draw(model, "empirical", [0, 0.0]).unique().tolist() == [round(math.e)]


@pytest.mark.parametrize("by", [-1.4, 1.4])
def test_groups_that_are_not_kept_are_those_of_new_cells_that_have_them(by):
    model = LibrarySizeModel([2, 3], n_latent=3)
    condition = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    log_totals = torch.tensor([5.0, 6.0, 6.5, 7.5]).repeat(30)
    model.fit(log_totals, condition.repeat(30, 1))
    model.fit_predicted(log_totals, condition.repeat(30, 1))
    model.n_kept.fill_(2)  # all cells, and the baseline
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}

    new = torch.tensor([[0, 0], [0, 2]])
    for _ in range(2):
        model.fit(torch.tensor([5 + by, 8 + by]).repeat(30), new.repeat(30, 1))
        model.fit_predicted(torch.tensor([5 + by, 8 + by]).repeat(30), new.repeat(30, 1))

    assert len(model.codes) == len(model.predicted_quantiles) == len(before["codes"]) + 2  # [any, 2] and [0, 2]
    for codes, wanted in zip([*condition, *new], [5 + by, 6, 6.5, 7.5, 5 + by, 8 + by], strict=True):
        place = (model.codes == codes).all(1)
        assert model.predicted_quantiles[place].unique().item() == pytest.approx(wanted)
        assert draw(model, "empirical", codes.tolist()).unique().item() == round(math.exp(wanted))
    for name in ("codes", "quantiles", "predicted_quantiles", "means", "stds"):
        assert torch.equal(getattr(model, name)[:2], before[name][:2])


def test_totals_differ_between_places():
    places = torch.tensor([[0.0, 0], [0, 5], [5, 0], [5, 5]]).repeat_interleave(50, 0)
    places = places + 0.1 * torch.randn(places.shape, generator=torch.Generator().manual_seed(0))
    model = LibrarySizeModel([Number(2)], n_latent=3)

    model.fit(torch.tensor([1.0, 2, 3, 4]).repeat_interleave(50), places)

    asked = torch.tensor([[0.0, 0], [0, 5], [5, 0], [5, 5], [9, 9]])
    drawn = model.draw("empirical", asked, torch.zeros(5, 1, 3), torch.full((5,), 0.5))
    assert drawn.tolist() == [round(math.e**n) for n in (1, 2, 3, 4, 4)]
    assert model.centres.shape == (2, 16)


def test_sets_have_their_own_totals_and_those_that_do_not_occur_add_up_what_their_members_do():
    effects = torch.tensor([0.5, 1.0, -1.0, 0.0])
    condition = torch.tensor([[3, 3], [0, 3], [1, 3], [2, 3], [1, 2]]).repeat_interleave(100, 0)
    model = fit((Members(3, largest=2),), 7 + effects[condition].sum(1), condition)
    for asked, mean in [([3, 3], 7.0), ([2, 3], 6.0), ([1, 2], 7.0)]:
        assert mean_of(model, asked) == pytest.approx(mean, abs=2e-3)
    assert mean_of(model, [0, 1]) == pytest.approx(7 + 0.5 + 1.0, abs=5e-3)
