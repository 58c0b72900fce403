"""Samplers against a flow that is known in closed form.

For data N(m, S), noise N(0, I) and x_t = t x_1 + (1 - t) x_0, x_t is Gaussian with mean t m and covariance
C_t = t^2 S + (1 - t)^2 I, and Cov(x_1 - x_0, x_t) = t S - (1 - t) I. So the velocity is

    v(x, t) = E[x_1 - x_0 | x_t = x] = m + (t S - (1 - t) I) C_t^-1 (x - t m).

Everything is diagonal in the eigenvectors of S, where d/dt log (x_t - t m) = 1/2 d/dt log C_t: the ODE carries the
noise x_0 to exactly m + S^(1/2) x_0. That map is affine, so a sampler's own map is found from the unit vectors, without
sampling.
"""

import math

import pytest
import torch

from scgen_diffusion.diffusion import (
    FLOW_SAMPLERS,
    DDIMSampler,
    FixedStepSampler,
    Generators,
    UnmaskingSampler,
)
from scgen_diffusion.diffusion._samplers import euler_step

MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[2.0, 0.6, 0.0], [0.6, 0.5, -0.2], [0.0, -0.2, 0.3]], dtype=torch.float64)
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2}
EVALUATIONS_PER_STEP = {"euler": 1, "midpoint": 2, "heun": 2}


def gaussian_velocity(x, t):
    eye = torch.eye(len(MEAN), dtype=x.dtype)
    mean, covariance, t = MEAN.to(x.dtype), COVARIANCE.to(x.dtype), t.to(x.dtype)
    gain = (t * covariance - (1 - t) * eye) @ torch.linalg.inv(t**2 * covariance + (1 - t) ** 2 * eye)
    return mean + (x - t * mean) @ gain.T


def square_root(covariance):
    values, vectors = torch.linalg.eigh(covariance)
    return vectors @ values.sqrt().diag() @ vectors.T


def mean_and_factor(sampler, **options):
    """Return ``b`` and ``A`` of the map ``x_0 -> b + A x_0`` that a sampler makes of the Gaussian flow."""
    starts = torch.cat([torch.zeros(1, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)])
    ends = sampler(gaussian_velocity, starts, **options)
    return ends[0], (ends[1:] - ends[0]).T


class CountingField:
    def __init__(self, field=gaussian_velocity):
        self.field = field
        self.times = []

    def __call__(self, x, t):
        self.times.append(float(t))
        return self.field(x, t)


# Steps, and twice the error that was measured with them, about.
STEPS_AND_ERROR = {"euler": (50, 0.2), "midpoint": (25, 1e-4), "heun": (25, 3e-3)}


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_flow_from_noise_reproduces_mean_and_covariance_of_gaussian_data(name):
    n_steps, atol = STEPS_AND_ERROR[name]
    mean, factor = mean_and_factor(FLOW_SAMPLERS[name], n_steps=n_steps)
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=atol)
    torch.testing.assert_close(factor @ factor.T, COVARIANCE, rtol=0, atol=atol)
    torch.testing.assert_close(factor, square_root(COVARIANCE), rtol=0, atol=atol)


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_error_falls_with_the_order_of_the_method(name, order):
    # dx/dt = 2 (t + 1/2) x (1 - x) is solved by 1 / (1 + (1 / x_0 - 1) exp(-t^2 - t)). (On the Gaussian flow, midpoint
    # gains an order, which would hide a mistake.)
    def error(n_steps):
        start = torch.full((1, 1), 0.2, dtype=torch.float64)
        end = FLOW_SAMPLERS[name](lambda x, t: 2 * (t + 0.5) * x * (1 - x), start, n_steps=n_steps)
        return abs(end.item() - 1 / (1 + 4 * math.exp(-2)))

    errors = [error(n) for n in (40, 80, 160)]
    slopes = [math.log2(coarse / fine) for coarse, fine in zip(errors[:-1], errors[1:], strict=True)]
    assert slopes == pytest.approx([order] * 2, abs=0.1)  # the next term of the expansion still shows at these steps


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_error_on_the_gaussian_flow_falls_at_least_with_the_order_of_the_method(name, order):
    def error(n_steps):
        return (mean_and_factor(FLOW_SAMPLERS[name], n_steps=n_steps)[1] - square_root(COVARIANCE)).abs().max().item()

    assert math.log2(error(20) / error(80)) / 2 > order - 0.1


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_n_steps_is_honoured(name, n_steps):
    field = CountingField()
    FLOW_SAMPLERS[name](field, torch.zeros(2, 3), n_steps=n_steps)
    assert len(field.times) == n_steps * EVALUATIONS_PER_STEP[name]
    assert min(field.times) == 0
    assert max(field.times) <= 1


@pytest.mark.parametrize("name", ORDERS)
def test_without_n_steps_the_default_is_taken(name):
    field = CountingField()
    FLOW_SAMPLERS[name](field, torch.zeros(2, 3))
    assert len(field.times) == FLOW_SAMPLERS[name].default_n_steps * EVALUATIONS_PER_STEP[name]


def test_no_steps_at_all_are_refused():
    field = CountingField()
    with pytest.raises(ValueError, match="n_steps"):
        FLOW_SAMPLERS["euler"](field, torch.zeros(2, 3), n_steps=0)
    assert not field.times


@pytest.mark.parametrize(
    "build",
    [lambda n: FixedStepSampler(euler_step, n), lambda n: DDIMSampler(default_n_steps=n), UnmaskingSampler],
    ids=["flow", "diffusion", "masking"],
)
@pytest.mark.parametrize("n_steps", [0, 2.5])
def test_a_sampler_has_at_least_one_step_by_default(build, n_steps):
    with pytest.raises(ValueError, match=f"`default_n_steps` must be a whole number .* but found {n_steps}"):
        build(n_steps)


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_a_constant_field_is_integrated_exactly(name):
    x = torch.arange(12.0).reshape(2, 3, 2)
    ends = FLOW_SAMPLERS[name](lambda x, t: torch.full_like(x, 2.5), x)
    torch.testing.assert_close(ends, x + 2.5, rtol=1e-5, atol=1e-5)  # rounding of 50 single-precision additions


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_shape_and_precision_are_those_of_the_noise(name):
    for dtype in (torch.float32, torch.float64):
        ends = FLOW_SAMPLERS[name](lambda x, t: -x, torch.ones(2, 3, 4, dtype=dtype))
        assert ends.shape == (2, 3, 4)
        assert ends.dtype == dtype


@pytest.mark.parametrize("name", ORDERS)
def test_fixed_steps_do_not_make_samples_depend_on_each_other(name):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = FLOW_SAMPLERS[name](gaussian_velocity, x)
    alone = torch.cat([FLOW_SAMPLERS[name](gaussian_velocity, row) for row in x.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_flow_samplers_draw_nothing(name):
    x, generators = torch.ones(2, 3, dtype=torch.float64), Generators(0, range(2))
    ends = FLOW_SAMPLERS[name](gaussian_velocity, x, generators=generators)
    assert torch.equal(ends, FLOW_SAMPLERS[name](gaussian_velocity, x))
    assert torch.equal(generators.normal(3), Generators(0, range(2)).normal(3))


def test_a_custom_step_can_be_used():
    def exact_step(field, x, t, dt):
        return x * dt.exp()

    ends = FixedStepSampler(exact_step, default_n_steps=5)(lambda x, t: x, torch.ones(1, 1, dtype=torch.float64))
    assert ends.item() == pytest.approx(math.e, rel=1e-6)  # times are in single precision
