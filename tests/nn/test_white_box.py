import pytest
import torch
from torch.nn.functional import linear, relu

from scgen_diffusion.nn import SelfAttention, SparseCoding, SubspaceAttention

WIDTH, N_HEADS = 12, 3


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build_attention():
    torch.manual_seed(0)
    return SubspaceAttention(WIDTH, N_HEADS).double()


def build_coding(**constants):
    torch.manual_seed(0)
    return SparseCoding(WIDTH, **constants).double()


def test_subspace_attention_follows_its_formula_head_by_head():
    attention, tokens = build_attention(), draw(2, 5, WIDTH)
    heads = []
    for basis in attention.subspaces:
        x = tokens @ basis
        heads.append((x @ x.transpose(1, 2) / 4**0.5).softmax(-1) @ x)
    expected = attention.project_out(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-10, atol=1e-10)


def test_subspace_attention_is_self_attention_with_one_matrix_three_times():
    attention, other, tokens = build_attention(), SelfAttention(WIDTH, N_HEADS, bias=True).double(), draw(2, 5, WIDTH)
    with torch.no_grad():
        other.project_qkv.weight.copy_(attention.project.weight.repeat(3, 1))
        other.project_qkv.bias.zero_()
    other.project_out = attention.project_out
    torch.testing.assert_close(attention(tokens), other(tokens), rtol=1e-10, atol=1e-10)


def test_subspaces_hold_one_basis_per_head():
    attention, tokens = build_attention(), draw(2, 5, WIDTH)
    assert attention.subspaces.shape == (N_HEADS, WIDTH, WIDTH // N_HEADS)
    expected = torch.einsum("cnd,hdp->chnp", tokens, attention.subspaces)
    torch.testing.assert_close(attention.coordinates(tokens), expected, rtol=1e-10, atol=1e-10)


def test_what_a_head_computes_does_not_depend_on_the_basis_of_its_subspace():
    attention, tokens = build_attention(), draw(2, 5, WIDTH)
    rotation, _ = torch.linalg.qr(draw(4, 4))
    expected = attention(tokens)
    with torch.no_grad():
        attention.project.weight[:4] = rotation @ attention.project.weight[:4]
        attention.project_out.weight[:, :4] = attention.project_out.weight[:, :4] @ rotation.T
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-10, atol=1e-10)


def test_heads_that_do_not_share_out_the_width_are_refused():
    with pytest.raises(ValueError, match="width 12 and 5 heads"):
        SubspaceAttention(WIDTH, 5)


@pytest.mark.parametrize(("step_size", "threshold"), [(0.1, 0.1), (0.05, 2.0)])
def test_sparse_coding_is_the_published_sequence_of_products(step_size, threshold):
    coding, z = build_coding(step_size=step_size, threshold=threshold), draw(2, 5, WIDTH)
    d = coding.dictionary
    gradient = linear(z, d.t()) - linear(linear(z, d), d.t())
    expected = relu(z + (step_size * gradient - step_size * threshold))
    torch.testing.assert_close(coding(z), expected, rtol=1e-10, atol=1e-10)


def test_sparse_coding_steps_down_the_gradient_of_its_objective():
    coding, z = build_coding(), draw(7, WIDTH)
    code = z.clone().requires_grad_()
    (0.5 * (z - code @ coding.dictionary.T).square().sum() + coding.threshold * code.sum()).backward()
    torch.testing.assert_close(coding(z), relu(z - coding.step_size * code.grad), rtol=1e-10, atol=1e-10)


def test_sparse_coding_with_the_identity_only_shrinks():
    coding, z = build_coding(), draw(2, 5, WIDTH)
    torch.nn.init.eye_(coding.dictionary)
    torch.testing.assert_close(coding(z), relu(z - 0.01))


def test_codes_are_not_negative_and_get_sparser_with_the_threshold():
    z = draw(2, 5, WIDTH)
    codes = [build_coding(threshold=threshold)(z) for threshold in (0.1, 5.0, 100.0)]
    zeros = [(code == 0).sum().item() for code in codes]
    assert all((code >= 0).all() for code in codes)
    assert 0 < zeros[0] < zeros[1] < zeros[2] == z.numel()


def test_the_dictionary_starts_from_kaimings_uniform_distribution():
    torch.manual_seed(0)
    dictionary = SparseCoding(64).dictionary
    bound = (6 / 64) ** 0.5
    assert 0.99 * bound < dictionary.abs().max() <= bound
    assert repr(SparseCoding(64)) == "SparseCoding(64, step_size=0.1, threshold=0.1)"
