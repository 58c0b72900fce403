"""Errors of mean changes: what is learned from groups predicted from others, and the intervals."""

import pytest
import torch

from scgen_diffusion.module._change_error import ChangeError

N_GROUPS, N_GENES = 12, 4000
COVERAGE = 0.9
EQUAL = torch.full((N_GROUPS,), 1 / N_GROUPS).double()


def learned(seen):
    error = ChangeError(N_GROUPS, N_GENES)
    error.fit(torch.arange(N_GROUPS), *seen)
    return error


def world(seed=0):
    """Genes of four kinds of error, groups of three kinds of certainty, and changes that are a fifth wrong."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    per_gene = torch.tensor([0.0, 0.1, 0.5, 2.0]).double().repeat(N_GENES // 4)
    variances = torch.tensor([0.02, 0.05, 0.08]).double().repeat(N_GROUPS // 3)
    effects = normal(N_GENES) * (torch.arange(N_GENES) % 50 == 0) * 3

    def observe(variance):
        error = (variance * per_gene).sqrt() * normal(N_GENES) + 0.2 * (variance / 0.05) ** 0.5 * effects * normal(
            N_GENES
        )
        noise = 0.01 * (1 + torch.rand(N_GENES, generator=generator, dtype=torch.double))
        error = error + noise.sqrt() * normal(N_GENES)
        return error, effects + error, noise

    errors, changes, noise = (torch.stack(values) for values in zip(*map(observe, variances), strict=True))
    return (errors, changes, noise, variances), effects, observe


@pytest.mark.parametrize("variance", [0.05, 0.2])
def test_intervals_hold_nine_of_ten_changes(variance):
    seen, effects, observe = world()
    error = learned(seen)

    found, _, noise = observe(variance)
    departure = effects - EQUAL @ error.changes.double()
    inside = found.abs() <= error.half_width(variance, effects, departure, noise, COVERAGE)

    assert 0.87 < inside.double().mean() < 0.95
    assert 0.85 < inside[effects != 0].double().mean() <= 1


def test_genes_that_no_group_has_are_unknown_and_do_not_narrow_the_intervals_of_others():
    (errors, changes, noise, variances), effects, observe = world()
    found, _, noise_here = observe(0.05)
    usual = learned((errors, changes, noise, variances)).half_width(0.05, effects, effects * 0, noise_here, COVERAGE)
    lacking = torch.full((N_GROUPS, 1000), torch.nan, dtype=torch.double)
    padded = ChangeError(N_GROUPS, N_GENES + 1000)
    padded.fit(
        torch.arange(N_GROUPS), *(torch.cat([seen, lacking], dim=1) for seen in (errors, changes, noise)), variances
    )

    zeros = torch.zeros(1000).double()
    given = [torch.cat([values, zeros]) for values in (effects, effects * 0, noise_here)]
    widths = padded.half_width(0.05, *given, COVERAGE)

    torch.testing.assert_close(widths[:N_GENES], usual)
    assert widths[N_GENES:].isnan().all()
    assert padded.are_known.sum() == N_GENES


def test_genes_with_large_errors_have_wide_intervals():
    error, still = learned(world()[0]), torch.zeros(N_GENES).double()
    widths = error.half_width(0.05, still, still, still, COVERAGE)
    moved = error.half_width(0.05, still + 2, still, still, COVERAGE)

    by_kind = widths.view(-1, 4).mean(0)
    assert (by_kind.diff() > 0).all()
    assert (moved > widths).all()
    torch.testing.assert_close(error.half_width(0.2, still, still, still, COVERAGE), 2 * widths)


def test_perfect_predictions_leave_sampling_noise():
    error, zeros = ChangeError(4, 3), torch.zeros(4, 3)
    error.fit(torch.arange(4), zeros, torch.ones(4, 3), zeros, torch.full((4,), 0.1))

    widths = error.half_width(0.1, torch.ones(3).double(), torch.zeros(3), 4 * torch.ones(3), COVERAGE)

    torch.testing.assert_close(widths, torch.full((3,), 2 * 2.015).double(), atol=1e-2, rtol=0)  # t of 5 degrees


def test_the_variance_of_both_predictions_widens_the_interval():
    error, zeros = ChangeError(4, 3), torch.zeros(4, 3)
    error.fit(torch.arange(4), zeros, torch.ones(4, 3), zeros, torch.full((4,), 0.1))

    widths = error.half_width(0.1, torch.full((3,), 5.0), torch.full((3,), 4.0).double(), torch.zeros(3), COVERAGE)

    torch.testing.assert_close(widths, torch.full((3,), 8**0.5 * 2.015).double(), atol=1e-2, rtol=0)


def test_one_group_is_too_few():
    error = ChangeError(1, 3)
    error.fit(torch.zeros(1), *(torch.ones(1, 3) for _ in range(3)), torch.ones(1))

    assert error.half_width(1.0, torch.zeros(3), torch.zeros(3), torch.ones(3), COVERAGE).isnan().all()


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


def test_what_was_not_measured_teaches_nothing():
    (errors, changes, noise, variances), _, _ = world()
    few = [values[:3] for values in (errors, changes, noise)]
    some = [values.clone() for values in (errors, changes, noise)]
    for values in some:
        values[3:, : N_GENES // 2] = torch.nan

    error, of_three, of_all = ChangeError(N_GROUPS, N_GENES), ChangeError(3, N_GENES), learned(world()[0])
    error.fit(torch.arange(N_GROUPS), *some, variances)
    of_three.fit(torch.arange(3), *few, variances[:3])

    assert error.per_gene.isfinite().all()
    assert (error.changes[3:, : N_GENES // 2] == 0).all()
    half = N_GENES // 2
    assert torch.corrcoef(torch.stack([error.per_gene[:half], of_three.per_gene[:half]]))[0, 1] > 0.99
    assert torch.corrcoef(torch.stack([error.per_gene[half:], of_all.per_gene[half:]]))[0, 1] > 0.99
