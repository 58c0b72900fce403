"""Mean changes of genes: what groups tell about others, how sure they are, and how the decoder is combined with it."""

import pytest
import torch

from scgen_diffusion.perturbation import GeneChanges

N_GROUPS, N_GENES, N_CELLS = 12, 400, 50
OWN_CONTROLS = torch.eye(N_GROUPS).double() * 2 / N_CELLS
SAME_CONTROLS = torch.eye(N_GROUPS).double() / N_CELLS + 1 / N_CELLS
ALIKE, UNLIKE = torch.ones(N_GROUPS, N_GROUPS).double(), torch.eye(N_GROUPS).double()
PARTLY = (ALIKE + UNLIKE) / 2
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
