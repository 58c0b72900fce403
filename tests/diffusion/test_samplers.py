"""Samplers on Gaussian data, where all is known in closed form.

For data N(m, S) the best denoiser is E[data | x_t] = m + alpha S C_t^-1 (x_t - alpha m) with C_t = alpha^2 S + sigma^2
I, and the probability-flow ODE carries x_t to alpha_s m + C_s^(1/2) C_t^(-1/2) (x_t - alpha_t m). Every sampler is then
an affine map of the noise that it starts from and of the noise that it draws: unit vectors show the map, and nothing is
left to chance.
"""

import math

import numpy as np
import pytest
import torch

from scgen_diffusion.diffusion import (
    DIFFUSION_SAMPLERS,
    FLOW_SAMPLERS,
    TARGETS,
    DDIMSampler,
    DDPMSampler,
    Denoiser,
    DPMSolverSampler,
    FixedStepSampler,
    Generators,
    LinearInterpolant,
    Masking,
    UnmaskingSampler,
    VariancePreserving,
    check_sampler,
    samplers_for,
)
from scgen_diffusion.diffusion._samplers import _integral, euler_step, levels_at

MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[2.0, 0.9], [0.9, 0.6]], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)
PATH, STRAIGHT = VariancePreserving(), LinearInterpolant()
OF_DIFFUSION = {**DIFFUSION_SAMPLERS, "ddim_half": DDIMSampler(eta=0.5), "ddim_one": DDIMSampler(eta=1.0)}
PATH_AND_SAMPLER = {name: (PATH, sampler) for name, sampler in OF_DIFFUSION.items()}
PATH_AND_SAMPLER |= {name: (STRAIGHT, sampler) for name, sampler in FLOW_SAMPLERS.items()}
EVALUATIONS = {"midpoint": 2}  # in a step; others have one
DEFAULT_STEPS = {"ddpm": 1000, "dpm_solver": 20, "dpm_solver_3m": 12, "euler": 50, "midpoint": 10}
per_sampler = pytest.mark.parametrize(("path", "sampler"), PATH_AND_SAMPLER.values(), ids=PATH_AND_SAMPLER)


def root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.sqrt().diag() @ vectors.T


def covariance_at(path, t):
    return path.alpha(t) ** 2 * COVARIANCE + path.sigma(t) ** 2 * EYE


