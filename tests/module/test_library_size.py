"""Totals that follow from features of a cell: likelihood, quantiles, and what a head learns."""

import pytest
import torch
from scipy import stats
from torch.distributions import Categorical, MixtureSameFamily, Normal

from scgen_diffusion.module import LibrarySizeModel
from scgen_diffusion.module._library_size import MultimodalLibrarySize
from scgen_diffusion.nn import Classes

SPREAD = torch.tensor([3.0, 6.0, 14.0])
NONE = torch.zeros(1, 0)  # a cell without conditions


def none(features):
    return NONE.expand(len(features), 0)


def random_model(n_features=6):
    """Return a model of random weights that takes any total."""
    torch.manual_seed(0)
    model = LibrarySizeModel((), n_features)
    torch.nn.init.normal_(model.head[-1].weight, std=0.3)
    model.fit(SPREAD)
    return model


def distribution_of(model, features):
    log_weights, means, log_stds = model._components(none(features), features)
    components = Normal(model.log_mean + model.log_std * means, model.log_std * log_stds.exp())
    return MixtureSameFamily(Categorical(logits=log_weights), components)


def test_the_loss_is_the_negative_log_likelihood_of_the_mixture_but_for_a_constant():
    model, features, log_totals = random_model(), torch.randn(7, 2, 3), torch.linspace(4, 9, 7)

    differences = model.loss(none(features), features, log_totals) + distribution_of(model, features).log_prob(
        log_totals
    )

    torch.testing.assert_close(differences, differences[:1].expand(7))


def test_draws_are_the_quantiles_of_the_mixture():
    model, features = random_model(), torch.randn(500, 2, 3)
    levels = torch.linspace(0.001, 0.999, 500)[torch.randperm(500)]

    totals = model.draw(none(features), features, levels)

    below, above = (distribution_of(model, features).cdf((totals + by).log()) for by in (-0.51, 0.51))
    is_inside = (totals.log() > 4) & (totals.log() < 12)  # whole numbers of float32 that are not too coarse
    assert is_inside.sum() > 150
    assert (below <= levels + 1e-4)[is_inside].all()
    assert (above >= levels - 1e-4)[is_inside].all()
    assert torch.equal(totals, totals.round())


def test_rarer_totals_than_one_in_a_thousand_are_drawn_as_those():
    model, features = random_model(), torch.randn(1, 6).expand(4, 6)
    low, rare, high, rarer = model.draw(none(features), features, torch.tensor([1e-3, 0.0, 0.999, 1.0]))

    assert low == rare < high == rarer


def test_a_head_learns_totals_of_two_modes_that_depend_on_the_latent():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 1, 2, generator=generator)
    mode = (torch.rand(4000, generator=generator) < 0.3).float()
    log_totals = 7 + z[:, 0, 0] + 2 * mode + 0.1 * torch.randn(4000, generator=generator)
    torch.manual_seed(0)
    model = LibrarySizeModel((), 2)
    model.fit(log_totals)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        model.loss(none(z), z, log_totals).mean().backward()
        optimiser.step()

    drawn = model.draw(none(z), z, torch.rand(4000, generator=generator)).log()

    assert stats.ks_2samp(drawn.detach(), log_totals).statistic < 0.04
    rest, real = (values - 7 - z[:, 0, 0] for values in (drawn.detach(), log_totals))
    assert stats.ks_2samp(rest, real).statistic < 0.12


def test_later_cells_widen_the_range_and_leave_what_the_head_has_learned():
    model, features, levels = random_model(), torch.randn(20, 6), torch.linspace(0, 1, 20)
    before = model.draw(none(features), features, levels)
    torch.testing.assert_close(model.limits(), SPREAD[[0, 2]].exp().round()[None])

    model.fit(torch.tensor([1.0, 8.0, 15.0]))

    assert model.limits()[0].log().tolist() == pytest.approx([1, 15], abs=0.2)  # whole counts
    assert torch.equal(model.draw(none(features), features, levels), before)


def test_cells_of_equal_totals_give_a_finite_loss_and_their_total():
    model = LibrarySizeModel((), 6)
    model.fit(torch.full((20,), 4.6))

    assert model.loss(NONE.expand(20, 0), torch.randn(20, 6), torch.full((20,), 4.6)).isfinite().all()
    totals = model.draw(NONE.expand(20, 0), torch.randn(20, 6), torch.rand(20))
    torch.testing.assert_close(totals, torch.full((20,), 99.5), rtol=0.04, atol=0)  # a standard deviation of 1 %


def random_multimodal():
    torch.manual_seed(0)
    model = MultimodalLibrarySize(2, (), 6)
    for part in model.parts:
        torch.nn.init.normal_(part.head[-1].weight, std=0.3)
    model.fit(torch.stack([SPREAD, torch.tensor([2.0, torch.nan, 13.0])], dim=1))
    return model


def test_totals_of_later_modalities_follow_given_ones():
    model, z, uniform = random_multimodal(), torch.randn(50, 2, 3), torch.rand(50, 2)
    drawn = model.draw(none(z), z, uniform)

    def with_first(totals):
        return model.draw(none(z), z, uniform, torch.stack([totals, torch.full_like(totals, torch.nan)], dim=1))

    torch.testing.assert_close(with_first(drawn[:, 0]), drawn)
    more = with_first(10 * drawn[:, 0])
    torch.testing.assert_close(more[:, 0], 10 * drawn[:, 0])
    assert (more[:, 1] != drawn[:, 1]).float().mean() > 0.3


def test_a_modality_that_a_cell_lacks_adds_nothing_to_the_loss():
    model, z = random_multimodal(), torch.randn(1, 6)
    both, first = torch.tensor([[5.0, 6.0]]), torch.tensor([[5.0, torch.nan]])

    torch.testing.assert_close(model.loss(none(z), z, first), model.parts[0].loss(none(z), z, both[:, 0]))
    assert model.loss(none(z), z, first).isfinite().all()


def test_a_new_class_learns_its_totals_by_its_own_vector_alone():
    torch.manual_seed(0)
    model, z, uniform = LibrarySizeModel([Classes(3)], 2), torch.randn(600, 2), torch.rand(600)
    old, new = torch.zeros(600, 1), torch.ones(600, 1)
    log_totals = 7 + 0.3 * torch.randn(600)
    deeper = log_totals + 1.4  # four times as many
    model.fit(torch.cat([log_totals, deeper]))
    vectors = model.embed.tables[0].weight

    def learn(parameters, condition, wanted, rate):
        optimiser = torch.optim.Adam(parameters, rate)
        for _ in range(300):
            optimiser.zero_grad()
            model.loss(condition, z, wanted).mean().backward()
            if parameters[0] is vectors:
                vectors.grad[[0, 2, 3]] = 0
            optimiser.step()

    learn([*model.parameters()], old, log_totals, 2e-3)
    before = model.draw(old, z, uniform)
    learn([vectors], new, deeper, 2e-2)

    assert torch.equal(model.draw(old, z, uniform), before)
    assert abs(model.draw(new, z, uniform).log().median() - deeper.median()) < 0.15
