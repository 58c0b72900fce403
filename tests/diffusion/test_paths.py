import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jvp

from scgen_diffusion.diffusion import PATHS, LinearInterpolant, Path

SHAPES = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def draw_ends(shape, seed=0):
    """Return data, noise and one time per sample, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    data, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return data, noise, torch.rand(shape[0], generator=generator, dtype=torch.float64)


@every_path
@given(shape=SHAPES)
@settings(max_examples=25, deadline=None)
def test_path_starts_at_noise_and_ends_at_data(path, shape):
    data, noise, t = draw_ends(shape)
    # Denoising diffusion starts from almost pure noise: alpha is 0.0064 at t = 0 for the linear schedule.
    atol = 0 if path == LinearInterpolant() else 0.0064 * float(data.abs().max()) + 1e-4
    torch.testing.assert_close(path.interpolate(data, noise, torch.zeros_like(t)), noise, rtol=0, atol=atol)
    torch.testing.assert_close(path.interpolate(data, noise, torch.ones_like(t)), data, rtol=0, atol=0)


@every_path
@given(shape=SHAPES, seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_every_sample_is_mixed_at_its_own_time(path, shape, seed):
    data, noise, t = draw_ends(shape, seed)
    rows = zip(path.alpha(t), path.sigma(t), data, noise, strict=True)
    by_hand = torch.stack([float(alpha) * x1 + float(sigma) * x0 for alpha, sigma, x1, x0 in rows])
    mixed = path.interpolate(data, noise, t)
    torch.testing.assert_close(mixed, by_hand, rtol=1e-14, atol=1e-14)  # the same operations, rounded alike


@every_path
@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3), (1, 1)])
def test_one_time_means_the_same_time_for_every_sample(path, shape):
    data, noise, _ = draw_ends(shape)
    one = torch.tensor(0.3, dtype=torch.float64)
    mixed = path.interpolate(data, noise, one)
    torch.testing.assert_close(mixed, path.interpolate(data, noise, one.repeat(len(data))), rtol=0, atol=0)


@every_path
@pytest.mark.parametrize("shape", [(20,), (4, 5), ()])
def test_rates_are_the_time_derivatives(path, shape):
    t = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for value, rate in ((path.alpha, path.alpha_rate), (path.sigma, path.sigma_rate)):
        _, derivative = jvp(value, (t,), (torch.ones_like(t),))
        torch.testing.assert_close(rate(t), derivative, rtol=1e-8, atol=1e-12)


@every_path
def test_the_time_of_what_the_network_sees_is_found_again(path):
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    torch.testing.assert_close(path.time(path.network_time(t)), t, rtol=0, atol=1e-12)


@every_path
def test_data_fade_in_and_noise_fades_out(path):
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    assert (path.alpha(t).diff() > 0).all()
    assert (path.sigma(t).diff() < 0).all()


@every_path
def test_training_times_come_from_their_generator_alone(path):
    before = torch.get_rng_state()
    first, again = (path.draw_times(1000, torch.Generator().manual_seed(0), "cpu") for _ in range(2))
    assert first.shape == (1000,)
    assert torch.equal(first, again)
    assert not torch.equal(first, path.draw_times(1000, torch.Generator().manual_seed(1), "cpu"))
    assert first.min() >= 0
    assert first.max() < 1
    assert torch.equal(torch.get_rng_state(), before)


def test_the_straight_path_shows_the_network_its_time():
    t = torch.tensor([0.0, 0.3, 1.0])
    assert torch.equal(LinearInterpolant().network_time(t), t)


def test_training_times_of_the_straight_path_are_uniform():
    t = LinearInterpolant().draw_times(10_000, torch.Generator().manual_seed(0), "cpu")
    assert abs(t.mean() - 0.5) < 4 / (12 * 10_000) ** 0.5
    assert abs(t.var() - 1 / 12) < 4 / (180 * 10_000) ** 0.5


def test_a_custom_path_must_be_complete():
    class Half(Path):
        def alpha(self, t):
            return t

    with pytest.raises(TypeError, match="abstract"):
        Half()
