"""The denoising loss, for flow matching, against its closed-form minimum for Gaussian data.

With data N(m, S) the best prediction is v(x, t) = m + K_t (x - t m), K_t = (t S - (1 - t) I) C_t^-1 and
C_t = t^2 S + (1 - t)^2 I, and what no prediction can explain is the conditional covariance S + I - K_t (t S - (1 - t)
I).
"""

import pytest
import torch

from scgen_diffusion.diffusion import PATHS, TARGETS, LinearInterpolant, diffusion_loss

MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)
N_SAMPLES = 100_000
VELOCITY = TARGETS["velocity"]


def slope(t):
    cross = t * COVARIANCE - (1 - t) * EYE
    return cross @ torch.linalg.inv(t**2 * COVARIANCE + (1 - t) ** 2 * EYE)


def least_loss(t):
    return torch.trace(COVARIANCE + EYE - slope(t) @ (t * COVARIANCE - (1 - t) * EYE)) / 2


def closed_form(t):
    """Return the best network at time ``t``."""
    return lambda x_t, times, condition: MEAN + (x_t - t * MEAN) @ slope(t).T


def draw_losses(network, t, n=N_SAMPLES):
    generator = torch.Generator().manual_seed(0)
    noise, standard = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    data = MEAN + standard @ torch.linalg.cholesky(COVARIANCE).T
    times = torch.full((n,), t, dtype=torch.float64)
    condition = torch.empty(n, 0, dtype=torch.long)
    return diffusion_loss(network, LinearInterpolant(), VELOCITY, data, noise=noise, t=times, condition=condition)


@pytest.mark.parametrize("t", [0.05, 0.3, 0.5, 0.9])
def test_loss_of_the_closed_form_velocity_is_the_variance_that_no_network_explains(t):
    losses = draw_losses(closed_form(t), t)
    standard_error = losses.std() / N_SAMPLES**0.5
    assert abs(losses.mean() - least_loss(t)) < 4 * standard_error


@pytest.mark.parametrize("t", [0.05, 0.3, 0.5, 0.9])
def test_loss_is_least_at_the_closed_form_velocity(t):
    shift = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    matrix = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)

    def perturbed(x_t, times, condition):
        return closed_form(t)(x_t, times, condition) + shift + (x_t - t * MEAN) @ matrix.T

    losses = draw_losses(perturbed, t)
    gradients = torch.autograd.grad(losses.mean(), [shift, matrix])
    # Gradients are means of 100 000 products of a residual and an input, both of order 1: standard error about 0.01.
    for gradient in gradients:
        assert gradient.abs().max() < 0.04


@pytest.mark.parametrize("t", [0.3, 0.9])
def test_a_wrong_prediction_costs_its_squared_distance_from_the_best(t):
    offset = torch.tensor([0.5, -0.3], dtype=torch.float64)
    best = draw_losses(closed_form(t), t)
    worse = draw_losses(lambda x, s, c: closed_form(t)(x, s, c) + offset, t)
    excess = worse - best
    assert abs(excess.mean() - offset.square().mean()) < 4 * excess.std() / N_SAMPLES**0.5


def test_regressing_the_velocity_on_the_path_finds_the_closed_form():
    # Least squares over all networks of the form b + A x: the loss's minimiser without any formula of ours.
    t = 0.7
    seen = []

    def remember(x_t, times, condition):
        seen.append(x_t)
        return torch.zeros_like(x_t)

    draw_losses(remember, t)
    generator = torch.Generator().manual_seed(0)
    noise, standard = (torch.randn(N_SAMPLES, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    data = MEAN + standard @ torch.linalg.cholesky(COVARIANCE).T
    inputs = torch.cat([torch.ones(N_SAMPLES, 1, dtype=torch.float64), seen[0]], dim=1)
    coefficients = torch.linalg.lstsq(inputs, data - noise).solution
    torch.testing.assert_close(coefficients[1:].T, slope(t), rtol=0, atol=0.03)  # standard error below 0.01


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3), (1, 1)])
def test_each_sample_has_its_own_mean_squared_error(shape):
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    t = torch.rand(len(data), generator=generator)
    condition = torch.arange(len(data))[:, None]

    def network(x_t, times, classes):
        return x_t.sin() * (times + classes[:, 0]).reshape(-1, *[1] * (x_t.ndim - 1))

    losses = diffusion_loss(network, LinearInterpolant(), VELOCITY, data, noise=noise, t=t, condition=condition)
    assert losses.shape == (len(data),)
    for i in range(len(data)):
        x_t = t[i] * data[i] + (1 - t[i]) * noise[i]
        expected = (x_t.sin() * (t[i] + i) - (data[i] - noise[i])).square().mean()
        torch.testing.assert_close(losses[i], expected, rtol=1e-5, atol=1e-6)  # single precision


def test_a_perfect_prediction_costs_nothing():
    data, noise = torch.ones(3, 2), torch.zeros(3, 2)
    t, condition = torch.rand(3), torch.empty(3, 0, dtype=torch.long)
    losses = diffusion_loss(
        lambda x_t, t, c: torch.ones_like(x_t),
        LinearInterpolant(),
        VELOCITY,
        data,
        noise=noise,
        t=t,
        condition=condition,
    )
    assert torch.equal(losses, torch.zeros(3))


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_loss_is_finite_at_both_ends_of_the_path(t):
    assert draw_losses(closed_form(t), t, n=100).isfinite().all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("path", PATHS)
def test_the_network_sees_its_own_time_and_is_asked_for_the_target(path, target):
    path, target = PATHS[path], TARGETS[target]
    generator = torch.Generator().manual_seed(0)
    data, noise = (torch.randn(50, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t, condition = path.draw_times(50, generator, "cpu").double(), torch.arange(50)[:, None]

    def network(x_t, times, classes):
        assert torch.equal(times, path.network_time(t))
        assert torch.equal(classes, condition)
        assert torch.equal(x_t, path.interpolate(data, noise, t))
        return target.of(path, data, noise, t) + 2

    losses = diffusion_loss(network, path, target, data, noise=noise, t=t, condition=condition)
    torch.testing.assert_close(losses, torch.full((50,), 4.0, dtype=torch.float64), rtol=1e-9, atol=0)


def test_precision_is_that_of_the_data_whatever_that_of_the_times():
    data, t = torch.ones(3, 2), torch.full((3,), 0.5, dtype=torch.float64)
    condition = torch.empty(3, 0, dtype=torch.long)
    losses = diffusion_loss(
        lambda x_t, k, c: x_t, PATHS["vp_linear"], TARGETS["v"], data, noise=data, t=t, condition=condition
    )
    assert losses.dtype == torch.float32
