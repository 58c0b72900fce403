import math

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm, silu

from scgen_diffusion.nn import LAYER_NORM_EPS, ModulatedBlock, SelfAttention, SubspaceAttention, SwiGLU, TimeEmbedding
from scgen_diffusion.nn._transformer import CrossAttention, patch_position_embedding, position_embedding

WIDTH, N_HEADS = 12, 3


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(block):
    """Change every parameter from its initial value, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(0)
    block = block.double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return block


def build_modulated():
    return ModulatedBlock(WIDTH, lambda: SelfAttention(WIDTH, N_HEADS, bias=True), lambda: SwiGLU(WIDTH))


def norm(x, layer=None, eps=LAYER_NORM_EPS):
    return layer_norm(x, x.shape[-1:], *((layer.weight, layer.bias) if layer else (None, None)), eps=eps)


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def build_attention(kind, **options):
    torch.manual_seed(0)
    return kind(WIDTH, N_HEADS, **options).double()


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
    attention, tokens = build_attention(SelfAttention, bias=bias), draw(2, 5, WIDTH)
    qkv = attention.project_qkv
    expected = reference(tokens, tokens, qkv.weight, qkv.bias, attention.project_out)
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n_queries", [2, 1], ids=["own queries", "shared queries"])
def test_cross_attention_is_multi_head_attention(masked, n_queries):
    attention, queries, tokens = build_attention(CrossAttention), draw(n_queries, 4, WIDTH), draw(2, 6, WIDTH, seed=2)
    mask = torch.tensor([[True, False, True, True, False, True], [False] * 5 + [True]]) if masked else None
    weight = torch.cat([attention.project_query.weight, attention.project_kv.weight])
    expected = reference(queries.expand(2, -1, -1), tokens, weight, None, attention.project_out, mask)
    torch.testing.assert_close(attend(attention, queries, tokens, mask), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention, SubspaceAttention])
@pytest.mark.parametrize(("width", "n_heads"), [(10, 3), (4, 8)])
def test_heads_that_do_not_share_out_the_width_are_refused(kind, width, n_heads):
    with pytest.raises(ValueError, match="width"):
        kind(width, n_heads)


def test_modulated_block_starts_as_the_identity():
    tokens = torch.randn(3, 5, WIDTH)
    assert torch.equal(build_modulated()(tokens, torch.randn(3, WIDTH)), tokens)


def test_modulated_block_and_its_trace_follow_its_formula():
    block, tokens, condition = build(build_modulated()), draw(3, 5, WIDTH), draw(3, WIDTH, seed=2)
    first, second = block.trace(tokens, condition)
    chunks = block.modulation(condition)[:, None].split(WIDTH, dim=-1)
    before = tokens
    for half, operator, (shift, scale, gate) in [
        (first, block.attention, chunks[:3]),
        (second, block.feed_forward, chunks[3:]),
    ]:
        assert torch.equal(half.tokens_in, before)
        close(half.modulated, norm(before, eps=1e-6) * (1 + scale) + shift)
        close(half.output, operator(half.modulated))
        close(half.tokens_out, before + gate * half.output)
        before = half.tokens_out
    assert torch.equal(before, block(tokens, condition))


@pytest.mark.parametrize(("n_positions", "width"), [(4, 8), (1, 2), (16, 256)])
def test_position_embedding_is_sines_then_cosines_of_falling_frequency(n_positions, width):
    expected = torch.empty(n_positions, width)
    for position in range(n_positions):
        for i in range(width // 2):
            angle = position / 10_000 ** (2 * i / width)
            expected[position, i], expected[position, width // 2 + i] = math.sin(angle), math.cos(angle)
    close(position_embedding(n_positions, width), expected, 3e-6)  # angles up to 15 in single precision


def test_patch_positions_are_a_constant_half_and_positions_of_half_the_width():
    embedding = patch_position_embedding(5, 12)
    assert (embedding[:, :3] == 0).all()
    assert (embedding[:, 3:6] == 1).all()
    assert torch.equal(embedding[:, 6:], position_embedding(5, 6))


@pytest.mark.parametrize(("embedding", "width"), [(position_embedding, 9), (patch_position_embedding, 6)])
def test_a_width_that_sines_and_cosines_cannot_share_is_refused(embedding, width):
    with pytest.raises(ValueError, match="width"):
        embedding(5, width)


def test_time_embedding_follows_its_formula():
    torch.manual_seed(0)
    embedding = TimeEmbedding(6)
    t = torch.tensor([0.0, 0.25, 1.0])
    frequencies = 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    angles = t.double()[:, None] * frequencies
    features = torch.cat([angles.cos(), angles.sin()], dim=1).float()
    first, _, second = embedding.network
    expected = silu(features @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(embedding(t), expected, rtol=1e-4, atol=1e-5)  # single precision, sums of 256 terms