def best_estimate(path, x_t, t):
    """Return the closed-form data and noise of ``x_t`` at one time."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    residual = (x_t - alpha * MEAN) @ torch.linalg.inv(covariance_at(path, t))
    return MEAN + alpha * residual @ COVARIANCE, sigma * residual


def build_denoiser(path=PATH, counts=None):
    """Return the best denoiser, by a network that sees its own time, predicts the velocity, and keeps count."""
    target = TARGETS["velocity"]

    def network(x_t, k):
        if counts is not None:
            counts.append(float(k))
        t = path.time(k).double()
        return target.of(*best_estimate(path, x_t.double(), t)).to(x_t.dtype)

    return Denoiser(network, path, target)


def exact_end(path, x, times=(0.0, 1.0)):
    """Carry ``x`` along the probability-flow ODE from the first to the last of ``times``."""
    first, last = torch.as_tensor(times, dtype=torch.float64)
    carry = root(covariance_at(path, last)) @ torch.linalg.inv(root(covariance_at(path, first)))
    return path.alpha(last) * MEAN + (x - path.alpha(first) * MEAN) @ carry.T


def start(n=5):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sample_cells(path, sampler, indices, dtype=torch.float64, **options):
    generators = Generators(3, indices)
    x = generators.normal(2).to(dtype)
    return sampler(build_denoiser(path), x, generators=generators, **options)


# --- the distribution of samples, and the errors of solvers -----------------------------------------------------------


class UnitNoise:
    """Give each sample at most one unit vector of noise: the first none, the others one per draw and dimension."""

    def __init__(self, n_draws):
        self.columns = torch.cat([torch.zeros(1, 2 * n_draws), torch.eye(2 * n_draws)])
        self.n_drawn = 0

    def __len__(self):
        return len(self.columns)

    def normal(self, *shape):
        drawn = self.columns[:, 2 * self.n_drawn : 2 * self.n_drawn + 2]
        self.n_drawn += 1
        return drawn


# Steps, and twice the error of the covariance that was measured with them, about. The mean's error is that of the
# start: noise of mean 0 instead of alpha m, where alpha is 0.0064 for the linear schedule.
STEPS_AND_ERROR = {
    "ddpm": (300, 0.05),
    "ddim": (200, 0.06),
    "ddim_half": (200, 0.08),
    "ddim_one": (300, 0.1),
    "dpm_solver": (40, 0.04),
    "dpm_solver_3m": (40, 0.06),
    "euler": (50, 0.2),
    "midpoint": (25, 1e-4),
}


@pytest.mark.parametrize("name", STEPS_AND_ERROR)
def test_samples_have_the_mean_and_covariance_of_gaussian_data(name):
    (path, sampler), (n_steps, atol), noise = PATH_AND_SAMPLER[name], STEPS_AND_ERROR[name], UnitNoise(301)
    ends = sampler(build_denoiser(path), noise.normal(2).double(), n_steps=n_steps, generators=noise)
    factors = ends[1:] - ends[0]
    torch.testing.assert_close(ends[0], MEAN, rtol=0, atol=atol if path is STRAIGHT else 0.01)
    torch.testing.assert_close(factors.T @ factors, COVARIANCE, rtol=0, atol=atol)


def falls_with_order(error, order):
    """Return whether an error of so many steps falls with an order; the next term of the expansion still shows."""
    errors = [error(n) for n in (40, 80, 160)]
    slopes = [math.log2(coarse / fine) for coarse, fine in zip(errors[:-1], errors[1:], strict=True)]
    return slopes == pytest.approx([order] * 2, abs=0.1)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("midpoint", 2)])
def test_error_of_a_flow_falls_with_the_order_of_the_method(name, order):
    # dx/dt = 2 (t + 1/2) x (1 - x) is solved by 1 / (1 + (1 / x_0 - 1) exp(-t^2 - t)). (On the Gaussian flow, midpoint
    # gains an order, which would hide a mistake.)
    def error(n_steps):
        x = torch.full((1, 1), 0.2, dtype=torch.float64)
        end = FLOW_SAMPLERS[name](lambda x, t: 2 * (t + 0.5) * x * (1 - x), x, n_steps=n_steps)
        return abs(end.item() - 1 / (1 + 4 * math.exp(-2)))

    assert falls_with_order(error, order)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm_solver", 2)])
def test_error_of_diffusion_falls_with_the_order_of_the_solver(name, order):
    path, x = PATH, start()
    t = torch.linspace(0, 1 - 1 / path.n_timesteps, 100_001, dtype=torch.float64)
    log_snr = (path.alpha(t) / path.sigma(t)).log()
    # The last step returns the estimated data, which are compared with those of the exact solution at timestep 0.
    exact = best_estimate(path, exact_end(path, x, (0.0, t[-1])), t[-1])[0]

    def error(n_steps):
        """Return the largest distance to the exact solution after equal steps of the log SNR, and one to the data."""
        times = torch.from_numpy(np.interp(np.linspace(log_snr[0], log_snr[-1], n_steps + 1), log_snr, t))
        levels = levels_at(path, torch.cat([times, torch.ones(1)]), x)
        ends = DIFFUSION_SAMPLERS[name].carry(build_denoiser(path), x, levels, None)
        return (ends - exact).abs().max().item()

    assert falls_with_order(error, order)


def test_data_on_a_parabola_of_the_log_snr_are_half_corrected_by_a_third_prediction():
    # As the authors' code has it: the slope is that of the parabola, of which half of the curvature is integrated.
    known = [(0.0, torch.tensor(0.0)), (1.0, torch.tensor(1.0)), (3.0, torch.tensor(9.0))]  # the square
    h = 0.5
    phi_1 = -np.expm1(-h)
    phi_2 = 1 - phi_1 / h
    expected = 9 * phi_1 + 6 * h * phi_2 + h**2 * (0.5 - phi_2 / h)
    assert float(_integral(known, h)) == pytest.approx(expected)


def test_slowing_steps_grow_shorter():
    times = DPMSolverSampler(slowing=1.25).times(12)
    assert times[[0, -1]].tolist() == [0, 1]
    assert (times.diff().diff() < 0).all()


# --- what every sampler keeps to --------------------------------------------------------------------------------------


@per_sampler
def test_cells_do_not_depend_on_their_batch(path, sampler):
    together = sample_cells(path, sampler, range(4), n_steps=7)
    alone = torch.cat([sample_cells(path, sampler, [i], n_steps=7) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@per_sampler
def test_sampling_neither_reads_nor_moves_the_global_random_state(path, sampler):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = sample_cells(path, sampler, range(2), n_steps=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(sample_cells(path, sampler, range(2), n_steps=5), first)


@per_sampler
def test_single_precision_follows_double_precision(path, sampler):
    single = sample_cells(path, sampler, range(4), torch.float32, n_steps=20)
    assert single.dtype == torch.float32
    double = sample_cells(path, sampler, range(4), n_steps=20)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)  # rounding at alpha = 0.006 grows 150-fold


@per_sampler
def test_samples_keep_their_shape_and_all_is_computed_where_they_are(path, sampler):
    # torch refuses to mix the device "meta", which knows shapes alone, with another.
    denoiser = Denoiser(lambda x, k: x * k.reshape(-1, 1, 1), path, TARGETS["velocity"])
    x = torch.empty(2, 3, 4, device="meta")
    ends = sampler(denoiser, x, n_steps=3, generators=Generators(0, range(2)))
    assert (ends.shape, ends.device) == (x.shape, x.device)


@pytest.mark.parametrize("name", STEPS_AND_ERROR)
@pytest.mark.parametrize("n_steps", [1, 2, 9, None])
def test_n_steps_is_honoured_and_has_a_default(name, n_steps):
    (path, sampler), counts = PATH_AND_SAMPLER[name], []
    default = DEFAULT_STEPS.get(name, 100)
    sampler(build_denoiser(path, counts=counts), start(), n_steps=n_steps, generators=Generators(0, range(5)))
    assert len(counts) == (n_steps or default) * EVALUATIONS.get(name, 1)
    assert counts[0] == path.network_time(torch.zeros(()))
    assert counts == sorted(counts, reverse=path is PATH)


def test_the_default_is_at_most_the_timesteps_of_the_path():
    counts = []
    path = VariancePreserving(n_timesteps=30)
    DDPMSampler()(build_denoiser(path, counts=counts), start(1), generators=Generators(0, [0]))
    assert counts == list(range(29, -1, -1))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [VariancePreserving(10), STRAIGHT, Masking()], ids=lambda p: type(p).__name__)
def test_a_path_admits_objects_of_its_own_samplers_only(path):
    own = samplers_for(path)
    for sampler in own.values():
        check_sampler(sampler, path)
    others = {**DIFFUSION_SAMPLERS, **FLOW_SAMPLERS, "unmasking": UnmaskingSampler()}
    for sampler in [other for other in others.values() if other not in own.values()]:
        with pytest.raises(ValueError, match="`sampler`"):
            check_sampler(sampler, path)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        *[("n_steps", lambda n=n: DDIMSampler()(build_denoiser(), start(), n_steps=n)) for n in (0, 1001, 2.5, True)],
        ("n_steps", lambda: FLOW_SAMPLERS["euler"](build_denoiser(STRAIGHT), start(), n_steps=0)),
        (
            "n_steps",
            lambda: DDIMSampler().invert(build_denoiser(), build_denoiser(), start(), n_steps=0, generators=None),
        ),
        ("n_steps", lambda: check_sampler(DPMSolverSampler(), PATH, 1001)),
        ("n_steps", lambda: FixedStepSampler(euler_step, 0)(build_denoiser(STRAIGHT), start())),
        ("order", lambda: DPMSolverSampler(order=4)),
        *[("eta", lambda eta=eta: DDIMSampler(eta=eta)) for eta in (-0.1, 1.1, math.nan)],
    ],
)
def test_an_error_names_its_argument(argument, call):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        call()
