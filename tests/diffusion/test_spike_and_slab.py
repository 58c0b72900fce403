"""The expected data under a spike-and-slab prior, against Bayes' rule by numerical integration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scgen_diffusion.diffusion import spike_and_slab_mean


def expected(logit, mean, log_std, x_t, *, alpha=0.8, sigma=0.6, spike=-0.5):
    prior = torch.tensor([[[logit], [mean], [log_std]]])
    number = lambda value: torch.tensor([[float(value)]])
    return spike_and_slab_mean(prior, number(x_t), alpha=number(alpha), sigma=number(sigma), spike=number(spike)).item()


def integrate(logit, mean, log_std, x_t, *, alpha=0.8, sigma=0.6, spike=-0.5):
    """Sum the posterior over a fine grid of slab values, and over the spike."""
    std, pi = math.exp(log_std), 1 / (1 + math.exp(-logit))
    x = torch.linspace(mean - 10 * std, mean + 10 * std, 20_001, dtype=torch.float64)
    density = lambda value, centre, scale: torch.exp(-(((value - centre) / scale) ** 2) / 2) / scale
    slab = pi * density(x, mean, std) * density(x_t, alpha * x, sigma) * (x[1] - x[0]) / math.sqrt(2 * math.pi)
    atom = (1 - pi) * density(torch.tensor(float(x_t), dtype=torch.float64), alpha * spike, sigma)
    return ((slab * x).sum() + atom * spike).item() / (slab.sum() + atom).item()


@given(st.floats(-5, 5), st.floats(-2, 2), st.floats(-2, 1), st.floats(-3, 3))
def test_it_is_the_posterior_mean(logit, mean, log_std, x_t):
    # Float32 against a sum in double precision.
    assert expected(logit, mean, log_std, x_t) == pytest.approx(integrate(logit, mean, log_std, x_t), abs=2e-4)


def test_a_certain_spike_is_returned_exactly():
    assert expected(-200.0, 1.0, 0.0, 3.0) == -0.5


def test_without_noise_the_data_are_what_is_seen():
    assert expected(0.0, 0.0, 0.0, 1.2, alpha=1.0, sigma=1e-3) == pytest.approx(1.2, abs=1e-4)
    assert expected(0.0, 0.0, 0.0, -0.5, alpha=1.0, sigma=1e-3) == pytest.approx(-0.5, abs=1e-4)


def test_under_pure_noise_the_result_is_the_prior():
    assert expected(0.0, 2.0, 0.0, 5.0, alpha=1e-6, sigma=1.0) == pytest.approx((2.0 - 0.5) / 2, abs=1e-4)


def test_extreme_deviations_are_bounded():
    assert math.isfinite(expected(0.0, 0.0, 100.0, 1.0))
    assert math.isfinite(expected(0.0, 0.0, -100.0, 1.0))
