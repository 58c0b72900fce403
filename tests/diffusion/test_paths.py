import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jvp

from scgen_diffusion.diffusion import LinearInterpolant

SHAPES = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)


def draw_ends(shape, seed=0):
    """Return data, noise and one time per sample, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    data, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return data, noise, torch.rand(shape[0], generator=generator, dtype=torch.float64)


@given(shape=SHAPES)
@settings(max_examples=25, deadline=None)
def test_path_starts_at_noise_and_ends_at_data(shape):
    data, noise, t = draw_ends(shape)
    path = LinearInterpolant()
    torch.testing.assert_close(path.interpolate(data, noise, torch.zeros_like(t)), noise, rtol=0, atol=0)
    torch.testing.assert_close(path.interpolate(data, noise, torch.ones_like(t)), data, rtol=0, atol=0)


@given(shape=SHAPES, seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_every_sample_is_mixed_at_its_own_time(shape, seed):
    data, noise, t = draw_ends(shape, seed)
    mixed = LinearInterpolant().interpolate(data, noise, t)
    by_hand = torch.stack([float(s) * x1 + (1 - float(s)) * x0 for x1, x0, s in zip(data, noise, t, strict=True)])
    torch.testing.assert_close(mixed, by_hand, rtol=1e-14, atol=1e-14)  # the same operations, rounded alike


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3), (1, 1)])
def test_velocity_is_the_time_derivative_of_the_path(shape):
    data, noise, t = draw_ends(shape)
    path = LinearInterpolant()
    _, derivative = jvp(lambda s: path.interpolate(data, noise, s), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(path.velocity(data, noise, t), derivative, rtol=1e-12, atol=1e-12)
