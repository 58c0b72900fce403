import os
from itertools import permutations
from pathlib import Path as FilePath

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.func import jvp

from scgen_diffusion.diffusion import LinearInterpolant, Masking, VariancePreserving, optimal_pairs

PARITY = FilePath(os.environ.get("PARITY_DIR") or FilePath(__file__).parents[1] / "parity")
SHAPES = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)
PATHS_OF_ANY_SIZE = st.builds(VariancePreserving, n_timesteps=st.integers(1, 1000))
TIMES = st.lists(st.floats(0, 1), min_size=1, max_size=20).map(lambda t: torch.tensor(t, dtype=torch.float64))
PATHS = {"variance-preserving": VariancePreserving(), "straight": LinearInterpolant()}
EVERY_PATH = {**PATHS, "masking": Masking()}
every_path = pytest.mark.parametrize("path", EVERY_PATH.values(), ids=EVERY_PATH)
that_adds_noise = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


def alpha_bar(path):
    return (1 - path.betas()).cumprod(0)


def draw_ends(shape, seed=0):
    """Return data, noise and one time per sample, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    data, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return data, noise, torch.rand(shape[0], generator=generator, dtype=torch.float64)


@every_path
def test_data_fade_in_and_noise_fades_out(path):
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    assert (path.alpha(t).diff() > 0).all()
    assert (path.sigma(t).diff() < 0).all()
    assert path.alpha(ENDS)[1] == 1
    assert path.sigma(ENDS)[1] == 0
    # Denoising diffusion starts from almost pure noise: alpha is 0.0064 at t = 0 for the linear schedule.
    assert path.alpha(ENDS)[0] <= (0.0064 if isinstance(path, VariancePreserving) else 0)
    assert path.sigma(ENDS)[0] >= 1 - (2.1e-5 if isinstance(path, VariancePreserving) else 0)


@that_adds_noise
@given(shape=SHAPES, seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_every_sample_is_mixed_at_its_own_time(path, shape, seed):
    data, noise, t = draw_ends(shape, seed)
    rows = zip(path.alpha(t), path.sigma(t), data, noise, strict=True)
    by_hand = torch.stack([float(alpha) * x1 + float(sigma) * x0 for alpha, sigma, x1, x0 in rows])
    torch.testing.assert_close(path.interpolate(data, noise, t), by_hand, rtol=1e-14, atol=1e-14)  # rounded alike
    one = path.interpolate(data, noise, t[0])
    assert torch.equal(one, path.interpolate(data, noise, t[:1].repeat(len(data))))


def test_the_rate_of_masking_is_the_time_derivative():
    t = torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, derivative = jvp(Masking().alpha, (t,), (torch.ones_like(t),))
    torch.testing.assert_close(Masking().alpha_rate(t), derivative, rtol=1e-8, atol=1e-12)


@every_path
def test_the_time_of_what_the_network_sees_is_found_again(path):
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    torch.testing.assert_close(path.time(path.network_time(t)), t, rtol=0, atol=1e-12)
    assert isinstance(path, VariancePreserving) or torch.equal(path.network_time(t), t)


def test_training_times_of_the_straight_path_are_uniform():
    t = LinearInterpolant().draw_times(10_000, torch.Generator().manual_seed(0), "cpu")
    assert abs(t.mean() - 0.5) < 4 / (12 * 10_000) ** 0.5
    assert abs(t.var() - 1 / 12) < 4 / (180 * 10_000) ** 0.5


@pytest.mark.parametrize("model", ["scrdit", "wbdit"])
def test_linear_schedule_and_noising_are_the_published_ones(model):
    recorded, path = load_file(PARITY / f"{model}_vectors.safetensors"), VariancePreserving()
    # Recorded as a product of 1 000 factors in single precision.
    torch.testing.assert_close(alpha_bar(path).float(), recorded["alpha_bar"], rtol=1e-5, atol=0)
    noised = path.interpolate(recorded["x"], recorded["noise"], path.time(recorded["t"]))
    torch.testing.assert_close(noised, recorded["noised"], rtol=1e-5, atol=1e-6)  # single precision


@given(path=PATHS_OF_ANY_SIZE, t=TIMES)
@settings(max_examples=50, deadline=None)
def test_variance_is_preserved(path, t):
    torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t), rtol=1e-12, atol=0)


@given(path=PATHS_OF_ANY_SIZE)
@settings(max_examples=25, deadline=None)
def test_timesteps_carry_their_alpha_bar_and_its_logarithm_is_linear_between_them(path):
    k, log_alpha_bar = torch.arange(path.n_timesteps, dtype=torch.float64), alpha_bar(path).log()
    torch.testing.assert_close(2 * path.alpha(path.time(k)).log(), log_alpha_bar, rtol=1e-9, atol=1e-12)
    between = 0.75 * log_alpha_bar[:-1] + 0.25 * log_alpha_bar[1:]
    torch.testing.assert_close(2 * path.alpha(path.time(k[:-1] + 0.25)).log(), between, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_timesteps", [7, 50, 1000, 4000])
def test_the_network_sees_whole_timesteps_exactly(n_timesteps, dtype):
    path, k = VariancePreserving(n_timesteps=n_timesteps), torch.arange(n_timesteps)
    assert torch.equal(path.network_time(path.time(k.to(dtype))), k.to(dtype))
    assert path.network_time(ENDS).tolist() == [n_timesteps - 1, -1]


def test_training_times_are_the_timesteps_in_equal_shares():
    path, n = VariancePreserving(n_timesteps=10), 20_000
    k = path.network_time(path.draw_times(n, torch.Generator().manual_seed(0), "cpu"))
    shares = torch.bincount(k.long(), minlength=10) / n
    assert set(k.tolist()) == set(range(10))
    assert ((shares - 0.1).abs() < 4 * (0.1 * 0.9 / n) ** 0.5).all()


def test_single_precision_keeps_small_noise():
    t = VariancePreserving().time(torch.tensor([0, 1]))
    assert t.dtype == torch.float32
    torch.testing.assert_close(VariancePreserving().sigma(t)[0].item(), 0.01, rtol=1e-6, atol=0)


def test_a_path_that_was_used_in_inference_mode_can_be_trained_on():
    path, t = VariancePreserving(n_timesteps=123), torch.tensor([0.3])
    with torch.inference_mode():
        path.alpha(t)
    t.requires_grad_()
    path.alpha(t).sum().backward()
    assert t.grad > 0


def test_every_end_has_one_start_and_no_other_pairing_is_cheaper():
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 5, 2, 3, generator=generator)

    pairs = optimal_pairs(start, end)

    best = min((start - end[list(order)]).square().sum() for order in permutations(range(5)))
    assert sorted(pairs.tolist()) == list(range(5))
    torch.testing.assert_close((start - end[pairs]).square().sum(), best)
