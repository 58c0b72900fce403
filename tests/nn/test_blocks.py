import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm

from scgen_diffusion.nn import (
    LAYER_NORM_EPS,
    CrossAttentionBlock,
    ModulatedBlock,
    SelfAttention,
    SwiGLU,
    TransformerBlock,
    modulate,
)

WIDTH, N_HEADS = 8, 2


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(block, seed=0):
    """Change every parameter from its initial value, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(seed)
    block = block.double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return block


def build_modulated():
    return ModulatedBlock(WIDTH, lambda: SelfAttention(WIDTH, N_HEADS, bias=True), lambda: SwiGLU(WIDTH))


def norm(x, layer=None, eps=LAYER_NORM_EPS):
    return layer_norm(x, x.shape[-1:], *((layer.weight, layer.bias) if layer else (None, None)), eps=eps)


def test_transformer_block_follows_its_formula():
    block, tokens = build(TransformerBlock(WIDTH, N_HEADS)), draw(3, 5, WIDTH)
    middle = tokens + block.attention(norm(tokens, block.norm_attention))
    expected = middle + block.feed_forward(norm(middle, block.norm_feed_forward))
    torch.testing.assert_close(block(tokens), expected, rtol=1e-10, atol=1e-10)


def test_transformer_block_is_equivariant_to_the_order_of_tokens():
    block, tokens, order = build(TransformerBlock(WIDTH, N_HEADS)), draw(3, 5, WIDTH), torch.randperm(5)
    torch.testing.assert_close(block(tokens[:, order]), block(tokens)[:, order], rtol=1e-10, atol=1e-10)


def test_cross_attention_block_follows_its_formula():
    block, queries, tokens = build(CrossAttentionBlock(WIDTH, N_HEADS)), draw(3, 4, WIDTH), draw(3, 5, WIDTH, seed=2)
    attended = block.attention(norm(queries, block.norm_queries), block.project(tokens))
    middle = queries + attended
    expected = middle + block.feed_forward(norm(middle, block.norm_feed_forward))
    torch.testing.assert_close(block(queries, block.project(tokens)), expected, rtol=1e-10, atol=1e-10)


def test_cross_attention_block_is_invariant_to_tokens_and_equivariant_to_queries():
    block, queries, tokens = build(CrossAttentionBlock(WIDTH, N_HEADS)), draw(3, 4, WIDTH), draw(3, 5, WIDTH, seed=2)
    mask = torch.tensor([[True, True, False, True, False]] * 3)
    keys_values, of_tokens, of_queries = block.project(tokens), torch.randperm(5), torch.randperm(4)
    permuted = block(queries[:, of_queries], keys_values[:, of_tokens], mask[:, of_tokens])
    torch.testing.assert_close(permuted, block(queries, keys_values, mask)[:, of_queries], rtol=1e-10, atol=1e-10)


def test_cross_attention_block_ignores_masked_tokens():
    block, queries, tokens = build(CrossAttentionBlock(WIDTH, N_HEADS)), draw(1, 4, WIDTH), draw(3, 5, WIDTH, seed=2)
    mask = torch.tensor([[True, True, True, False, False]] * 3)
    expected = block(queries, block.project(tokens[:, :3]))
    torch.testing.assert_close(block(queries, block.project(tokens), mask), expected, rtol=1e-10, atol=1e-10)


def test_modulated_block_starts_as_the_identity():
    torch.manual_seed(0)
    block, tokens = build_modulated(), torch.randn(3, 5, WIDTH)
    assert torch.equal(block(tokens, torch.randn(3, WIDTH)), tokens)


def test_modulated_block_can_leave_the_identity():
    torch.manual_seed(0)
    block = build_modulated()
    block(torch.randn(3, 5, WIDTH), torch.randn(3, WIDTH)).square().sum().backward()
    _, _, gate_a, _, _, gate_f = block.modulation[-1].weight.grad.chunk(6)
    assert (gate_a != 0).any()
    assert (gate_f != 0).any()


def test_modulated_block_follows_its_formula():
    block, tokens, condition = build(build_modulated()), draw(3, 5, WIDTH), draw(3, WIDTH, seed=2)
    chunks = block.modulation(condition)[:, None].split(WIDTH, dim=-1)
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = chunks
    middle = tokens + gate_a * block.attention(norm(tokens, eps=1e-6) * (1 + scale_a) + shift_a)
    expected = middle + gate_f * block.feed_forward(norm(middle, eps=1e-6) * (1 + scale_f) + shift_f)
    torch.testing.assert_close(block(tokens, condition), expected, rtol=1e-10, atol=1e-10)


def test_modulated_block_takes_other_halves():
    block = build(ModulatedBlock(WIDTH, nn.Tanh, nn.Identity))
    tokens, condition = draw(3, 5, WIDTH), draw(3, WIDTH, seed=2)
    assert not torch.allclose(block(tokens, condition), tokens)


def test_the_trace_of_a_block_shows_how_its_tokens_came_about():
    block, tokens, condition = build(build_modulated()), draw(3, 5, WIDTH), draw(3, WIDTH, seed=2)
    first, second = block.trace(tokens, condition)
    _, _, gate_a, _, _, gate_f = block.modulation(condition)[:, None].split(WIDTH, dim=-1)
    assert torch.equal(first.tokens_in, tokens)
    assert torch.equal(second.tokens_in, first.tokens_out)
    assert torch.equal(second.tokens_out, block(tokens, condition))
    for half, operator, gate in [(first, block.attention, gate_a), (second, block.feed_forward, gate_f)]:
        assert torch.equal(half.output, operator(half.modulated))
        assert torch.equal(half.tokens_out, half.tokens_in + gate * half.output)


@pytest.mark.parametrize("shape", [(3,), (2, 5, 3)])
def test_modulation_by_zero_changes_nothing(shape):
    x = draw(*shape)
    assert torch.equal(modulate(x, torch.zeros(3), torch.zeros(3)), x)
    torch.testing.assert_close(modulate(x, torch.full((3,), 2.0), torch.full((3,), 0.5)), 1.5 * x + 2)
