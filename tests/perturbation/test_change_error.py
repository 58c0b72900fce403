"""Errors of mean changes: what is learned from groups predicted from others, and the intervals."""

import pytest
import torch

from scgen_diffusion.perturbation import ChangeError

N_GROUPS, N_GENES = 12, 4000
COVERAGE = 0.9


def world(seed=0):
    """Genes of four kinds of error, groups of three kinds of certainty, and changes that are a fifth wrong."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    per_gene = torch.tensor([0.0, 0.1, 0.5, 2.0]).double().repeat(N_GENES // 4)
    variances = torch.tensor([0.02, 0.05, 0.08]).double().repeat(N_GROUPS // 3)
    effects = normal(N_GENES) * (torch.arange(N_GENES) % 50 == 0) * 3

    def observe(variance):
        error = (variance * per_gene).sqrt() * normal(N_GENES)
        error = error + 0.2 * (variance / 0.05) ** 0.5 * effects * normal(N_GENES)
        noise = 0.01 * (1 + torch.rand(N_GENES, generator=generator, dtype=torch.double))
        error = error + noise.sqrt() * normal(N_GENES)
        return error, effects + error, noise

    errors, changes, noise = (torch.stack(values) for values in zip(*map(observe, variances), strict=True))
    return (errors, changes, noise, variances), effects, observe


@pytest.mark.parametrize("variance", [0.05, 0.2])
def test_intervals_hold_nine_of_ten_changes(variance):
    seen, effects, observe = world()
    error = ChangeError(N_GROUPS, N_GENES)
    error.fit(torch.arange(N_GROUPS), *seen)

    found, _, noise = observe(variance)
    departure = effects - error.changes.double().mean(0)
    inside = found.abs() <= error.half_width(variance, effects, departure, noise, COVERAGE)

    assert 0.87 < inside.double().mean() < 0.95
    assert 0.85 < inside[effects != 0].double().mean() <= 1


@pytest.mark.parametrize(
    ("change", "departure", "noise", "width"), [(1.0, 0.0, 4.0, 2 * 2.015), (5.0, 4.0, 0.0, 8**0.5 * 2.015)]
)
def test_perfect_predictions_leave_sampling_noise_and_the_variance_of_both(change, departure, noise, width):
    error, zeros = ChangeError(4, 3), torch.zeros(4, 3)
    error.fit(torch.arange(4), zeros, torch.ones(4, 3), zeros, torch.full((4,), 0.1))

    given = (torch.full((3,), value).double() for value in (change, departure, noise))
    widths = error.half_width(0.1, *given, COVERAGE)

    torch.testing.assert_close(widths, torch.full((3,), width).double(), atol=1e-2, rtol=0)  # t of 5 degrees


@pytest.mark.parametrize("size", [0.8, 2.0])
def test_a_decoder_is_believed_as_far_as_groups_depart_from_each_other(size):
    """Each departs by the variance 0.3 from what the others suggest, with a sampling variance of 0.1 on both sides."""
    generator = torch.Generator().manual_seed(0)
    departures = (0.3 + 0.2) ** 0.5 * torch.randn(N_GROUPS, N_GENES, dtype=torch.double, generator=generator)
    of_shift = torch.full((N_GROUPS,), 0.02).double()  # of which 0.008 is sampling
    noise = torch.full((N_GROUPS, N_GENES), 0.1).double()
    noise[0, 0] = torch.nan
    error = ChangeError(N_GROUPS, N_GENES)

    assert error.share(0.012, 0.008, departures[0]) == 1
    error.fit_departure(departures, of_shift, torch.full((N_GROUPS,), 0.008).double(), noise, of_shift / 5)
    found = error.share(0.012, 0.004, size * torch.ones(N_GENES))

    assert found == pytest.approx(min(2 * (0.3 + 0.1) / size**2, 1), rel=0.02)
