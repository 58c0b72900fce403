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
