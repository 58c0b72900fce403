"""Attention against torch's own."""

import pytest
import torch
from torch import nn

from scgen_diffusion.nn import SelfAttention, SubspaceAttention
from scgen_diffusion.nn._transformer import CrossAttention

WIDTH, N_HEADS = 12, 3


def build(kind, **options):
    torch.manual_seed(0)
    return kind(WIDTH, N_HEADS, **options).double()


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attend(attention, queries, tokens, mask=None):
    return attention(queries, attention.project_kv(tokens), mask)


def reference(queries, tokens, weight, bias, project_out, mask=None):
    """Let torch's own multi-head attention compute the same."""
    own = nn.MultiheadAttention(WIDTH, N_HEADS, batch_first=True, dtype=torch.float64)
    state = {"in_proj_weight": weight, "in_proj_bias": torch.zeros(3 * WIDTH) if bias is None else bias}
    state |= {"out_proj.bias": torch.zeros(WIDTH)}  # unless it has one
    own.load_state_dict(state | {f"out_proj.{name}": value for name, value in project_out.state_dict().items()})
    return own(queries, tokens, tokens, key_padding_mask=None if mask is None else ~mask, need_weights=False)[0]


@pytest.mark.parametrize("bias", [False, True])
def test_self_attention_is_multi_head_attention(bias):
    attention, tokens = build(SelfAttention, bias=bias), draw(2, 5, WIDTH)
    qkv = attention.project_qkv
    expected = reference(tokens, tokens, qkv.weight, qkv.bias, attention.project_out)
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n_queries", [2, 1], ids=["own queries", "shared queries"])
def test_cross_attention_is_multi_head_attention(masked, n_queries):
    attention, queries, tokens = build(CrossAttention), draw(n_queries, 4, WIDTH), draw(2, 6, WIDTH, seed=2)
    mask = torch.tensor([[True, False, True, True, False, True], [False] * 5 + [True]]) if masked else None
    weight = torch.cat([attention.project_query.weight, attention.project_kv.weight])
    expected = reference(queries.expand(2, -1, -1), tokens, weight, None, attention.project_out, mask)
    torch.testing.assert_close(attend(attention, queries, tokens, mask), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention, SubspaceAttention])
@pytest.mark.parametrize(("width", "n_heads"), [(10, 3), (4, 8)])
def test_heads_that_do_not_share_out_the_width_are_refused(kind, width, n_heads):
    with pytest.raises(ValueError, match="width"):
        kind(width, n_heads)
