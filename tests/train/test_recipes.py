"""How long a stage trains follows from the number of cells, and its learning rate from a schedule."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scgen_diffusion.train import DIFFUSION_RECIPES, RECIPES, PriorRecipe
from scgen_diffusion.train._runner import _default_precision

ALL = [
    *(recipes[stage] for recipes in RECIPES.values() for stage in ("autoencoder", "prior")),
    *(DIFFUSION_RECIPES[name]["default"] for name in ("SCMDM", "SCRDIT")),
]


@pytest.fixture(params=ALL, ids=range(len(ALL)))
def recipe(request):
    return request.param


def n_steps(recipe, n_cells):
    return recipe.max_epochs(n_cells) * recipe.steps_per_epoch(n_cells)


def test_more_cells_are_seen_less_often_but_in_more_steps(recipe):
    sizes = [700, 7_000, 100_000, 1_000_000]

    steps = [n_steps(recipe, n) for n in sizes]
    times_seen = [recipe.batch_size * count / n for n, count in zip(sizes, steps, strict=True)]

    assert times_seen == sorted(times_seen, reverse=True)
    # a whole number of epochs: where there are many steps per epoch, the last one may be cut by half
    assert all(more > 0.8 * fewer for fewer, more in zip(steps, steps[1:], strict=False))
    assert steps[-1] > 2 * steps[0]


@given(st.sampled_from(ALL), st.integers(1, 10**9), st.integers(8, 10**6))
def test_there_is_always_an_epoch_and_it_shows_every_cell(recipe, n_cells, batch_size):
    recipe = replace(recipe, batch_size=batch_size)

    assert recipe.max_epochs(n_cells) >= 1
    assert recipe.steps_per_epoch(n_cells) * batch_size >= n_cells
    assert recipe.steps_per_epoch(n_cells) >= recipe.smallest_epoch


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("schedule", ["cosin"]),
        ("gradient_clip", [-1]),  # would turn the gradient around
        ("patience", [0, 1.5]),
        ("reference_steps", [0]),
        ("batch_size", [2.5]),
        ("learning_rate", [float("inf")]),
        ("drop_probability", [1.5, -0.1, float("nan"), "0.5"]),
    ],
)
def test_values_that_cannot_be_are_refused(option, values):
    for recipe in (recipe for recipe in ALL if hasattr(recipe, option)):
        for value in values:
            with pytest.raises(ValueError, match=option):
                replace(recipe, **{option: value})


def test_numbers_of_numpy_become_plain_as_checkpoints_need_them(recipe):
    given = {"learning_rate": np.float64(1e-3), "n_epochs": np.int64(3), "bfloat16": np.bool_(True)}
    found = replace(recipe, **given, betas=np.array([0, 0.95]))
    values = [found.learning_rate, found.n_epochs, found.bfloat16, *found.betas]
    assert [type(value) for value in values] == [float, int, bool, float, float]
    assert values == [1e-3, 3, True, 0.0, 0.95]


USUAL = RECIPES["default"]["autoencoder"]


def test_regularisation_weighs_less_the_more_cells_there_are():
    found = [USUAL.for_cells(n, [2000]) for n in (2_500, 10_000, 1_000_000)]

    assert [recipe.loading_weight_decay for recipe in found] == [3.0, 1.9, 0.037]
    assert [recipe.min_kept_fraction for recipe in found] == [0.3, 0.56, 0.99]
    masked = DIFFUSION_RECIPES["SCMDM"]["default"]
    assert masked.for_cells(30_000) == replace(masked, loading_weight_decay=0.25)


def test_the_kl_weight_grows_with_the_square_root_of_the_features():
    weights = [USUAL.for_cells(2_500, n).kl_weight for n in ([20], [500], [2_000], [30_000], [2_000, 20])]

    assert weights == [0.077, 0.39, 0.6, 0.6, 0.34]


@pytest.mark.parametrize(
    ("size", "accelerator", "capability", "expected"),
    [
        ("published", "auto", (9, 0), "bf16-mixed"),
        ("published", "cpu", (9, 0), "32-true"),
        ("published", "gpu", (7, 5), "32-true"),  # emulates bfloat16, slowly
        ("default", "gpu", (9, 0), "32-true"),
    ],
)
def test_only_large_networks_compute_in_bfloat16_and_only_on_gpus_that_can(
    size, accelerator, capability, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    recipes = [RECIPES[size]["autoencoder"], RECIPES[size]["prior"]]
    recipes.append(DIFFUSION_RECIPES["WBDIT"][size])
    assert {_default_precision(recipe, accelerator) for recipe in recipes} == {expected}


@pytest.mark.parametrize(
    ("schedule", "warm_up", "expected"),
    [
        ("cosine", 0.1, {0: 0.01, 50: 0.505, 1000: 0.01, 10_000: 0.01}),  # steps after the end keep the last rate
        ("cosine", 0.0, {1: 1.0, 500: 0.505, 1000: 0.01}),
        ("warm_up_hold_decay", 0.1, {0: 0.01, 50: 0.505, 100: 1.0, 500: 1.0, 900: 1.0, 1000: 0.1, 10_000: 0.1}),
        ("warm_up_hold_decay", 0.1, {925: 0.1 + 0.9 * 0.5}),  # a quarter of the decay: half of the way
    ],
)
def test_the_learning_rate_rises_linearly_and_then_follows_the_schedule(schedule, warm_up, expected):
    recipe = PriorRecipe(schedule=schedule, warm_up=warm_up)

    assert {step: recipe.rate_factor(step, 1000) for step in expected} == pytest.approx(expected, abs=1e-4)


@given(
    schedule=st.sampled_from(["cosine", "warm_up_hold_decay"]),
    n_steps=st.integers(0, 2000),
    warm_up=st.floats(0, 1),
    step=st.integers(0, 4000),
)
def test_the_factor_is_always_between_zero_and_one(schedule, n_steps, warm_up, step):
    assert 0 < PriorRecipe(schedule=schedule, warm_up=warm_up).rate_factor(step, n_steps) <= 1 + 1e-9
