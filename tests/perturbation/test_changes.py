"""Mean changes of genes: what groups tell about others, how sure they are, and what predictions miss of them."""

import pytest
import torch

from scgen_diffusion.perturbation import GeneChanges, MissedChanges, variance_of_sums

N_GROUPS, N_MISSED, N_GENES, N_CELLS = 12, 30, 400, 50


def own_controls(n):
    return torch.eye(n).double() * 2 / N_CELLS


def same_controls(n):
    return torch.eye(n).double() / N_CELLS + 1 / N_CELLS


OWN_CONTROLS, SAME_CONTROLS = own_controls(N_GROUPS), same_controls(N_GROUPS)
ALL_ALIKE = torch.ones(N_MISSED, N_MISSED).double()
ALIKE, UNLIKE = torch.ones(N_GROUPS, N_GROUPS).double(), torch.eye(N_GROUPS).double()
KERNELS = [(torch.tensor([share, 1.0, 1.0, 1.0]), share * ALIKE + (1 - share) * UNLIKE) for share in (0, 0.5, 0.97)]


def draw(covariance, generator):
    root = torch.linalg.cholesky(covariance + 1e-9 * torch.eye(len(covariance)))
    return root @ torch.randn(len(covariance), N_GENES, dtype=torch.double, generator=generator)


def learned(changes, noise=OWN_CONTROLS, kernels=KERNELS):
    process = GeneChanges(*changes.shape, changes.isfinite().unique(dim=1).shape[1])
    process.fit(changes, torch.ones(N_GENES, dtype=torch.double), noise, kernels)
    return process


def rms(values):
    return float(values.square().mean().sqrt())


@pytest.mark.parametrize("noise", [OWN_CONTROLS, SAME_CONTROLS], ids=["own controls", "same controls"])
def test_of_sampling_noise_hardly_anything_is_learned(noise):
    process = learned(draw(noise, torch.Generator().manual_seed(0)), noise)

    changes, _ = process(ALIKE[:1], torch.ones(1))

    assert rms(changes.mean) < 0.3 * noise[0, 0].sqrt()
    assert (changes.mean.abs() < 1.65 * (changes.variance + noise[0, 0]).sqrt()).double().mean() > 0.99


@pytest.mark.parametrize(
    ("share", "least"), [(0.0, 0.83), (0.5, 0.83), (0.97, 0.7)]
)  # one draw tells little of its variance
def test_the_kernel_is_the_most_probable_one_and_intervals_hold_what_is_measured(share, least):
    generator = torch.Generator().manual_seed(0)
    truth = draw(share * ALIKE + (1 - share) * UNLIKE, generator)
    # the last group is never seen
    process = learned(
        (truth + draw(OWN_CONTROLS, generator))[:-1],
        OWN_CONTROLS[:-1, :-1],
        [(options, kernel[:-1, :-1]) for options, kernel in KERNELS],
    )

    found, explained = process(torch.full((1, N_GROUPS - 1), share), torch.ones(1))

    assert process.kernel[0] == pytest.approx(share)
    assert least < ((found.mean - truth[-1:]).abs() < 1.645 * found.variance.sqrt()).double().mean() < 0.97
    assert float(explained) == pytest.approx(share * (1 - (1 - share) / (N_GROUPS * share + 1e-9)), abs=0.1)


def test_a_gene_learns_from_the_groups_that_measured_it():
    generator = torch.Generator().manual_seed(0)
    changes = 1 + draw(OWN_CONTROLS, generator)
    changes[3:, :100], changes[:, 100:110] = torch.nan, torch.nan
    told, _ = learned(changes, kernels=KERNELS[2:])(torch.full((1, N_GROUPS), 0.97), torch.ones(1))

    assert rms(told.mean[0, :100] - 1) < 0.3
    assert told.variance[0].isnan().nonzero()[:, 0].tolist() == list(range(100, 110))
    assert told.variance[0, :100].mean() > told.variance[0, 110:].mean()


@pytest.mark.parametrize("n_groups", [0, 1])
def test_too_few_groups_tell_no_intervals(n_groups):
    process = GeneChanges(n_groups, N_GENES)
    if n_groups:
        process = learned(torch.ones(1, N_GENES).double(), OWN_CONTROLS[:1, :1], [(k, m[:1, :1]) for k, m in KERNELS])

    found, explained = process(torch.zeros(1, n_groups), torch.ones(1))

    assert (found.mean == 0).all()
    assert found.variance.isnan().all()
    assert explained == 0


def expected(covariance, noise, errors, asked):
    """Return what is expected of cells with the covariances ``asked (groups,)``, ``(genes,)``."""
    variances = torch.ones(N_GENES, dtype=torch.double)
    missed = MissedChanges.learn(torch.arange(N_MISSED), errors, variances, covariance, noise, 2000.0)
    values = torch.zeros(N_GENES, dtype=torch.double)
    values[missed.genes] = asked @ missed.weights.double()
    return values


@pytest.mark.parametrize(
    "noise", [own_controls(N_MISSED), same_controls(N_MISSED)], ids=["own controls", "same controls"]
)
@pytest.mark.parametrize("covariance", [ALL_ALIKE, torch.eye(N_MISSED).double()], ids=["alike", "unlike"])
def test_of_sampling_noise_hardly_anything_is_taken_for_missed(noise, covariance):
    errors = draw(noise, torch.Generator().manual_seed(0))

    found = expected(covariance, noise, errors, covariance[0])

    assert rms(found) < 0.3 * noise[0, 0].sqrt()


def test_what_all_groups_miss_is_found():
    noise, generator = own_controls(N_MISSED), torch.Generator().manual_seed(0)
    signal = torch.randn(N_GENES, dtype=torch.double, generator=generator)

    found = expected(ALL_ALIKE, noise, signal + draw(noise, generator), ALL_ALIKE[0])

    assert rms(found - signal) < 1.2 * (noise[0, 0] / N_MISSED).sqrt()


@pytest.mark.parametrize("mean", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("change", [-0.03, 0.1])
def test_factors_change_the_mean_of_log_normalised_counts(mean, change):
    missed = MissedChanges(1, 1)
    missed.genes[:], missed.weights[:], missed.depth[...] = 0, change, 2000.0
    means = torch.tensor([[mean, 2000.0 - mean]])
    factor = missed.log_factors(means, missed(torch.ones(1, 1).double(), 2)).exp()

    generator = torch.Generator().manual_seed(0)
    before, after = (
        torch.poisson(m.expand(400_000), generator=generator) for m in (means[0, 0], (means * factor)[0, 0])
    )
    found = (5 * after).log1p().mean() - (5 * before).log1p().mean()

    assert factor[0, 1] == 1
    assert float(found) == pytest.approx(change, abs=0.01)


def test_a_gene_counts_as_if_one_more_cell_expressed_it():
    """Otherwise genes without molecules among few cells would have no sampling noise."""
    n, n_expressing, value = torch.full((3,), 10.0), torch.tensor([0.0, 1.0, 5.0]), 2.0

    found = variance_of_sums(n, n_expressing * value, n_expressing * value**2)

    share = (n_expressing + 1) / 11
    torch.testing.assert_close(found, value**2 * share * (1 - share) * 10 / 9)
    assert variance_of_sums(torch.ones(3), n_expressing, n_expressing).isnan().all()
