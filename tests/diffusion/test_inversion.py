"""Inversion against closed forms: the probability flow between normal distributions and noise is known."""

from __future__ import annotations

import pytest
import torch

from scgen_diffusion.diffusion import (
    FLOW_SAMPLERS,
    TARGETS,
    DDIMSampler,
    DDPMSampler,
    Denoiser,
    Generators,
    LinearInterpolant,
    VariancePreserving,
)

PATH = LinearInterpolant()
OWN, NEW = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])
STD = torch.tensor([0.5, 1.5])


def denoiser_of(mean, std, path=PATH):
    """Return the best denoiser of independent normal data."""

    def expected_data(x, network_time):
        t = path.time(network_time)
        alpha, sigma = path.alpha(t), path.sigma(t)
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)

    return Denoiser(expected_data, path, TARGETS["data"])


def velocity_of(mean, std):
    """Return the field itself, which is finite at the data, too."""

    def velocity(x, t):
        alpha, sigma = PATH.alpha(t), PATH.sigma(t)
        rate = (alpha * std**2 - sigma) / (alpha**2 * std**2 + sigma**2)
        return mean + rate * (x - alpha * mean)

    return velocity


def normal_data(n=50):
    return OWN + STD * torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def generators(n=50):
    return Generators(0, range(n))


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("midpoint", 2)])
def test_the_counterfactual_converges_to_the_exact_map(name, order):
    x = normal_data()

    def error(n_steps):
        found = FLOW_SAMPLERS[name].invert(velocity_of(OWN, STD), velocity_of(NEW, 1.5 * STD), x, n_steps=n_steps)
        return (found - (NEW + 1.5 * (x - OWN))).abs().max().item()

    assert error(80) < (0.1 if order == 1 else 1e-3)
    assert error(40) / error(80) > 0.85 * 2**order


@pytest.mark.parametrize("name", ["euler", "midpoint"])
@pytest.mark.parametrize("n_steps", [1, 3, 10])
def test_there_and_back_returns_the_data_however_few_steps_there_are(name, n_steps):
    field, x = velocity_of(OWN, STD), normal_data()

    found = FLOW_SAMPLERS[name].invert(field, field, x, n_steps=n_steps)

    assert torch.equal(found, x)


@pytest.mark.parametrize(
    ("sampler", "field_of"), [(FLOW_SAMPLERS["midpoint"], velocity_of), (DDPMSampler(default_n_steps=50), denoiser_of)]
)
def test_data_are_carried_over_one_by_one(sampler, field_of):
    own, new, x = field_of(OWN, STD), field_of(NEW, 2 * STD), normal_data()

    few = sampler.invert(own, new, x[7:9], generators=Generators(0, [7, 8]))

    assert torch.equal(few, sampler.invert(own, new, x, generators=generators())[7:9])


@pytest.mark.parametrize("path", [LinearInterpolant(), VariancePreserving()])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n_steps", [1, 7])
def test_the_noise_of_the_data_leads_to_the_data(path, eta, n_steps):
    denoiser, x = denoiser_of(OWN, STD, path), normal_data()

    found = DDIMSampler(eta=eta).invert(denoiser, denoiser, x, n_steps=n_steps, generators=generators())

    assert torch.equal(found, x)


@pytest.mark.parametrize("path", [LinearInterpolant(), VariancePreserving()])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n_steps", [1, 2, 20])
def test_distributions_of_one_shape_differ_by_a_shift_in_any_number_of_steps(path, eta, n_steps):
    own, new, x = denoiser_of(OWN, STD, path), denoiser_of(NEW, STD, path), normal_data()

    found = DDIMSampler(eta=eta).invert(own, new, x, n_steps=n_steps, generators=generators())

    signal = path.alpha(torch.zeros(1, dtype=torch.float64)).item()  # of the data at the noisiest time: 0.006 at most
    torch.testing.assert_close(found, x + NEW - OWN, atol=5 * signal + 1e-5, rtol=0)


@pytest.mark.parametrize(("own", "new"), [((1.0, 0.5), (3.0, 1.0)), ((0.0, 0.0), (0.0, 1.0))])
def test_where_the_spread_differs_the_law_is_right(own, new):
    """Also where many noises lead to one value, which the flow back cannot separate: it gets one of them."""
    x = own[0] + own[1] * torch.randn(4, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    found = DDPMSampler().invert(denoiser_of(*own), denoiser_of(*new), x, n_steps=100, generators=generators(4))

    assert found.mean().item() == pytest.approx(new[0], abs=0.05)  # of 20 000 values
    assert found.std().item() == pytest.approx(new[1], rel=0.05)  # of 100 steps
