import warnings

import pytest
import torch
from hypothesis import given, settings
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


def build_field(network, condition, columns, strategy, scales):
    return GuidedField(network, condition, columns, Guidance.of(CONDITION_STRATEGIES[strategy], scales))


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


@pytest.mark.parametrize(("strategy", "n_evaluated"), [("joint", 2), ("mutually_exclusive", 3), ("additive", 3)])
def test_all_needed_predictions_run_as_one_batch(strategy, n_evaluated):
    x_t, t, condition, columns = build_inputs([3, 4])
    network = RecordingNetwork()
    build_field(network, condition, columns, strategy, [2.0, 3.0])(x_t, t)
    assert network.rows == [n_evaluated * len(x_t)]


@pytest.mark.parametrize("strategy", CONDITION_STRATEGIES)
def test_guided_samples_do_not_depend_on_their_batch(strategy):
    x_t, t, condition, columns = build_inputs([3, 4])
    together = build_field(RecordingNetwork(), condition, columns, strategy, [2.0, 3.0])(x_t, t)
    for i in range(len(x_t)):
        alone = build_field(RecordingNetwork(), condition[[i]], columns, strategy, [2.0, 3.0])(x_t[[i]], t[i])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-12, atol=1e-12)


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
