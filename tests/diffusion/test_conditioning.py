import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgen_diffusion.diffusion import (
    CONDITION_STRATEGIES,
    Additive,
    ConditionColumns,
    Joint,
    MutuallyExclusive,
)

SCALES = st.lists(st.floats(-2, 5).map(lambda s: round(s, 3)), min_size=1, max_size=5)


def draw_columns(n_columns, n=7, *, is_number=False):
    """Return keys with this many columns each, numbers or classes, and a condition ``(n, columns)`` without nulls."""
    key = torch.repeat_interleave(torch.arange(len(n_columns)), torch.tensor(n_columns, dtype=torch.long))
    generator = torch.Generator().manual_seed(0)
    if is_number:
        null, condition = torch.full((len(key),), -torch.inf), torch.randn(n, len(key), generator=generator)
    else:
        null, condition = torch.full((len(key),), 9), torch.randint(9, (n, len(key)), generator=generator)
    return ConditionColumns(null, key, len(n_columns)), condition


def drop(strategy, condition, columns, probability, seed=0):
    return CONDITION_STRATEGIES[strategy].drop(condition, columns, probability, torch.Generator().manual_seed(seed))


def test_only_joint_drops_all_keys_of_a_sample_that_lacks_one():
    null = torch.tensor([3, 9, 6, 5])
    columns = ConditionColumns(null, key=torch.tensor([0, 1, 2, 2]), n_keys=3)
    condition = torch.tensor([[0, 1, 5, 6], [1, 9, 0, 5], [2, 2, 6, 5]])

    assert torch.equal(drop("additive", condition, columns, 0.0), condition)
    assert torch.equal(drop("joint", condition, columns, 0.0), torch.stack([condition[0], null, null]))


@pytest.mark.parametrize("strategy", CONDITION_STRATEGIES)
@given(
    n_columns=st.lists(st.integers(1, 3), max_size=4),
    is_number=st.booleans(),
    p=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_each_strategy_drops_whole_keys_of_whole_samples_or_batches(strategy, n_columns, is_number, p, seed):
    columns, condition = draw_columns(n_columns, is_number=is_number)
    before = condition.clone()
    dropped = drop(strategy, condition, columns, p, seed)
    assert torch.equal(condition, before)
    given = torch.ones(7, len(n_columns), dtype=torch.bool)
    for key in range(len(n_columns)):
        own = columns.key == key
        given[:, key] = (dropped == condition)[:, own].all(1)
        assert torch.equal(dropped[:, own], torch.where(given[:, key, None], condition, columns.null)[:, own])
    if strategy == "joint":
        assert (given.all(1) | ~given.any(1)).all()
    if strategy == "mutually_exclusive":
        assert given.any(0).sum() <= 1
    assert p > 0 or strategy != "additive" or given.all()


def test_mutually_exclusive_shows_every_key_in_an_equal_share_of_batches():
    columns, condition = draw_columns([1, 1, 1], 1)
    generator = torch.Generator().manual_seed(0)
    dropped = [MutuallyExclusive().drop(condition, columns, 0.0, generator) for _ in range(3_000)]
    shown = (torch.cat(dropped) != columns.null).sum(0)
    assert ((shown - 1_000).abs() < 104).all()  # binomial: standard deviation 26, four of them allowed


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
def test_every_strategy_drops_as_often_as_its_coins_say(probability):
    n, p = 40_000, probability
    columns, condition = draw_columns([1, 1], n)
    for strategy in ("joint", "mutually_exclusive"):
        is_dropped = (drop(strategy, condition, columns, p) == columns.null).all(1)
        assert abs(is_dropped.double().mean() - p) < 4 * (p * (1 - p) / n) ** 0.5
    dropped = drop("additive", condition, columns, p) == columns.null
    for first, second in itertools.product([False, True], repeat=2):
        share = ((dropped[:, 0] == first) & (dropped[:, 1] == second)).double().mean()
        by_coins = (p if first else 1 - p) * (p if second else 1 - p)
        expected = (1 - p) * by_coins + (p if first and second else 0)
        assert abs(share - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def test_one_key_alone_is_dropped_as_often_as_by_joint():
    n, probability = 20_000, 0.3
    columns, condition = draw_columns([1], n)
    dropped = Additive().drop(condition, columns, probability, torch.Generator().manual_seed(0))
    assert torch.equal(dropped, drop("joint", condition, columns, probability))


@pytest.mark.parametrize(
    ("strategy", "scales", "terms"),
    [
        (Joint(), [0.5, 1.5, 4.0], {(): -1.0, (0, 1, 2): 2.0}),
        (MutuallyExclusive(), [0.5, 1.5], {(): -1.0, (0,): 0.5, (1,): 1.5}),
        (Additive(), [2.0, 1.0, 4.0], {(0, 1, 2): 5.0, (1, 2): -1.0, (0, 1): -3.0}),
        (Additive(), [0.0, 2.0, 3.0], {(1, 2): 4.0, (2,): -1.0, (1,): -2.0}),  # no prediction sees a key of scale 0
        (Additive(), [1.0, 0.0, 1.0], {(0, 2): 1.0}),
        (Additive(), [1.0, 1.0, 1.0], {(0, 1, 2): 1.0}),
        (Additive(), [0.0, 0.0], {(): 1.0}),
        *[(strategy, [], {(): 1.0}) for strategy in CONDITION_STRATEGIES.values()],
    ],
)
def test_the_weights_of_predictions(strategy, scales, terms):
    assert strategy.terms(scales) == terms


def test_sums_of_scales_that_are_zero_but_for_rounding_make_no_prediction():
    assert set(MutuallyExclusive().terms([0.1, 0.2, 0.7])) == {(0,), (1,), (2,)}
    assert set(Additive().terms([0.3, 0.7])) == {(1,), (0,)}


@given(scales=SCALES)
@settings(max_examples=50, deadline=None)
def test_weights_sum_to_one_and_subsets_are_needed(scales):
    for strategy in CONDITION_STRATEGIES.values():
        terms = strategy.terms(scales)
        assert sum(terms.values()) == pytest.approx(1)
        assert all(terms.values())
        assert len(scales) > 1 or terms == pytest.approx(Joint().terms(scales))
