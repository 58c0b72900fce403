import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jvp

from scgen_diffusion.diffusion import PATHS, TARGETS

NAMES = st.sampled_from(sorted(TARGETS))
SHAPES = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)


def draw(shape, seed):
    """Return data, noise and times away from both ends, where some targets do not determine one of the two."""
    generator = torch.Generator().manual_seed(seed)
    data, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return data, noise, 0.05 + 0.9 * torch.rand(shape[0], generator=generator, dtype=torch.float64)


@given(path=st.sampled_from(sorted(PATHS)), name=NAMES, shape=SHAPES, seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_a_right_prediction_gives_back_data_and_noise(path, name, shape, seed):
    path, target = PATHS[path], TARGETS[name]
    data, noise, t = draw(shape, seed)
    prediction = target.of(path, data, noise, t)
    found = target.to_data_and_noise(path, prediction, path.interpolate(data, noise, t), t)
    torch.testing.assert_close(found, (data, noise), rtol=1e-9, atol=1e-9)


@given(path=st.sampled_from(sorted(PATHS)), first=NAMES, second=NAMES, seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_any_prediction_survives_the_way_through_another_target(path, first, second, seed):
    path, first, second = PATHS[path], TARGETS[first], TARGETS[second]
    prediction, x_t, t = draw((4, 3), seed)
    other = second.of(path, *first.to_data_and_noise(path, prediction, x_t, t), t)
    back = first.of(path, *second.to_data_and_noise(path, other, x_t, t), t)
    torch.testing.assert_close(back, prediction, rtol=1e-7, atol=1e-7)


@given(path=st.sampled_from(sorted(PATHS)), name=NAMES, seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_what_a_prediction_implies_adds_up_to_the_sample(path, name, seed):
    path, target = PATHS[path], TARGETS[name]
    prediction, x_t, t = draw((4, 3), seed)
    data, noise = target.to_data_and_noise(path, prediction, x_t, t)
    torch.testing.assert_close(path.interpolate(data, noise, t), x_t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_targets_are_what_their_names_say(path):
    data, noise, t = draw((5, 2), 0)
    assert torch.equal(TARGETS["data"].of(path, data, noise, t), data)
    assert torch.equal(TARGETS["noise"].of(path, data, noise, t), noise)
    v = path.alpha(t)[:, None] * noise - path.sigma(t)[:, None] * data
    torch.testing.assert_close(TARGETS["v"].of(path, data, noise, t), v, rtol=1e-12, atol=1e-12)
    _, derivative = jvp(lambda s: path.interpolate(data, noise, s), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(TARGETS["velocity"].of(path, data, noise, t), derivative, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", TARGETS)
def test_one_time_means_the_same_time_for_every_sample(name):
    path, target = PATHS["vp_cosine"], TARGETS[name]
    prediction, x_t, _ = draw((5, 2, 3), 0)
    one = torch.tensor(0.3, dtype=torch.float64)
    both = [target.to_data_and_noise(path, prediction, x_t, t) for t in (one, one.repeat(5))]
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=0)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_v_and_the_straight_velocity_are_informative_at_both_ends(t):
    data, noise, _ = draw((5, 2), 0)
    t = torch.tensor(t, dtype=torch.float64)
    for path, name in (("vp_cosine", "v"), ("flow_matching", "velocity")):
        path, target = PATHS[path], TARGETS[name]
        prediction = target.of(path, data, noise, t)
        found = target.to_data_and_noise(path, prediction, path.interpolate(data, noise, t), t)
        torch.testing.assert_close(found, (data, noise), rtol=1e-9, atol=1e-9)
