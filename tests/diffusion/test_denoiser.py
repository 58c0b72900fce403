"""Targets, how predictions are read, the loss, and data that are often exactly one number."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jvp

from scgen_diffusion.diffusion import (
    TARGETS,
    Denoiser,
    LinearInterpolant,
    VariancePreserving,
    diffusion_loss,
    spike_and_slab_mean,
)

PATHS = {"variance-preserving": VariancePreserving(), "straight": LinearInterpolant()}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
any_path, any_target = st.sampled_from(list(PATHS.values())), st.sampled_from(list(TARGETS.values()))


def draw(shape=(5, 3), seed=0):
    """Return data, noise and times away from both ends, where some targets do not determine one of the two."""
    generator = torch.Generator().manual_seed(seed)
    data, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return data, noise, 0.05 + 0.9 * torch.rand(shape[0], generator=generator, dtype=torch.float64)


def test_targets_are_what_their_names_say():
    (data, noise, t), path = draw(), LinearInterpolant()
    assert torch.equal(TARGETS["data"].of(data, noise), data)
    assert torch.equal(TARGETS["noise"].of(data, noise), noise)
    _, derivative = jvp(lambda s: path.interpolate(data, noise, s), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(TARGETS["velocity"].of(data, noise), derivative, rtol=1e-8, atol=1e-8)


@given(path=any_path, target=any_target, seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_a_right_prediction_is_read_as_data_and_noise(path, target, seed):
    data, noise, t = draw(seed=seed)
    denoiser = Denoiser(lambda x_t, times: target.of(data, noise), path, target)
    x_t = path.interpolate(data, noise, t)
    torch.testing.assert_close(tuple(denoiser.estimate(x_t, t)), (data, noise), rtol=1e-9, atol=1e-9)


@given(path=any_path, first=any_target, second=any_target, seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_any_prediction_adds_up_to_the_sample_and_survives_the_way_through_another_target(path, first, second, seed):
    prediction, x_t, t = draw(seed=seed)
    data, noise = first.to_data_and_noise(path, prediction, x_t, t)
    torch.testing.assert_close(path.interpolate(data, noise, t), x_t, rtol=1e-9, atol=1e-9)
    other = second.of(data, noise)
    back = first.of(*second.to_data_and_noise(path, other, x_t, t))
    torch.testing.assert_close(back, prediction, rtol=1e-7, atol=1e-7)


@every_path
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_the_velocity_is_informative_at_both_ends(path, t):
    target, (data, noise, _), t = TARGETS["velocity"], draw(), torch.tensor(t, dtype=torch.float64)
    prediction = target.of(data, noise)
    found = target.to_data_and_noise(path, prediction, path.interpolate(data, noise, t), t)
    torch.testing.assert_close(found, (data, noise), rtol=1e-9, atol=1e-9)


@every_path
@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_time_means_the_same_time_for_every_sample_and_precision_is_that_of_the_sample(path, target, dtype):
    x_t, one = draw((5, 2, 3))[0].to(dtype), torch.tensor(0.3, dtype=torch.float64)
    denoiser = Denoiser(lambda x, times: x.sin(), path, target)
    assert denoiser(x_t, one).dtype == dtype
    torch.testing.assert_close(denoiser(x_t, one), denoiser(x_t, one.repeat(5)), rtol=0, atol=0)
    both = [tuple(denoiser.estimate(x_t, t)) for t in (one, one.repeat(5))]
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=0)


@every_path
@every_target
@pytest.mark.parametrize("shape", [(50, 2), (4, 2, 3), (1, 1)])
def test_the_network_sees_its_own_time_and_is_asked_for_the_target_of_each_sample(path, target, shape):
    n, generator = shape[0], torch.Generator().manual_seed(0)
    data, noise, *_ = draw(shape)
    t, condition = path.draw_times(n, generator, "cpu").double(), torch.arange(n)[:, None]
    errors = torch.arange(n, dtype=torch.float64)

    def network(x_t, times, classes):
        assert torch.equal(times, path.network_time(t))
        assert torch.equal(classes, condition)
        assert torch.equal(x_t, path.interpolate(data, noise, t))
        return target.of(data, noise) + errors.view(n, *[1] * (len(shape) - 1))

    losses = diffusion_loss(network, path, target, data, noise=noise, t=t, condition=condition)
    torch.testing.assert_close(losses, errors**2, rtol=1e-9, atol=1e-20)
    of_floats = diffusion_loss(
        lambda x, *_: x, path, target, data.float(), noise=noise.float(), t=t, condition=condition
    )
    assert of_floats.dtype == torch.float32  # the precision of the data, whatever that of the times


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
@settings(deadline=None)
def test_the_expected_data_are_those_of_bayes_rule(logit, mean, log_std, x_t):
    # Float32 against a sum in double precision.
    assert expected(logit, mean, log_std, x_t) == pytest.approx(integrate(logit, mean, log_std, x_t), abs=2e-4)


def test_the_limits_of_certainty_noise_and_deviation():
    assert expected(-200.0, 1.0, 0.0, 3.0) == -0.5
    assert expected(0.0, 0.0, 0.0, 1.2, alpha=1.0, sigma=1e-3) == pytest.approx(1.2, abs=1e-4)
    assert expected(0.0, 0.0, 0.0, -0.5, alpha=1.0, sigma=1e-3) == pytest.approx(-0.5, abs=1e-4)
    assert expected(0.0, 2.0, 0.0, 5.0, alpha=1e-6, sigma=1.0) == pytest.approx((2.0 - 0.5) / 2, abs=1e-4)
    assert math.isfinite(expected(0.0, 0.0, 100.0, 1.0))
    assert math.isfinite(expected(0.0, 0.0, -100.0, 1.0))
