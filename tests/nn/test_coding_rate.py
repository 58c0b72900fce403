import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgen_diffusion.nn import SubspaceAttention, coding_rate, sparsity, subspace_coding_rate


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(n, p, seed=0):
    return torch.linalg.qr(draw(n, p, seed=seed))[0]


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n_tokens", "width"), [(4, 9), (9, 4), (6, 6)])
def test_coding_rate_follows_its_formula_on_either_side(n_tokens, width):
    tokens, eps = draw(3, n_tokens, width), 0.3
    expected = torch.logdet(torch.eye(n_tokens) + width / (n_tokens * eps**2) * tokens @ tokens.mT) / 2
    close(coding_rate(tokens, eps), expected)


def test_coding_rate_of_tokens_of_known_rank_and_singular_values():
    singular, eps = torch.tensor([3.0, 0.5], dtype=torch.float64), 0.5
    tokens = orthonormal(7, 2) * singular @ orthonormal(5, 2, seed=1).T
    close(coding_rate(tokens, eps), sum(math.log1p(5 / (7 * eps**2) * s**2) / 2 for s in (3.0, 0.5)))


@given(n_tokens=st.integers(1, 8), width=st.integers(1, 8), scale=st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_scaling_the_tokens_is_dividing_eps(n_tokens, width, scale):
    tokens = draw(n_tokens, width)
    close(coding_rate(scale * tokens, 0.5), coding_rate(tokens, 0.5 / scale))


def test_tokens_of_zero_cost_nothing():
    assert coding_rate(torch.zeros(2, 5, 3)).tolist() == [0, 0]
    assert subspace_coding_rate(torch.zeros(2, 5, 3), draw(4, 3, 2)).tolist() == [[0] * 4] * 2


def test_the_order_and_the_rotation_of_tokens_do_not_matter():
    tokens = draw(6, 4)
    close(coding_rate(tokens[torch.randperm(6)] @ orthonormal(4, 4)), coding_rate(tokens))


def test_large_and_tiny_tokens_in_single_precision_are_measured():
    for scale in (1e-5, 1e5):
        tokens = (scale * draw(200, 48)).float()
        s = torch.linalg.svdvals(tokens.double())
        close(coding_rate(tokens), torch.log1p(48 / (200 * 0.25) * s**2).sum() / 2)


def test_subspace_rates_are_coding_rates_of_the_coordinates():
    tokens, bases = draw(2, 3, 5, 8), draw(4, 8, 2, seed=1)
    found = subspace_coding_rate(tokens, bases, eps=0.7)
    assert found.shape == (2, 3, 4)
    for head, basis in enumerate(bases):
        close(found[..., head], coding_rate(tokens @ basis, eps=0.7))


def test_tokens_in_one_of_two_orthogonal_subspaces_cost_only_there():
    first, second = orthonormal(8, 6).split(3, dim=1)
    tokens = draw(5, 3) @ first.T
    found = subspace_coding_rate(tokens, torch.stack([first, second]))
    close(found[0], coding_rate(tokens @ first))
    close(found[1], 0.0)


def test_tokens_spread_over_orthogonal_subspaces_cost_more_together_than_within_them():
    # What the white-box transformer is built on: R - R^c is large where subspaces are compact and apart. The factor d /
    # p of the two definitions is taken out by eps, so that both allow the same error per direction.
    bases = orthonormal(8, 8).unflatten(1, (4, 2)).transpose(0, 1)
    clusters = [draw(10, 2, seed=k) @ basis.T for k, basis in enumerate(bases)]
    together, eps = torch.cat(clusters), 0.5
    assert coding_rate(together, eps) > sum(coding_rate(c, eps) for c in clusters) / 4
    close(coding_rate(together, eps), subspace_coding_rate(together, bases, eps * (2 / 8) ** 0.5).sum())


def test_the_subspaces_of_an_attention_fit():
    attention, tokens = SubspaceAttention(12, 3), torch.randn(2, 5, 12)
    found = subspace_coding_rate(tokens, attention.subspaces)
    torch.testing.assert_close(found, coding_rate(attention.coordinates(tokens)), rtol=1e-5, atol=1e-5)


def test_sparsity_counts_exact_zeros_of_each_cell():
    tokens = torch.tensor([[[0.0, 1.0], [-0.0, 1e-30]], [[0.0, 0.0], [0.0, 0.0]]])
    assert sparsity(tokens).tolist() == [0.5, 1.0]


def test_nan_stays_nan():
    assert coding_rate(torch.full((3, 2), torch.nan)).isnan()


@pytest.mark.parametrize("eps", [0.0, -1.0, math.nan])
def test_an_error_that_is_not_positive_is_refused(eps):
    with pytest.raises(ValueError, match="`eps` must be positive"):
        coding_rate(draw(3, 2), eps)
    with pytest.raises(ValueError, match="`eps` must be positive"):
        subspace_coding_rate(draw(3, 2), draw(1, 2, 1), eps)


@pytest.mark.parametrize("shape", [(2, 3, 2), (4, 2)])
def test_bases_of_another_width_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(heads, token width, subspace width\), but found .* tokens of width 4"):
        subspace_coding_rate(draw(3, 4), draw(*shape))
