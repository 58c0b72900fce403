"""Learning-rate schedules at their corners."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgen_diffusion.train import learning_rate_factor


@pytest.mark.parametrize("schedule", ["cosine", "warm_up_hold_decay"])
def test_the_warm_up_is_linear_and_the_last_rate_stays(schedule):
    factor = partial(learning_rate_factor, schedule=schedule, n_steps=1000, warm_up=0.1)

    assert factor(1001) == factor(10_000) == factor(1000)  # steps after the end keep the final rate
    assert factor(0) == pytest.approx(0.01)
    assert factor(50) == pytest.approx(0.505)
    assert factor(99) < 1
    assert factor(100) > 0.97


def test_the_cosine_falls_from_one_to_a_hundredth():
    factor = partial(learning_rate_factor, schedule="cosine", n_steps=1000, warm_up=0.0)

    assert factor(1) == pytest.approx(1, abs=1e-4)
    assert factor(500) == pytest.approx(0.505)
    assert factor(1000) == pytest.approx(0.01)


def test_the_held_rate_stays_then_decays_by_a_square_root():
    factor = partial(learning_rate_factor, schedule="warm_up_hold_decay", n_steps=1000, warm_up=0.1)

    assert {factor(step) for step in (100, 500, 900)} == {1.0}
    assert factor(925) == pytest.approx(0.1 + 0.9 * 0.5)  # a quarter of the decay: half of the way
    assert factor(1000) == pytest.approx(0.1)


@given(
    schedule=st.sampled_from(["cosine", "warm_up_hold_decay"]),
    n_steps=st.integers(0, 2000),
    warm_up=st.floats(0, 1),
    step=st.integers(0, 4000),
)
def test_the_factor_is_always_between_zero_and_one(schedule, n_steps, warm_up, step):
    assert 0 < learning_rate_factor(step, schedule, n_steps=n_steps, warm_up=warm_up) <= 1 + 1e-9


def test_each_round_repeats_the_schedule_at_half_of_the_rate():
    once = partial(learning_rate_factor, schedule="cosine", n_steps=100, warm_up=0.1)
    thrice = partial(once, max_rounds=3)

    assert [thrice(step) for step in range(100)] == [once(step) for step in range(100)]
    assert [thrice(step + 200) for step in range(100)] == pytest.approx([once(step) / 4 for step in range(100)])
    assert thrice(300) == thrice(1000) == pytest.approx(once(100) / 4)
