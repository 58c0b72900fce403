import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgen_diffusion.diffusion import PATHS, DDIMSampler, StepGrid, VariancePreserving, published_timesteps

PATH = PATHS["vp_linear"]


@given(
    spacing=st.sampled_from(["time", "slowing", "log_snr"]),
    schedule=st.sampled_from(["linear", "cosine"]),
    n_timesteps=st.integers(1, 200),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_times_increase_from_noise_to_data(spacing, schedule, n_timesteps, data):
    n_steps = data.draw(st.integers(1, n_timesteps))
    times = StepGrid(spacing).times(VariancePreserving(schedule, n_timesteps=n_timesteps), n_steps)
    assert len(times) == n_steps + 1
    assert times[0] == 0
    assert times[-1] == 1
    assert (times.diff() > 0).all()


def test_equal_steps_of_time_visit_every_timestep_when_there_are_as_many():
    k = PATH.network_time(StepGrid("time").times(PATH, 1000))
    assert torch.equal(k, torch.arange(999, -2, -1, dtype=torch.float64))


@pytest.mark.parametrize("path", ["vp_linear", "vp_cosine"])
def test_equal_steps_of_the_log_snr_are_equal_up_to_the_last_timestep(path):
    path = PATHS[path]
    times = StepGrid("log_snr").times(path, 12)
    assert path.network_time(times)[-2] == 0
    steps = path.log_snr(times[:-1]).diff()
    torch.testing.assert_close(steps, steps.mean().expand(11), rtol=1e-9, atol=0)


def test_explicit_timesteps_are_their_times():
    times = StepGrid(timesteps=(999, 500, 1, 0)).times(PATH, None)
    assert PATH.network_time(times).tolist() == [999, 500, 1, 0]


def test_published_timesteps_are_those_of_scrdit():
    assert published_timesteps(stride=10) == (*range(990, 0, -10), 1, 0)
    assert published_timesteps() == tuple(range(999, -1, -1))
    assert published_timesteps(stride=5, n_timesteps=12) == (10, 5, 1, 0)


@pytest.mark.parametrize("stride", [0, 1000])
def test_a_stride_that_leaves_the_timesteps_is_refused(stride):
    with pytest.raises(ValueError, match=f"`stride` must be between 1 and 999, but found {stride}"):
        published_timesteps(stride)


@pytest.mark.parametrize("timesteps", [(), (5,), (5, 5), (1, 2), (3, 0, -1), (5.5, 0)])
def test_timesteps_that_do_not_decrease_are_refused(timesteps):
    with pytest.raises(ValueError, match="`timesteps` must be at least two indices that decrease"):
        StepGrid(timesteps=timesteps)


@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_lists_and_arrays_of_timesteps_become_tuples(make):
    for made in (StepGrid(timesteps=make([900, 300, 0])), DDIMSampler(timesteps=make([900, 300, 0]))):
        assert repr(made.timesteps) == "(900, 300, 0)"


def test_an_unknown_spacing_is_refused():
    with pytest.raises(
        ValueError, match=r"`spacing` must be one of \('time', 'slowing', 'log_snr'\), but found 'karras'"
    ):
        StepGrid("karras")


@pytest.mark.parametrize("n_steps", [None, 0, 1001])
def test_n_steps_out_of_range_are_refused(n_steps):
    with pytest.raises(
        ValueError, match=f"`n_steps` must be between 1 and the path's 1000 timesteps, but found {n_steps}"
    ):
        StepGrid().times(PATH, n_steps)


def test_n_steps_beside_explicit_timesteps_are_refused():
    with pytest.raises(ValueError, match="`n_steps` was 5, but the sampler has explicit `timesteps`"):
        StepGrid(timesteps=(9, 0)).times(PATH, 5)


def test_timesteps_beyond_those_of_the_path_are_refused():
    with pytest.raises(ValueError, match="`timesteps` must lie below the path's 1000 timesteps, but found 1000"):
        StepGrid(timesteps=(1000, 0)).times(PATH, None)
