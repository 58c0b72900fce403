"""Embeddings of conditions: classes, numbers, sets, and what is not given."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgen_diffusion.nn import (
    Classes,
    ConditionEmbedding,
    Members,
    Number,
    classes_are_given,
    keys_of_columns,
    null_condition,
)

WIDTH = 6
VECTORS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
MIXED = [Classes(4), Number(), Members(5, largest=3), Classes(5, VECTORS)]


def build(*conditions):
    """Build an embedding whose networks have left their starting values."""
    torch.manual_seed(0)
    embedding = ConditionEmbedding(conditions, WIDTH)
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter)
    return embedding


def test_condition_embedding_is_the_sum_over_keys():
    torch.manual_seed(0)
    embedding = ConditionEmbedding([Classes(3), Classes(2)], 5)
    first, second = (table.weight for table in embedding.tables)
    condition = torch.tensor([[0, 1], [2, 0], [3, 2]])  # the last row is null for both
    expected = torch.stack([first[0] + second[1], first[2] + second[0], first[3] + second[2]])
    torch.testing.assert_close(embedding(condition), expected)
    assert torch.equal(ConditionEmbedding((), 5)(torch.empty(4, 0, dtype=torch.long)), torch.zeros(4, 5))


def test_null_and_keys_of_columns_lie_side_by_side():
    assert null_condition(MIXED).tolist() == [4, float("-inf"), 6, 5, 5, 5]
    assert keys_of_columns(MIXED).tolist() == [0, 1, 2, 2, 2, 3]
    whole = null_condition([Classes(4), Members(5, largest=2)])
    assert whole.dtype == torch.long  # unless a key is a number


def test_classes_and_sets_must_be_given_and_numbers_need_not():
    values, null = torch.tensor([0, 0.5, 1, 5, 5, 2]), null_condition(MIXED)
    is_left_out = keys_of_columns(MIXED) == torch.arange(4)[:, None]
    assert classes_are_given(torch.where(is_left_out, null, values), MIXED).tolist() == [False, True, False, False]


def test_every_parameter_has_a_gradient_and_what_is_not_given_has_one_too():
    embedding = build(*MIXED)
    condition = torch.stack([torch.tensor([1, 0.3, 0, 2, 5, 4.0]), null_condition(MIXED)])
    embedding(condition).square().sum().backward()
    for name, parameter in embedding.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", [Number(), Number(2), Members(5, 2)])
def test_what_is_not_given_has_a_vector_of_its_own(kind):
    embedding = build(kind)
    null = null_condition([kind])
    zero = torch.full_like(null, 5 if isinstance(kind, Members) else 0)  # the empty set, or zero
    nothing, empty = embedding(torch.stack([null, zero]))
    torch.testing.assert_close(nothing, embedding.tables[0].null[0])
    assert not torch.allclose(empty, nothing)


@settings(deadline=None)
@given(x=st.floats(-4, 4), step=st.floats(1e-4, 1e-3))
def test_the_embedding_of_a_number_is_smooth(x, step):
    embedding = build(Number())
    values = embedding(torch.tensor([[x - step], [x], [x + step]])).double()

    slope = (values[2] - values[0]).norm() / (2 * step)
    assert slope < 200  # a jump of 1 would give 500 at least
    assert (values[2] - values[1]).norm() < 0.3


@pytest.mark.parametrize("vectors", [None, VECTORS])
def test_the_order_of_members_does_not_matter(vectors):
    embedding = build(Members(5, 3, vectors))
    orders = torch.tensor(list(itertools.permutations([0, 2, 4])))

    values = embedding(orders)

    torch.testing.assert_close(values, values[:1].expand_as(values))


@pytest.mark.parametrize("vectors", [None, VECTORS])
def test_sets_start_as_sums_of_their_members_and_become_more(vectors):
    kind, sets = Members(5, 2, vectors), torch.tensor([[5, 5], [1, 5], [3, 5], [1, 3]])
    none, first, second, both = ConditionEmbedding([kind], WIDTH)(sets)
    torch.testing.assert_close(none, torch.zeros(WIDTH))
    torch.testing.assert_close(both, first + second)

    none, first, second, both = build(kind)(sets)  # as if trained
    assert not torch.allclose(both - none, (first - none) + (second - none), atol=0.1)


def test_scale_and_shift_of_known_vectors_do_not_matter():
    torch.manual_seed(0)
    plain = ConditionEmbedding([Classes(5, VECTORS)], WIDTH)
    changed = ConditionEmbedding([Classes(5, 100 * VECTORS - 7)], WIDTH)
    weights = {name: w for name, w in plain.state_dict().items() if not name.endswith("vectors")}
    changed.load_state_dict(weights, strict=False)
    codes = torch.arange(6)[:, None]

    torch.testing.assert_close(changed(codes), plain(codes), rtol=1e-3, atol=1e-6)
