"""What predictions miss of mean changes: learned where groups agree, and added to expected counts."""

import pytest
import torch

from scgen_diffusion.perturbation import MissedChanges

N_GROUPS, N_GENES, N_CELLS = 30, 400, 50
ALIKE, UNLIKE = torch.ones(N_GROUPS, N_GROUPS).double(), torch.eye(N_GROUPS).double()
OWN_CONTROLS = torch.eye(N_GROUPS).double() * 2 / N_CELLS
SAME_CONTROLS = torch.eye(N_GROUPS).double() / N_CELLS + 1 / N_CELLS


def draw(covariance, generator):
    root = torch.linalg.cholesky(covariance + 1e-9 * torch.eye(N_GROUPS))
    return root @ torch.randn(N_GROUPS, N_GENES, dtype=torch.double, generator=generator)


def expected(covariance, noise, errors, asked):
    """Return what is expected of cells with the covariances ``asked (groups,)``, ``(genes,)``."""
    variances = torch.ones(N_GENES, dtype=torch.double)
    missed = MissedChanges.learn(torch.arange(N_GROUPS), errors, variances, covariance, noise, 2000.0)
    values = torch.zeros(N_GENES, dtype=torch.double)
    values[missed.genes] = asked @ missed.weights.double()
    return values


def rms(values):
    return float(values.square().mean().sqrt())


@pytest.mark.parametrize("noise", [OWN_CONTROLS, SAME_CONTROLS], ids=["own controls", "same controls"])
@pytest.mark.parametrize("covariance", [ALIKE, UNLIKE], ids=["alike", "unlike"])
def test_of_sampling_noise_hardly_anything_is_learned(noise, covariance):
    errors = draw(noise, torch.Generator().manual_seed(0))

    found = expected(covariance, noise, errors, covariance[0])

    assert rms(found) < 0.3 * noise[0, 0].sqrt()


def test_what_all_groups_miss_is_found():
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(N_GENES, dtype=torch.double, generator=generator)

    found = expected(ALIKE, OWN_CONTROLS, signal + draw(OWN_CONTROLS, generator), ALIKE[0])

    assert rms(found - signal) < 1.2 * (OWN_CONTROLS[0, 0] / N_GROUPS).sqrt()


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
