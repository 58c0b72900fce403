"""Samplers of denoising diffusion on Gaussian data, where all is known in closed form.

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
    PATHS,
    TARGETS,
    DDIMSampler,
    DDPMSampler,
    Denoiser,
    DPMSolverSampler,
    Estimate,
    Generators,
    LinearInterpolant,
    Masking,
    UnmaskingSampler,
    VariancePreserving,
    check_sampler,
    samplers_for,
)
from scgen_diffusion.diffusion._samplers import _integral, levels_at

MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[2.0, 0.9], [0.9, 0.6]], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)
PATH = PATHS["vp_linear"]
EVERY_SAMPLER = {
    **DIFFUSION_SAMPLERS,
    "ddim_half": DDIMSampler(eta=0.5),
    "ddim_one": DDIMSampler(eta=1.0),
}


def root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.sqrt().diag() @ vectors.T


def covariance_at(path, t):
    return path.alpha(t) ** 2 * COVARIANCE + path.sigma(t) ** 2 * EYE


def best_estimate(path, x_t, t):
    """Return the closed-form data and noise of ``x_t`` at one time."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    residual = (x_t - alpha * MEAN) @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * EYE)
    return Estimate(MEAN + alpha * residual @ COVARIANCE, sigma * residual)


def build_denoiser(path=PATH, target="v", counts=None):
    """Return the best denoiser, by a network that sees the timestep index, predicts ``target``, and keeps count."""

    def network(x_t, k):
        if counts is not None:
            counts.append(float(k))
        t = path.time(k)
        return TARGETS[target].of(path, *best_estimate(path, x_t.double(), t), t).to(x_t.dtype)

    return Denoiser(network, path, TARGETS[target])


def exact_end(path, x, times):
    """Carry ``x`` along the probability-flow ODE from the first to the last of ``times``."""
    first, last = torch.as_tensor(times, dtype=torch.float64)
    carry = root(covariance_at(path, last)) @ torch.linalg.inv(root(covariance_at(path, first)))
    return path.alpha(last) * MEAN + (x - path.alpha(first) * MEAN) @ carry.T


def start(n=5, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


def mean_and_covariance(sampler, denoiser, n_steps):
    """Return mean and covariance of a sampler's ends, for standard normal starts and standard normal draws."""
    noise = UnitNoise(n_steps)
    x = noise.normal(2).double()
    ends = sampler(denoiser, x, n_steps=n_steps, generators=noise)
    factors = ends[1:] - ends[0]
    return ends[0], factors.T @ factors


# Steps, and twice the error of the covariance that was measured with them, about. The mean's error is that of the
# start: noise of mean 0 instead of alpha m, where alpha is 0.0064 for the linear schedule.
STEPS_AND_ERROR = {
    "ddpm": (300, 0.05),
    "ddim": (200, 0.06),
    "ddim_half": (200, 0.08),
    "ddim_one": (300, 0.1),
    "dpm_solver": (40, 0.04),
    "dpm_solver_3m": (40, 0.06),
}


@pytest.mark.parametrize("path", ["vp_linear", "vp_cosine"])
@pytest.mark.parametrize("name", EVERY_SAMPLER)
def test_samples_have_the_mean_and_covariance_of_gaussian_data(name, path):
    n_steps, atol = STEPS_AND_ERROR[name]
    mean, covariance = mean_and_covariance(EVERY_SAMPLER[name], build_denoiser(PATHS[path]), n_steps)
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=0.01)
    torch.testing.assert_close(covariance, COVARIANCE, rtol=0, atol=atol)


def solver_error(solver, path, n_steps):
    """Return the largest distance to the exact solution after equal steps of the log SNR, and one to the data.

    The last step returns the estimated data, which are compared with those of the exact solution at timestep 0.
    """
    x, t = start(), torch.linspace(0, 1 - 1 / path.n_timesteps, 100_001, dtype=torch.float64)
    log_snr = (path.alpha(t) / path.sigma(t)).log()
    times = torch.from_numpy(np.interp(np.linspace(log_snr[0], log_snr[-1], n_steps + 1), log_snr, t))
    exact = best_estimate(path, exact_end(path, x, (0.0, t[-1])), t[-1]).data
    levels = levels_at(path, torch.cat([times, torch.ones(1)]), x)
    *_, ends = solver._states(build_denoiser(path), x, levels, None)
    return (ends - exact).abs().max().item()


ORDERS = {"ddim": 1, "dpm_solver": 2}


@pytest.mark.parametrize("path", ["vp_linear", "vp_cosine"])
@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_error_falls_with_the_order_of_the_solver(name, order, path):
    errors = [solver_error(DIFFUSION_SAMPLERS[name], PATHS[path], n) for n in (40, 80, 160)]
    slopes = [math.log2(coarse / fine) for coarse, fine in zip(errors[:-1], errors[1:], strict=True)]
    assert slopes == pytest.approx(
        [order] * 2, abs=0.1
    )  # measured: 0.97 to 0.99, 1.94 to 2.00, 2.02 to 2.07; 2.00 and 2.01 at 640 steps


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", DIFFUSION_SAMPLERS)
def test_samples_do_not_depend_on_what_the_network_predicts(name, target):
    def sample(target):
        generators = Generators(0, range(5))
        return DIFFUSION_SAMPLERS[name](build_denoiser(target=target), start(), n_steps=10, generators=generators)

    torch.testing.assert_close(sample(target), sample("data"), rtol=1e-9, atol=1e-9)


