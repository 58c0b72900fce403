import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgen_diffusion.diffusion import CONDITION_STRATEGIES, ConditionColumns, GuidedField

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
    return x_t, t, condition, ConditionColumns.of_classes(n_classes)


def build_field(network, condition, columns, strategy, scales):
    return GuidedField(network, condition, columns, tuple(CONDITION_STRATEGIES[strategy].terms(scales)))


def predictions(x_t, t, condition, columns):
    """Evaluate the network without, with all, and with each single key."""
    network = RecordingNetwork()
    single = [network(x_t, t, columns.keep(condition, [k])) for k in range(columns.n_keys)]
    return network(x_t, t, columns.keep(condition, [])), network(x_t, t, condition), single


@given(scales=st.lists(SCALES, min_size=1, max_size=3))
@settings(max_examples=50, deadline=None)
def test_joint_guidance_follows_its_formula(scales):
    x_t, t, condition, columns = build_inputs([3, 4, 2][: len(scales)])
    v_null, v_all, _ = predictions(x_t, t, condition, columns)
    guided = build_field(RecordingNetwork(), condition, columns, "joint", scales)(x_t, t)
    mean = sum(scales) / len(scales)
    torch.testing.assert_close(guided, v_null + mean * (v_all - v_null), rtol=1e-10, atol=1e-10)


@given(scales=st.lists(SCALES, min_size=1, max_size=3))
@settings(max_examples=50, deadline=None)
def test_mutually_exclusive_guidance_follows_its_formula(scales):
    x_t, t, condition, columns = build_inputs([3, 4, 2][: len(scales)])
    v_null, _, single = predictions(x_t, t, condition, columns)
    guided = build_field(RecordingNetwork(), condition, columns, "mutually_exclusive", scales)(x_t, t)
    by_hand = v_null + sum(s * (v_k - v_null) for s, v_k in zip(scales, single, strict=True))
    torch.testing.assert_close(guided, by_hand, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("strategy", CONDITION_STRATEGIES)
def test_scale_zero_is_the_unconditional_prediction_at_the_cost_of_one(strategy):
    x_t, t, condition, columns = build_inputs([3, 4])
    network = RecordingNetwork()
    guided = build_field(network, condition, columns, strategy, [0.0, 0.0])(x_t, t)
    torch.testing.assert_close(guided, predictions(x_t, t, condition, columns)[0], rtol=0, atol=0)
    assert network.rows == [len(x_t)]


def test_joint_scale_one_is_the_conditional_prediction_and_does_not_evaluate_the_null():
    x_t, t, condition, columns = build_inputs([3, 4])
    network = RecordingNetwork()
    guided = build_field(network, condition, columns, "joint", [1.0, 1.0])(x_t, t)
    torch.testing.assert_close(guided, predictions(x_t, t, condition, columns)[1], rtol=0, atol=0)
    assert network.rows == [len(x_t)]


def test_mutually_exclusive_scale_on_one_key_does_not_evaluate_the_others():
    x_t, t, condition, columns = build_inputs([3, 4])
    network = RecordingNetwork()
    guided = build_field(network, condition, columns, "mutually_exclusive", [0.0, 1.0])(x_t, t)
    torch.testing.assert_close(guided, predictions(x_t, t, condition, columns)[2][1], rtol=0, atol=0)
    assert network.rows == [len(x_t)]


@pytest.mark.parametrize(("strategy", "n_evaluated"), [("joint", 2), ("mutually_exclusive", 3)])
def test_all_needed_predictions_run_as_one_batch(strategy, n_evaluated):
    x_t, t, condition, columns = build_inputs([3, 4])
    network = RecordingNetwork()
    build_field(network, condition, columns, strategy, [2.0, 3.0])(x_t, t)
    assert network.rows == [n_evaluated * len(x_t)]


@pytest.mark.parametrize("strategy", CONDITION_STRATEGIES)
def test_without_keys_the_field_is_the_network(strategy):
    x_t, t, condition, columns = build_inputs([])
    network = RecordingNetwork()
    guided = build_field(network, condition, columns, strategy, [])(x_t, t)
    torch.testing.assert_close(guided, RecordingNetwork()(x_t, t, condition), rtol=0, atol=0)
    assert network.rows == [len(x_t)]


@pytest.mark.parametrize("strategy", CONDITION_STRATEGIES)
def test_a_scalar_time_means_the_same_time_for_every_sample(strategy):
    x_t, _, condition, columns = build_inputs([3, 4])
    field = build_field(RecordingNetwork(), condition, columns, strategy, [2.0, 3.0])
    one = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(field(x_t, one), field(x_t, one.repeat(len(x_t))), rtol=0, atol=0)


@pytest.mark.parametrize("strategy", CONDITION_STRATEGIES)
def test_guided_samples_do_not_depend_on_their_batch(strategy):
    x_t, t, condition, columns = build_inputs([3, 4])
    together = build_field(RecordingNetwork(), condition, columns, strategy, [2.0, 3.0])(x_t, t)
    for i in range(len(x_t)):
        alone = build_field(RecordingNetwork(), condition[[i]], columns, strategy, [2.0, 3.0])(x_t[[i]], t[[i]])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-12, atol=1e-12)
