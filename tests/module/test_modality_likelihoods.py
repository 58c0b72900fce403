"""Likelihoods of zeros and ones, and of several modalities together."""

from __future__ import annotations

import pytest
import torch

from scgen_diffusion.diffusion import Generators
from scgen_diffusion.module._likelihoods import (
    BernoulliLikelihood,
    MultimodalLikelihood,
    NegativeBinomialLikelihood,
    total_rate,
)

SINGLE = {"rtol": 1e-4, "atol": 1e-4}  # sums of float32 terms


@pytest.fixture
def outputs():
    return torch.randn(6, 8, 1, generator=torch.Generator().manual_seed(0))


def generator():
    return torch.Generator().manual_seed(0)


def test_the_expected_number_of_ones_is_the_library_size(outputs):
    library = torch.tensor([[0.5], [1.0], [3.0], [5.0], [7.0], [7.4]])

    mean = BernoulliLikelihood().mean(outputs, library)

    assert ((mean > 0) & (mean <= 1)).all()
    torch.testing.assert_close(mean.sum(1, keepdim=True), library, rtol=1e-3, atol=1e-3)  # Newton's steps are few


def test_a_bernoulli_likelihood_is_that_of_its_means(outputs):
    library = torch.full((6, 1), 3.0)
    target = (torch.rand(6, 8, generator=generator()) < 0.4).float()
    mean = BernoulliLikelihood().mean(outputs, library)

    expected = torch.distributions.Bernoulli(mean).log_prob(target).sum(1)

    torch.testing.assert_close(BernoulliLikelihood()(target, outputs, library), expected, **SINGLE)


def test_impossible_features_have_finite_gradients():
    outputs = torch.tensor([[[0.0], [-200.0], [5.0]]], requires_grad=True)
    target = torch.tensor([[1.0, 1.0, 0.0]])

    BernoulliLikelihood()(target, outputs, torch.full((1, 1), 2.0)).sum().backward()

    assert outputs.grad.isfinite().all()


def test_the_rate_has_the_derivative_of_the_root():
    share = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64, requires_grad=True)
    n_ones = torch.tensor([[1.7]], dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(total_rate, (share, n_ones))


def test_more_ones_than_there_are_features_are_no_endless_search():
    assert total_rate(torch.full((1, 4), 0.25), torch.tensor([[40.0]])).isfinite().all()


def test_draws_have_their_means(outputs):
    library = torch.full((6, 1), 4.0)
    likelihood = BernoulliLikelihood()
    parameters = likelihood.parameters_per_cell(outputs, library)[:1].expand(4000, -1, -1)

    drawn = likelihood.sample(parameters, Generators(0, range(4000)))

    # five standard errors of a mean of 4 000 draws with a variance of at most 1/4
    torch.testing.assert_close(
        drawn.mean(0), likelihood.mean(outputs, library)[0], rtol=0, atol=5 * (0.25 / 4000) ** 0.5
    )


def two_modalities():
    parts = [NegativeBinomialLikelihood(3), BernoulliLikelihood()]
    outputs = [torch.randn(4, n, 1, generator=generator()) for n in (3, 5)]
    return MultimodalLikelihood(parts, [3, 5]), parts, outputs


def test_modalities_of_a_cell_add_up_and_missing_ones_say_nothing():
    together, parts, outputs = two_modalities()
    sizes = torch.tensor([[10.0, 2.0]] * 4)
    target = torch.cat([torch.full((4, 3), 2.0), torch.tensor([[1.0, 0, 1, 0, 0]] * 4)], dim=1)
    target[0, 3:] = 0
    target[1, :3] = 0

    own = [
        part(x, o, size)
        for part, x, o, size in zip(parts, target.split([3, 5], 1), outputs, sizes.split(1, 1), strict=True)
    ]

    expected = torch.stack([own[0][0], own[1][1], own[0][2] + own[1][2], own[0][3] + own[1][3]])
    torch.testing.assert_close(together(target, outputs, sizes), expected)


# --- other parameters, the same residuals -----------------------------------------------------------------------------


def test_counterfactual_ones_are_distributed_as_the_new_parameters_say():
    likelihood, n_cells = BernoulliLikelihood(), 40_000
    before, after = (
        torch.tensor([values]).expand(n_cells, -1, -1) for values in ([0.5, 0.3, 0.9, 0.02], [0.5, 0.6, 0.2, 0.04])
    )
    x = likelihood.sample(before, Generators(0, range(n_cells)))

    drawn = likelihood.counterfactual(x, before, after, Generators(1, range(n_cells)))

    assert torch.equal(drawn[:, 0], x[:, 0])  # its parameter stays
    assert (drawn[:, 1] >= x[:, 1]).all()
    assert (drawn[:, 2] <= x[:, 2]).all()
    mean = after[0, 0]
    assert ((drawn.mean(0) - mean).abs() <= 5 * (mean * (1 - mean) / n_cells).sqrt()).all()


def test_a_modality_that_a_cell_lacks_is_drawn_and_its_neighbours_do_not_notice():
    parts = [NegativeBinomialLikelihood(4, outliers=False), BernoulliLikelihood()]
    joint, n_cells = MultimodalLikelihood(parts, [4, 4]), 20_000
    means = torch.tensor([2.0, 1.0, 0.5, 3.0]), torch.tensor([0.5, 0.1, 0.9, 0.3])
    same = torch.cat([means[0], torch.full((4,), 3.0), means[1]]).expand(n_cells, -1)
    x = joint.sample(same, Generators(0, range(n_cells)))
    lacking = x.clone()
    lacking[::2, 4:] = 0

    drawn = joint.counterfactual(lacking, same, same, Generators(1, range(n_cells)))

    for part in (slice(4), slice(4, 8)):  # a modality without any count counts as lacking
        has = (lacking[:, part] > 0).any(1)
        assert torch.equal(drawn[has, part], x[has, part])
    torch.testing.assert_close(drawn[::2, 4:].mean(0), means[1], rtol=0, atol=0.03)
