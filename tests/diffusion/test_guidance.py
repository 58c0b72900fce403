import itertools
import warnings

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scgen_diffusion.diffusion import (
    CONDITION_STRATEGIES,
    Additive,
    ConditionColumns,
    Guidance,
    GuidedField,
    Joint,
    MutuallyExclusive,
)

SCALES = st.floats(-2, 5, allow_nan=False).map(lambda s: round(s, 3))
SCALES_OF_KEYS = st.lists(SCALES, min_size=1, max_size=5)


# --- strategies -------------------------------------------------------------------------------------------------------


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


@given(scales=SCALES_OF_KEYS)
@settings(max_examples=50, deadline=None)
def test_weights_sum_to_one_and_subsets_are_needed(scales):
    for strategy in CONDITION_STRATEGIES.values():
        terms = strategy.terms(scales)
        assert sum(terms.values()) == pytest.approx(1)
        assert all(terms.values())
        assert len(scales) > 1 or terms == pytest.approx(Joint().terms(scales))


# --- guidance ---------------------------------------------------------------------------------------------------------


class RecordingNetwork:
    """A network that mixes sample, time and condition non-linearly, row by row, and counts the rows that it sees."""

    def __init__(self):
        self.rows = []

    def __call__(self, x_t, t, condition):
        assert t.shape == (len(x_t),)
        assert len(condition) == len(x_t)
        self.rows.append(len(x_t))
        code = (condition.double() * 10.0 ** torch.arange(condition.shape[1])).sum(1) + 1
        factor = torch.sin(code + t.double())
        return factor.reshape(-1, *[1] * (x_t.ndim - 1)) * x_t.tanh()


def build_inputs(n_classes, n_samples=5):
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(n_samples, 3, 2, generator=generator, dtype=torch.float64)
    t = torch.rand(n_samples, generator=generator, dtype=torch.float64)
    columns = [torch.randint(n, (n_samples,), generator=generator) for n in n_classes]
    condition = torch.stack(columns, 1) if columns else torch.empty(n_samples, 0, dtype=torch.long)
    n_keys = len(n_classes)
    return x_t, t, condition, ConditionColumns(torch.tensor(n_classes).long(), torch.arange(n_keys), n_keys)


def build_field(network, condition, columns, strategy, scales):
    return GuidedField(network, condition, columns, Guidance(CONDITION_STRATEGIES[strategy].terms(scales)))


@given(scales=st.lists(SCALES, min_size=1, max_size=3))
@example(scales=[0.0, 0.0])
@example(scales=[1.0, 1.0])
@example(scales=[0.0, 1.0])
@settings(max_examples=50, deadline=None)
def test_guidance_follows_its_formulas(scales):
    x_t, t, condition, columns = build_inputs([3, 4, 2][: len(scales)])
    network = RecordingNetwork()
    v_null, v_all = network(x_t, t, columns.keep(condition, [])), network(x_t, t, condition)
    single = [network(x_t, t, columns.keep(condition, [key])) for key in range(columns.n_keys)]
    keys = [key for key, scale in enumerate(scales) if scale]  # additive guidance sees no others
    v_keys = network(x_t, t, columns.keep(condition, keys))
    lacking = {key: network(x_t, t, columns.keep(condition, [k for k in keys if k != key])) for key in keys}
    expected = {
        "joint": v_null + sum(scales) / len(scales) * (v_all - v_null),
        "mutually_exclusive": v_null + sum(s * (v_k - v_null) for s, v_k in zip(scales, single, strict=True)),
        "additive": v_keys + sum((scales[key] - 1) * (v_keys - v_k) for key, v_k in lacking.items()),
    }
    for strategy, by_hand in expected.items():
        guided = build_field(RecordingNetwork(), condition, columns, strategy, scales)(x_t, t)
        torch.testing.assert_close(guided, by_hand, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("strategy", "scales", "n_predictions"),
    [
        *[(strategy, scales, 1) for strategy in CONDITION_STRATEGIES for scales in ([], [0.0, 0.0])],
        ("joint", [1.0, 1.0], 1),
        ("mutually_exclusive", [0.0, 1.0], 1),
        ("joint", [2.0, 3.0], 2),
        ("mutually_exclusive", [2.0, 3.0], 3),
        ("additive", [2.0, 3.0], 3),
    ],
)
def test_only_the_needed_predictions_are_made_as_one_batch(strategy, scales, n_predictions):
    x_t, t, condition, columns = build_inputs([3, 4][: len(scales)])
    network = RecordingNetwork()
    build_field(network, condition, columns, strategy, scales)(x_t, t)
    assert network.rows == [n_predictions * len(x_t)]


def test_keys_that_are_dropped_together_share_the_mean_of_their_scales_and_a_warning_says_so():
    with pytest.warns(UserWarning, match="guidance scale 2"):
        shared = Guidance.resolve({"a": 3.0}, Joint(), ["a", "b"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shared == Guidance.resolve(2.0, Joint(), ["a", "b"])
        Guidance.resolve({"a": 3.0}, Additive(), ["a", "b"])
        Guidance.resolve({"a": 3.0}, MutuallyExclusive(), ["a", "b"])


@pytest.mark.parametrize(
    ("scale", "keys", "name"),
    [
        ({"doses": 1.0}, ["dose"], "doses"),
        ({"dose": float("nan")}, ["dose"], "guidance_scale"),
        ("2", ["dose"], "guidance_scale"),
        (2.0, [], "guidance_scale"),
    ],
)
def test_a_bad_scale_is_refused_by_name(scale, keys, name):
    with pytest.raises(ValueError, match=name):
        Guidance.resolve(scale, Additive(), keys)
