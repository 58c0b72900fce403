import pytest
import torch
from torch.nn.functional import multi_head_attention_forward

from scgen_diffusion.nn import CrossAttention, SelfAttention
from scgen_diffusion.nn._attention import attend as attention_of_heads

WIDTH, N_HEADS = 12, 3


def build(kind, *, seed=0, **options):
    torch.manual_seed(seed)
    return kind(WIDTH, N_HEADS, **options).double()


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attend(attention, queries, tokens, mask=None):
    return attention(queries, attention.project_kv(tokens), mask)


def reference(queries, tokens, weight, bias, project_out, mask=None):
    """Let torch's own multi-head attention, which wants tokens first, compute the same."""
    attended, _ = multi_head_attention_forward(
        queries.transpose(0, 1),
        tokens.transpose(0, 1),
        tokens.transpose(0, 1),
        embed_dim_to_check=WIDTH,
        num_heads=N_HEADS,
        in_proj_weight=weight,
        in_proj_bias=bias,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=project_out.weight,
        out_proj_bias=project_out.bias,
        training=False,
        key_padding_mask=None if mask is None else ~mask,
        need_weights=False,
    )
    return attended.transpose(0, 1)


@pytest.mark.parametrize("bias", [False, True])
def test_self_attention_is_multi_head_attention(bias):
    attention, tokens = build(SelfAttention, bias=bias), draw(2, 5, WIDTH)
    qkv = attention.project_qkv
    expected = reference(tokens, tokens, qkv.weight, qkv.bias, attention.project_out)
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("masked", [False, True])
def test_cross_attention_is_multi_head_attention(masked):
    attention, queries, tokens = build(CrossAttention), draw(2, 4, WIDTH), draw(2, 6, WIDTH, seed=2)
    mask = torch.tensor([[True, False, True, True, False, True], [False] * 5 + [True]]) if masked else None
    weight = torch.cat([attention.project_query.weight, attention.project_kv.weight])
    expected = reference(queries, tokens, weight, None, attention.project_out, mask)
    torch.testing.assert_close(attend(attention, queries, tokens, mask), expected, rtol=1e-10, atol=1e-10)


def test_shared_queries_are_queries_repeated_for_every_cell():
    attention, queries, tokens = build(CrossAttention), draw(1, 4, WIDTH), draw(3, 6, WIDTH, seed=2)
    shared = attend(attention, queries, tokens)
    torch.testing.assert_close(shared, attend(attention, queries.repeat(3, 1, 1), tokens), rtol=1e-12, atol=1e-12)


def test_masked_tokens_have_no_influence():
    attention, queries, tokens = build(CrossAttention), draw(1, 4, WIDTH), draw(2, 6, WIDTH, seed=2)
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    changed = torch.where(mask[..., None], tokens, 1e6)
    masked = attend(attention, queries, tokens, mask)
    torch.testing.assert_close(attend(attention, queries, changed, mask), masked, rtol=0, atol=0)
    torch.testing.assert_close(masked, attend(attention, queries, tokens[:, :4]))


def test_masked_tokens_get_no_gradient():
    attention, tokens = build(CrossAttention), draw(2, 6, WIDTH, seed=2).requires_grad_()
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    attend(attention, draw(1, 4, WIDTH), tokens, mask).square().sum().backward()
    assert (tokens.grad[:, 4:] == 0).all()
    assert (tokens.grad[:, :4] != 0).all()


def with_gradients(queries, keys, values, mask, dtype):
    """Attend, and return the output and the gradients of all that was given, in float32."""
    given = [x.to(dtype).requires_grad_() for x in (queries, keys, values)]
    output = attention_of_heads(*given, mask)
    output.float().square().sum().backward()
    return [x.float() for x in (output, *(x.grad for x in given))]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bfloat16_on_a_cpu_is_that_of_the_fused_kernel(masked):
    heads = [draw(3, 2, n, 8, seed=n) for n in (4, 6, 6)]
    mask = torch.tensor([[True] * 6, [True, False] * 3, [False] * 6])[:, None, None] if masked else None
    found, expected = (with_gradients(*heads, mask, dtype) for dtype in (torch.bfloat16, torch.float32))
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()  # bfloat16 has eight bits
    assert not masked or (found[0][2] == 0).all()  # a cell without tokens


@pytest.mark.parametrize("learns", [(True, True, True), (False, True, False), (False, False, True)])
def test_training_in_bfloat16_on_a_cpu_avoids_the_fused_kernel(learns):
    heads = [draw(2, 3, 5, 8, seed=n).bfloat16().requires_grad_(own) for n, own in enumerate(learns)]
    with torch.profiler.profile() as profile:
        attention_of_heads(*heads).sum().backward()
    assert not [event.key for event in profile.key_averages() if "scaled_dot_product" in event.key]


@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
@pytest.mark.parametrize(("width", "n_heads"), [(10, 3), (4, 8)])
def test_heads_that_do_not_share_out_the_width_are_refused(kind, width, n_heads):
    with pytest.raises(ValueError, match=rf"multiple of the number of heads, .* {width} and {n_heads} heads"):
        kind(width, n_heads)
