import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgen_diffusion.diffusion import (
    CONDITION_STRATEGIES,
    PATHS,
    Additive,
    ConditionColumns,
    Guidance,
    GuidedField,
    Joint,
    LinearInterpolant,
    MutuallyExclusive,
    ResolvedGuidance,
)

SCALES = st.floats(-2, 5, allow_nan=False).map(lambda s: round(s, 3))


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


def columns_of(n_classes):
    """Return what columns with this many classes each mean."""
    return ConditionColumns(torch.tensor(n_classes, dtype=torch.long), torch.arange(len(n_classes)), len(n_classes))


def build_inputs(n_classes, n_samples=5):
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(n_samples, 3, 2, generator=generator, dtype=torch.float64)
    t = torch.rand(n_samples, generator=generator, dtype=torch.float64)
    columns = [torch.randint(n, (n_samples,), generator=generator) for n in n_classes]
    condition = torch.stack(columns, 1) if columns else torch.empty(n_samples, 0, dtype=torch.long)
    return x_t, t, condition, columns_of(n_classes)


def build_field(network, condition, columns, strategy, scales, path=LinearInterpolant(), **how):
    guidance = ResolvedGuidance.of(CONDITION_STRATEGIES[strategy], scales, **how)
    return GuidedField(network, condition, columns, path, guidance)


def predictions(x_t, t, condition, columns):
    """Evaluate the network without, with all, and with each single key."""
    network = RecordingNetwork()
    single = [network(x_t, t, columns.keep(condition, [k])) for k in range(columns.n_keys)]
    return network(x_t, t, columns.keep(condition, [])), network(x_t, t, condition), single


@given(scales=st.lists(SCALES, min_size=1, max_size=3))
@settings(max_examples=50, deadline=None)
def test_guidance_follows_its_formulas(scales):
    x_t, t, condition, columns = build_inputs([3, 4, 2][: len(scales)])
    network = RecordingNetwork()
    v_null, v_all, single = predictions(x_t, t, condition, columns)
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
    ("strategy", "scales", "expected"),
    [
        ("joint", [0.0, 0.0], lambda null, joint, single: null),
        ("mutually_exclusive", [0.0, 0.0], lambda null, joint, single: null),
        ("additive", [0.0, 0.0], lambda null, joint, single: null),
        ("joint", [1.0, 1.0], lambda null, joint, single: joint),
        ("mutually_exclusive", [0.0, 1.0], lambda null, joint, single: single[1]),
        *[(strategy, [], lambda null, joint, single: null) for strategy in CONDITION_STRATEGIES],
    ],
)
def test_guidance_that_is_one_prediction_costs_no_other(strategy, scales, expected):
    x_t, t, condition, columns = build_inputs([3, 4][: len(scales)])
    network = RecordingNetwork()
    guided = build_field(network, condition, columns, strategy, scales)(x_t, t)
    torch.testing.assert_close(guided, expected(*predictions(x_t, t, condition, columns)), rtol=0, atol=0)
    assert network.rows == [len(x_t)]


@pytest.mark.parametrize(
    ("strategy", "scales", "rescale", "n_evaluated"),
    [
        *[("joint", [2.0, 3.0], rescale, 2) for rescale in (0, 0.5)],
        *[("mutually_exclusive", [2.0, 3.0], rescale, 3) for rescale in (0, 0.5)],
        *[("additive", [2.0, 3.0], rescale, 3) for rescale in (0, 0.5)],
        ("joint", [0.0, 0.0], 0.5, 2),  # rescaling needs the conditional prediction, too
    ],
)
def test_all_needed_predictions_run_as_one_batch(strategy, scales, rescale, n_evaluated):
    x_t, t, condition, columns = build_inputs([3, 4])
    network = RecordingNetwork()
    build_field(network, condition, columns, strategy, scales, rescale=rescale)(x_t, t)
    assert network.rows == [n_evaluated * len(x_t)]


