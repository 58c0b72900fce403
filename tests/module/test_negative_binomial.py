"""The two ways to compute the likelihood of counts, that of a CPU and that of other devices, agree."""

from __future__ import annotations

import pytest
import torch

from scgen_diffusion.module._likelihoods import OutlierCounts
from scgen_diffusion.module._negative_binomial import N_TABULATED, Entries, negative_binomial_log_likelihood

N_CELLS, N_GENES = 6, 9


def draw_case(*, per_cell=False, largest=40):
    generator = torch.Generator().manual_seed(0)
    shape = (N_CELLS, N_GENES)
    is_expressed = torch.rand(shape, generator=generator) < 0.5
    is_expressed[0] = False
    counts = torch.randint(0, largest, shape, generator=generator).double() * is_expressed
    log_mean = torch.randn(shape, generator=generator, dtype=torch.double, requires_grad=True)
    log_theta = torch.randn(shape if per_cell else N_GENES, generator=generator, dtype=torch.double, requires_grad=True)
    return counts, log_mean, log_theta


def build_outliers():
    outliers = OutlierCounts(N_GENES).double()
    outliers.log_share.copy_(torch.linspace(-3, 0, N_GENES))
    outliers.log_odds.data.fill_(-1.0)
    return outliers


def value_and_gradients(case, outliers, **options):
    learned = [*case[1:], *(outliers.parameters() if outliers else ())]
    if outliers:
        learned = learned[:-1]  # the common factor of means is applied before
    value = negative_binomial_log_likelihood(*case, outliers)
    weights = torch.linspace(0.5, 2, N_CELLS).double()  # a loss that does not weigh all cells alike
    return value.detach(), torch.autograd.grad((weights * value).sum(), learned, **options)


@pytest.mark.parametrize("entries", ["of_nonzero", "of_all"])
@pytest.mark.parametrize("with_outliers", [False, True])
@pytest.mark.parametrize("per_cell", [False, True])
@pytest.mark.parametrize("largest", [2, N_TABULATED, 40, 3000])
def test_the_gradient_is_that_of_finite_differences(monkeypatch, largest, per_cell, with_outliers, entries):
    monkeypatch.setattr(Entries, "of_nonzero", getattr(Entries, entries))
    (counts, *inputs), outliers = (
        draw_case(per_cell=per_cell, largest=largest),
        build_outliers() if with_outliers else None,
    )
    extra = tuple(outliers.parameters())[:-1] if outliers else ()

    def log_likelihood(log_mean, log_theta, *_):
        return negative_binomial_log_likelihood(counts, log_mean, log_theta, outliers)

    assert torch.autograd.gradcheck(log_likelihood, (*inputs, *extra))


def test_counts_that_are_no_whole_numbers_are_not_rounded():
    _, log_mean, log_theta = draw_case()
    counts = torch.full((N_CELLS, N_GENES), 1.5).double()

    found = negative_binomial_log_likelihood(counts, log_mean, log_theta)

    reference = torch.distributions.NegativeBinomial(log_theta.exp(), logits=log_mean - log_theta, validate_args=False)
    torch.testing.assert_close(found, reference.log_prob(counts).sum(1))


@pytest.mark.parametrize("log_theta", [5.0, 6.9, 7.0, 9.9])
def test_float32_has_digits_left_where_counts_are_hardly_dispersed(log_theta):
    x = torch.tensor([1.0, 2, 5, 50, 3000])
    theta = torch.full((len(x),), log_theta).exp()
    exact = theta.double()

    rise, slope = Entries.of_all(x).rising(theta)

    # about ten float32 steps of the terms; below the limit, of the digammas that are subtracted
    expected = (x + exact).lgamma() - exact.lgamma(), (x + exact).digamma() - exact.digamma()
    torch.testing.assert_close(rise.double(), expected[0], rtol=1e-6 if log_theta > 6.95 else 1e-4, atol=1e-6)
    torch.testing.assert_close(slope.double(), expected[1], rtol=2e-6 if log_theta > 6.95 else 1e-2, atol=0)


@pytest.mark.parametrize("entries", ["of_nonzero", "of_all"])
def test_means_leave_no_count_to_outliers_whose_responsibilities_have_no_weight(monkeypatch, entries):
    monkeypatch.setattr(Entries, "of_nonzero", getattr(Entries, entries))
    (counts, log_mean, log_theta), outliers = draw_case(), build_outliers()
    apart = log_mean.detach().clone().requires_grad_()  # the probability of an outlier depends on the mean, too
    odds = outliers.log_odds_at(apart)
    monkeypatch.setattr(outliers, "log_odds_at", lambda _: odds)
    case = counts, log_mean, log_theta
    value, (_, *of_others) = value_and_gradients(case, outliers, retain_graph=True)

    outliers.responsibility_weight.fill_(0.0)
    same_value, (for_mean, *same) = value_and_gradients(case, outliers)

    _, (alone, _) = value_and_gradients(case, None)
    torch.testing.assert_close([same_value, *same], [value, *of_others])
    torch.testing.assert_close(for_mean, alone)
