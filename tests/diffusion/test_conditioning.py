import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgen_diffusion.diffusion import CONDITION_STRATEGIES, GuidanceTerm, Joint, MutuallyExclusive, keep_keys

N_CLASSES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def draw_classes(n_samples, n_classes, seed=0):
    """Return class indices ``(n_samples, keys)``, none of them null, and the null classes."""
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(n, (n_samples,), generator=generator) for n in n_classes]
    condition = torch.stack(columns, 1) if columns else torch.empty(n_samples, 0, dtype=torch.long)
    return condition, torch.tensor(list(n_classes), dtype=torch.long)


def drop(strategy, condition, null, probability, seed=0):
    return CONDITION_STRATEGIES[strategy].drop(condition, null, probability, torch.Generator().manual_seed(seed))


@given(n_classes=N_CLASSES, data=st.data())
@settings(max_examples=50, deadline=None)
def test_keep_keys_nulls_exactly_the_keys_that_are_not_listed(n_classes, data):
    keys = data.draw(st.sets(st.integers(0, len(n_classes) - 1)))
    condition, null = draw_classes(7, n_classes)
    kept = keep_keys(condition, null, sorted(keys))
    for key in range(len(n_classes)):
        expected = condition[:, key] if key in keys else null[key].expand(7)
        assert torch.equal(kept[:, key], expected)


@given(n_classes=N_CLASSES, probability=st.floats(0, 1), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_joint_drops_all_keys_of_a_sample_or_none(n_classes, probability, seed):
    condition, null = draw_classes(20, n_classes)
    dropped = drop("joint", condition, null, probability, seed)
    is_whole, is_null = (dropped == condition).all(1), (dropped == null).all(1)
    assert (is_whole | is_null).all()


@given(n_classes=N_CLASSES, probability=st.floats(0, 1), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_mutually_exclusive_shows_at_most_one_key_and_the_same_in_the_whole_batch(n_classes, probability, seed):
    condition, null = draw_classes(20, n_classes)
    dropped = drop("mutually_exclusive", condition, null, probability, seed)
    is_shown = dropped != null
    assert is_shown.any(0).sum() <= 1
    assert torch.equal(dropped[is_shown], condition[is_shown])


@pytest.mark.parametrize("strategy", CONDITION_STRATEGIES)
@pytest.mark.parametrize("probability", [0.1, 0.8])
def test_share_of_dropped_samples_is_the_asked_probability(strategy, probability):
    n = 20_000
    condition, null = draw_classes(n, (3, 2))
    is_dropped = (drop(strategy, condition, null, probability) == null).all(1)
    standard_error = (probability * (1 - probability) / n) ** 0.5
    assert abs(is_dropped.double().mean() - probability) < 4 * standard_error


@pytest.mark.parametrize("strategy", CONDITION_STRATEGIES)
def test_probability_one_drops_every_sample_and_zero_drops_none(strategy):
    condition, null = draw_classes(500, (3, 2))
    assert (drop(strategy, condition, null, 1.0) == null).all()
    assert (drop(strategy, condition, null, 0.0) != null).any(1).all()


def test_mutually_exclusive_shows_every_key_in_an_equal_share_of_batches():
    condition, null = draw_classes(1, (4, 4, 4))
    generator = torch.Generator().manual_seed(0)
    shown = torch.stack(
        [(MutuallyExclusive().drop(condition, null, 0.0, generator) != null)[0] for _ in range(3_000)]
    ).sum(0)
    # Binomial(3 000, 1/3): standard deviation 26, four of them allowed.
    assert ((shown - 1_000).abs() < 104).all()


@pytest.mark.parametrize("strategy", CONDITION_STRATEGIES)
def test_dropping_draws_from_its_generator_alone(strategy):
    condition, null = draw_classes(50, (3, 2))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = drop(strategy, condition, null, 0.5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(drop(strategy, condition, null, 0.5, seed=1), first)
    assert not torch.equal(drop(strategy, condition, null, 0.5, seed=2), first)


@pytest.mark.parametrize("strategy", CONDITION_STRATEGIES)
def test_dropping_does_not_change_its_input(strategy):
    condition, null = draw_classes(50, (3, 2))
    before = condition.clone()
    drop(strategy, condition, null, 1.0)
    assert torch.equal(condition, before)


@pytest.mark.parametrize("strategy", CONDITION_STRATEGIES)
def test_without_keys_there_is_nothing_to_drop_and_nothing_to_guide(strategy):
    condition, null = draw_classes(6, ())
    assert drop(strategy, condition, null, 0.5).shape == (6, 0)
    assert CONDITION_STRATEGIES[strategy].terms([]) == []


def test_joint_guidance_is_one_term_of_all_keys_with_the_mean_scale():
    assert Joint().terms([0.5, 1.5, 4.0]) == [GuidanceTerm((0, 1, 2), 2.0)]


def test_mutually_exclusive_guidance_is_one_term_per_key():
    assert MutuallyExclusive().terms([0.5, 1.5]) == [GuidanceTerm((0,), 0.5), GuidanceTerm((1,), 1.5)]