@pytest.mark.parametrize("strategy", CONDITION_STRATEGIES)
def test_guided_samples_do_not_depend_on_their_batch(strategy):
    x_t, t, condition, columns = build_inputs([3, 4])
    together = build_field(RecordingNetwork(), condition, columns, strategy, [2.0, 3.0])(x_t, t)
    for i in range(len(x_t)):
        alone = build_field(RecordingNetwork(), condition[[i]], columns, strategy, [2.0, 3.0])(x_t[[i]], t[i])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-12, atol=1e-12)


# --- in an interval ---------------------------------------------------------------------------------------------------

TIMES = (0.0, 0.3, 0.5, 0.7, 1.0)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outside_of_the_interval_the_prediction_is_the_conditional_one_and_costs_only_that(path, dtype):
    x_t, _, condition, columns = build_inputs([3, 4])
    x_t = x_t.to(dtype)
    for time in TIMES:
        t = path.network_time(torch.tensor(time, dtype=dtype))
        network = RecordingNetwork()
        field = build_field(network, condition, columns, "additive", [2.0, 3.0], path, interval=(0.3, 0.7))
        is_inside = 0.3 <= time <= 0.7
        expected = build_field(
            RecordingNetwork(), condition, columns, "additive", [2.0, 3.0] if is_inside else [1.0, 1.0]
        )
        torch.testing.assert_close(field(x_t, t), expected(x_t, t), rtol=0, atol=0)
        assert network.rows == [(3 if is_inside else 1) * len(x_t)]


BAD_INTERVALS = [(0.5, 0.5), (0.7, 0.3), (-0.1, 1), (0, 1.1), (0.5,), 0.5, None, ("a", "b"), (0, np.nan)]
BAD = [("interval", value) for value in BAD_INTERVALS]
BAD += [("rescale", value) for value in (-0.1, 1.1, np.nan, "much", None, True)]


@pytest.mark.parametrize(("argument", "value"), BAD)
def test_an_invalid_value_is_refused(argument, value):
    with pytest.raises(ValueError, match=argument):
        Guidance(**{argument: value})


def test_an_interval_may_be_an_array_or_a_list():
    assert Guidance(interval=np.array([0, 0.5])) == Guidance(interval=[0, 0.5]) == Guidance(interval=(0.0, 0.5))


# --- per key ----------------------------------------------------------------------------------------------------------


