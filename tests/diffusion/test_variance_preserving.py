import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from scgen_diffusion.diffusion import VariancePreserving

PARITY = Path(os.environ.get("PARITY_DIR") or Path(__file__).parents[1] / "parity")
SCHEDULES = ["linear", "cosine"]
PATHS_OF_ANY_SIZE = st.builds(VariancePreserving, st.sampled_from(SCHEDULES), n_timesteps=st.integers(1, 1000))
TIMES = st.lists(st.floats(0, 1), min_size=1, max_size=20).map(lambda t: torch.tensor(t, dtype=torch.float64))


@pytest.mark.parametrize("model", ["scrdit", "wbdit"])
def test_linear_schedule_is_the_published_one(model):
    recorded = load_file(PARITY / f"{model}_vectors.safetensors")
    # Recorded as a product of 1 000 factors in single precision.
    torch.testing.assert_close(VariancePreserving().alpha_bar().float(), recorded["alpha_bar"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("model", ["scrdit", "wbdit"])
def test_noising_is_the_published_one(model):
    recorded, path = load_file(PARITY / f"{model}_vectors.safetensors"), VariancePreserving()
    noised = path.interpolate(recorded["x"], recorded["noise"], path.time(recorded["t"]))
    torch.testing.assert_close(noised, recorded["noised"], rtol=1e-5, atol=1e-6)  # single precision


def test_linear_betas_rise_in_equal_steps():
    betas = VariancePreserving("linear", n_timesteps=3).betas()
    torch.testing.assert_close(betas, torch.tensor([1e-4, 0.01005, 0.02], dtype=torch.float64))


def test_cosine_schedule_follows_the_squared_cosine_but_for_the_cap():
    path = VariancePreserving("cosine")

    def signal(share):
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [signal((k + 1) / 1000) / signal(0) for k in range(999)]
    torch.testing.assert_close(path.alpha_bar()[:999], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
    assert path.betas()[999] == 0.999


@given(path=PATHS_OF_ANY_SIZE, t=TIMES)
@settings(max_examples=50, deadline=None)
def test_variance_is_preserved(path, t):
    torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t), rtol=1e-12, atol=0)


@given(path=PATHS_OF_ANY_SIZE)
@settings(max_examples=25, deadline=None)
def test_timesteps_carry_their_alpha_bar(path):
    t = path.time(torch.arange(path.n_timesteps, dtype=torch.float64))
    torch.testing.assert_close(path.alpha(t) ** 2, path.alpha_bar(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_clean_data_sit_at_time_one_and_the_last_timestep_at_time_zero(schedule):
    path, ends = VariancePreserving(schedule), torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert path.network_time(ends).tolist() == [999, -1]
    assert path.alpha(ends)[1] == 1
    assert path.sigma(ends)[1] == 0
    torch.testing.assert_close(path.alpha(ends)[0] ** 2, path.alpha_bar()[-1])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_log_alpha_bar_is_linear_between_timesteps(schedule):
    path = VariancePreserving(schedule)
    log_alpha_bar = path.alpha_bar().log()
    t = path.time(torch.arange(999, dtype=torch.float64) + 0.25)
    expected = 0.75 * log_alpha_bar[:-1] + 0.25 * log_alpha_bar[1:]
    torch.testing.assert_close(2 * path.alpha(t).log(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_timesteps", [7, 50, 1000, 4000])
def test_the_network_sees_whole_timesteps_exactly(n_timesteps, dtype):
    path, k = VariancePreserving(n_timesteps=n_timesteps), torch.arange(n_timesteps)
    assert torch.equal(path.network_time(path.time(k.to(dtype))), k.to(dtype))


def test_the_network_sees_times_between_timesteps_as_they_are():
    t = torch.tensor([0.12345, 0.98765], dtype=torch.float64)
    torch.testing.assert_close(VariancePreserving().network_time(t), 999 - 1000 * t, rtol=1e-12, atol=0)


def test_training_times_are_the_timesteps_in_equal_shares():
    path, n = VariancePreserving(n_timesteps=10), 20_000
    k = path.network_time(path.draw_times(n, torch.Generator().manual_seed(0), "cpu"))
    shares = torch.bincount(k.long(), minlength=10) / n
    assert set(k.tolist()) == set(range(10))
    assert ((shares - 0.1).abs() < 4 * (0.1 * 0.9 / n) ** 0.5).all()


def test_precision_and_shape_are_those_of_the_times():
    path = VariancePreserving()
    for dtype in (torch.float32, torch.float64):
        for shape in [(), (4,), (2, 3)]:
            t = torch.full(shape, 0.3, dtype=dtype)
            for of in (path.alpha, path.sigma, path.alpha_rate, path.sigma_rate, path.network_time):
                assert of(t).shape == shape
                assert of(t).dtype == dtype


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
    torch.testing.assert_close(t.grad, path.alpha_rate(t).detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "sigmoid"}, r"`schedule` must be one of \('linear', 'cosine'\), but found 'sigmoid'"),
        ({"n_timesteps": 0}, "`n_timesteps` must be a whole number of at least 1, but found 0"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VariancePreserving(**options)