def sample_cells(sampler, indices, dtype=torch.float64, **options):
    generators = Generators(3, indices)
    x = generators.normal(2).to(dtype)
    return sampler(build_denoiser(), x, generators=generators, **options)


@pytest.mark.parametrize("name", EVERY_SAMPLER)
def test_cells_do_not_depend_on_their_batch(name):
    together = sample_cells(EVERY_SAMPLER[name], range(4), n_steps=7)
    alone = torch.cat([sample_cells(EVERY_SAMPLER[name], [i], n_steps=7) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", EVERY_SAMPLER)
def test_sampling_neither_reads_nor_moves_the_global_random_state(name):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = sample_cells(EVERY_SAMPLER[name], range(2), n_steps=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(sample_cells(EVERY_SAMPLER[name], range(2), n_steps=5), first)


@pytest.mark.parametrize("name", EVERY_SAMPLER)
def test_single_precision_follows_double_precision(name):
    single = sample_cells(EVERY_SAMPLER[name], range(4), torch.float32, n_steps=20)
    assert single.dtype == torch.float32
    # Rounding at alpha = 0.006 is amplified 150-fold.
    torch.testing.assert_close(
        single.double(), sample_cells(EVERY_SAMPLER[name], range(4), n_steps=20), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("name", EVERY_SAMPLER)
def test_samples_of_any_shape_keep_it(name):
    denoiser = Denoiser(lambda x, k: torch.zeros_like(x), PATH, TARGETS["noise"])
    x = torch.ones(2, 3, 4)
    assert EVERY_SAMPLER[name](denoiser, x, n_steps=3, generators=Generators(0, range(2))).shape == x.shape


@pytest.mark.parametrize("name", EVERY_SAMPLER)
def test_all_is_computed_where_the_samples_are(name):
    # torch refuses to mix the device "meta", which knows shapes alone, with another.
    denoiser = Denoiser(lambda x, k: x * k[..., None], PATH, TARGETS["v"])
    x = torch.empty(2, 3, device="meta")
    ends = EVERY_SAMPLER[name](denoiser, x, n_steps=3, generators=Generators(0, range(2)))
    assert ends.device == x.device


@pytest.mark.parametrize("name", EVERY_SAMPLER)
def test_one_step_returns_the_estimated_data(name):
    x, t = start(), torch.zeros((), dtype=torch.float64)
    ends = EVERY_SAMPLER[name](build_denoiser(), x, n_steps=1, generators=Generators(0, range(5)))
    torch.testing.assert_close(ends, best_estimate(PATH, x, t).data, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EVERY_SAMPLER)
@pytest.mark.parametrize("n_steps", [1, 2, 9])
def test_n_steps_is_honoured(name, n_steps):
    counts = []
    EVERY_SAMPLER[name](build_denoiser(counts=counts), start(), n_steps=n_steps, generators=Generators(0, range(5)))
    assert len(counts) == n_steps
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 999


@pytest.mark.parametrize(
    ("name", "n_evaluations"), {"ddpm": 1000, "ddim": 100, "dpm_solver": 20, "dpm_solver_3m": 12}.items()
)
def test_without_n_steps_the_default_is_taken(name, n_evaluations):
    counts = []
    denoiser = Denoiser(lambda x, k: counts.append(k) or x, PATH, TARGETS["noise"])
    DIFFUSION_SAMPLERS[name](denoiser, start(1), generators=Generators(0, [0]))
    assert len(counts) == n_evaluations


def test_the_default_is_at_most_the_timesteps_of_the_path():
    counts = []
    path = VariancePreserving("cosine", n_timesteps=30)
    DIFFUSION_SAMPLERS["ddpm"](build_denoiser(path, counts=counts), start(1), generators=Generators(0, [0]))
    assert counts == list(range(29, -1, -1))


def test_ddim_of_eta_zero_needs_no_generators_and_ignores_them():
    x = start()
    assert torch.equal(
        DDIMSampler()(build_denoiser(), x, n_steps=5),
        DDIMSampler()(build_denoiser(), x, n_steps=5, generators=Generators(0, range(5))),
    )


def test_dpm_solver_of_two_steps_is_ddim():
    # The first and the last step are of order 1, which is DDIM's.
    solved, implicit = (
        sampler(build_denoiser(), start(), n_steps=2) for sampler in (DPMSolverSampler(), DDIMSampler())
    )
    torch.testing.assert_close(solved, implicit, rtol=1e-12, atol=1e-12)


def test_flow_samplers_take_a_denoiser_as_it_is():
    # The velocity is infinite at t = 1, so a method that does not evaluate there.
    ends = FLOW_SAMPLERS["midpoint"](build_denoiser(), start(), n_steps=200)
    torch.testing.assert_close(ends, exact_end(PATH, start(), (0.0, 1.0)), rtol=0, atol=0.02)


def test_a_path_admits_its_own_samplers():
    assert samplers_for(VariancePreserving("cosine", n_timesteps=10)) is DIFFUSION_SAMPLERS
    assert samplers_for(LinearInterpolant()) is FLOW_SAMPLERS


@pytest.mark.parametrize("path", [PATH, LinearInterpolant(), Masking()], ids=lambda path: type(path).__name__)
def test_objects_of_its_own_samplers_only(path):
    for sampler in samplers_for(path).values():
        check_sampler(sampler, path)
    others = {**DIFFUSION_SAMPLERS, **FLOW_SAMPLERS, "unmasking": UnmaskingSampler()}
    for sampler in [other for other in others.values() if other not in samplers_for(path).values()]:
        with pytest.raises(ValueError, match=f"`sampler` is a .*Give one of '{next(iter(samplers_for(path)))}'"):
            check_sampler(sampler, path)


@pytest.mark.parametrize(
    ("sampler", "path", "n_steps", "words"),
    [
        (FLOW_SAMPLERS["euler"], LinearInterpolant(), 0, "`n_steps` must be a whole number of at least 1, but found 0"),
        (DPMSolverSampler(), PATH, 1001, "`n_steps` must be a whole number from 1 to the path's 1000"),
    ],
    ids=["no steps", "too many steps"],
)
def test_steps_are_checked_without_sampling(sampler, path, n_steps, words):
    with pytest.raises(ValueError, match=words):
        check_sampler(sampler, path, n_steps)


@pytest.mark.parametrize("sampler", [DDPMSampler(), DDIMSampler(eta=0.1)])
def test_stochastic_samplers_refuse_to_go_without_generators(sampler):
    with pytest.raises(ValueError, match=rf"`generators` must be given, because {type(sampler).__name__} draws"):
        sampler(build_denoiser(), start(), n_steps=2)


def test_generators_are_one_per_sample():
    with pytest.raises(ValueError, match="`generators` must be one per sample, but found 1 for 5 samples"):
        DDPMSampler()(build_denoiser(), start(), n_steps=2, generators=Generators(0, [0]))


@pytest.mark.parametrize("n_steps", [0, -3, 1001, 2.5, True, "10"])
@pytest.mark.parametrize("name", DIFFUSION_SAMPLERS)
def test_n_steps_that_the_path_has_not_are_refused(name, n_steps):
    with pytest.raises(ValueError, match=f"`n_steps` must be a whole number from 1 to .* 1000 .* found {n_steps!r}"):
        DIFFUSION_SAMPLERS[name](build_denoiser(), start(), n_steps=n_steps, generators=Generators(0, range(5)))


def test_an_unknown_spacing_is_refused():
    with pytest.raises(ValueError, match=r"`spacing` must be one of \('time', 'slowing'\), but found 'even'"):
        DPMSolverSampler(spacing="even")


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_out_of_range_is_refused(eta):
    with pytest.raises(ValueError, match="`eta` must be between 0 and 1, but found"):
        DDIMSampler(eta=eta)


@pytest.mark.parametrize(
    ("field", "found"),
    [
        (lambda x, t: x, "function"),
        (Denoiser(lambda x, t: x, LinearInterpolant(), TARGETS["noise"]), r"a Denoiser on LinearInterpolant\(\)"),
    ],
)
def test_other_fields_are_refused(field, found):
    with pytest.raises(ValueError, match=f"must be a Denoiser on a VariancePreserving path, but found {found}"):
        DDIMSampler()(field, start())


def test_three_predictions_are_more_exact_than_two():
    exact = exact_end(PATH, start(), (0.0, 1.0))

    def error(**options):
        return float((DPMSolverSampler(**options)(build_denoiser(), start(), n_steps=12) - exact).abs().max())

    assert error(order=3) < error(order=2)


def test_data_on_a_parabola_of_the_log_snr_are_half_corrected_by_a_third_prediction():
    # As the authors' code has it: the slope is that of the parabola, of which half of the curvature is integrated.
    known = [(0.0, torch.tensor(0.0)), (1.0, torch.tensor(1.0)), (3.0, torch.tensor(9.0))]  # the square
    h = 0.5
    phi_1 = -np.expm1(-h)
    phi_2 = 1 - phi_1 / h

    found = float(_integral(known, h))

    assert found == pytest.approx(9 * phi_1 + 6 * h * phi_2 + h**2 * (0.5 - phi_2 / h))


def test_slowing_steps_grow_shorter():
    times = DPMSolverSampler(spacing="slowing").walk(build_denoiser(), start(), n_steps=12).times

    assert times[0] == 0
    assert times[-1] == 1
    assert (times.diff().diff() < 0).all()


@pytest.mark.parametrize("order", [4, 2.0])
def test_another_order_is_refused(order):
    with pytest.raises(ValueError, match=f"`order` must be 2 or 3, but found {order}"):
        DPMSolverSampler(order=order)