def test_keys_that_are_dropped_together_share_the_mean_of_their_scales_and_a_warning_says_so():
    with pytest.warns(UserWarning, match="guidance scale 2"):
        shared = Guidance({"a": 3.0}).resolve(Joint(), ["a", "b"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shared == Guidance({"a": 2.0, "b": 2.0}).resolve(Joint(), ["a", "b"])
        Guidance({"a": 3.0}).resolve(Additive(), ["a", "b"])
        Guidance({"a": 3.0}).resolve(MutuallyExclusive(), ["a", "b"])


# --- rescaled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", CONDITION_STRATEGIES)
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_rescaling_brings_the_spread_of_each_sample_back_and_keeps_its_direction(strategy, share):
    x_t, t, condition, columns = build_inputs([3, 4])
    plain, guided = (build_field(RecordingNetwork(), condition, columns, strategy, [s] * 2)(x_t, t) for s in (1.0, 4.0))
    rescaled = build_field(RecordingNetwork(), condition, columns, strategy, [4.0] * 2, rescale=share)(x_t, t)
    spreads = [v.flatten(1).std(1) for v in (plain, guided, rescaled)]
    torch.testing.assert_close(spreads[2], share * spreads[0] + (1 - share) * spreads[1])
    torch.testing.assert_close(
        torch.nn.functional.cosine_similarity(rescaled.flatten(1), guided.flatten(1)), torch.ones(5).double()
    )


@pytest.mark.parametrize("strategy", CONDITION_STRATEGIES)
def test_rescaling_by_nothing_and_at_scale_one_changes_nothing_and_costs_nothing(strategy):
    x_t, t, condition, columns = build_inputs([3, 4])
    for scale, share in [(3.0, 0.0), (1.0, 0.7)]:
        network, other = RecordingNetwork(), RecordingNetwork()
        rescaled = build_field(network, condition, columns, strategy, [scale] * 2, rescale=share)(x_t, t)
        expected = build_field(other, condition, columns, strategy, [scale] * 2)(x_t, t)
        assert torch.equal(rescaled, expected)
        assert network.rows == other.rows


def test_a_prediction_without_spread_is_left_as_it_is():
    condition, columns = torch.zeros(4, 1, dtype=torch.long), columns_of([2])

    def constant(x_t, t, codes):
        return codes.double().expand_as(x_t) + 1

    field = build_field(constant, condition, columns, "joint", [3.0], rescale=1.0)
    guided = field(torch.randn(4, 3, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(guided, torch.full((4, 3), 3.0 * 1 - 2.0 * 3, dtype=torch.float64))


# --- where the true fields are known ----------------------------------------------------------------------------------


def gaussian_velocity(x_t, t, mean, variance):
    """Return the velocity of the straight path from standard noise to ``N(mean, variance)``."""
    path_variance = t**2 * variance + (1 - t) ** 2
    return mean + (t * variance - (1 - t)) / path_variance * (x_t - t * mean)


def joint_velocity(x_t, t, condition, joint):
    """Return the velocity of mixtures of ``N(mean[a, b], 1)`` given the keys ``a``, ``b``, or one, or none of them."""
    means, shares = joint
    velocities = []
    for x, (a, b) in zip(x_t, condition.tolist(), strict=True):
        rows, columns = ([a] if a < 2 else [0, 1]), ([b] if b < 2 else [0, 1])
        mean, share = means[rows][:, columns].flatten(), shares[rows][:, columns].flatten()
        spread = t**2 + (1 - t) ** 2
        responsibility = (share.log() - (x - t * mean) ** 2 / (2 * spread)).softmax(0)
        velocities.append((responsibility * gaussian_velocity(x, t, mean, 1.0)).sum())
    return torch.stack(velocities)[:, None]


@pytest.mark.parametrize("time", [0.1, 0.5, 0.9])
def test_additive_guidance_of_two_dependent_keys_raises_the_likelihood_of_one_given_the_other(time):
    """The guided score is that of p(x | a, b) p(b | x, a)^(s - 1), whatever the joint law of the keys."""
    means = torch.tensor([[-2.0, 0.5], [1.0, 3.0]], dtype=torch.float64)
    shares = torch.tensor([[0.4, 0.1], [0.2, 0.3]], dtype=torch.float64)
    scale, t = 2.5, torch.tensor(time, dtype=torch.float64)
    x_t = torch.linspace(-3, 3, 4, dtype=torch.float64)[:, None]
    condition = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])

    def network(x, times, codes):
        return joint_velocity(x, times[0], codes, (means, shares))

    def log_density(x, a, b):
        return -((x - t * means[a, b]) ** 2) / (2 * (t**2 + (1 - t) ** 2))

    def guided_log_density(x, a, b):
        both = torch.stack([log_density(x, a, other) + shares[a, other].log() for other in (0, 1)])
        return log_density(x, a, b) + (scale - 1) * both.log_softmax(0)[b]

    field = build_field(network, condition, columns_of([2, 2]), "additive", [1.0, scale])
    guided = field(x_t, t)[:, 0]
    for i, (a, b) in enumerate(condition.tolist()):
        x = x_t[i, 0].clone().requires_grad_()
        (score,) = torch.autograd.grad(guided_log_density(x, a, b), x)
        velocity = x / t + (1 - t) / t * score  # of the straight path, from its score
        torch.testing.assert_close(guided[i], velocity.detach(), rtol=1e-9, atol=1e-9)
