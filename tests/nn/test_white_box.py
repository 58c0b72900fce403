import math

import pytest
import torch
from torch.nn.functional import linear, relu

from scgen_diffusion.nn import SparseCoding, coding_rate, sparsity, subspace_coding_rate

WIDTH, N_HEADS = 12, 3


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=tolerance, atol=tolerance)


def build(kind, *sizes, **constants):
    torch.manual_seed(0)
    return kind(WIDTH, *sizes, **constants).double()


def test_sparse_coding_is_the_published_sequence_of_products():
    coding, z = build(SparseCoding), draw(2, 5, WIDTH)
    step_size, threshold = 0.1, 0.1
    d = coding.dictionary
    gradient = linear(z, d.t()) - linear(linear(z, d), d.t())
    close(coding(z), relu(z + (step_size * gradient - step_size * threshold)), 1e-10)


def test_the_dictionary_starts_from_kaimings_uniform_distribution():
    torch.manual_seed(0)
    dictionary = SparseCoding(64).dictionary
    bound = (6 / 64) ** 0.5
    assert 0.99 * bound < dictionary.abs().max() <= bound


@pytest.mark.parametrize(("n_tokens", "width"), [(4, 9), (9, 4), (6, 6)])
def test_coding_rate_follows_its_formula_on_either_side(n_tokens, width):
    tokens, eps = draw(3, n_tokens, width), 0.3
    expected = torch.logdet(torch.eye(n_tokens) + width / (n_tokens * eps**2) * tokens @ tokens.mT) / 2
    close(coding_rate(tokens, eps), expected)


@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_large_and_tiny_tokens_in_single_precision_are_measured(scale):
    tokens = (scale * draw(200, 48)).float()
    s = torch.linalg.svdvals(tokens.double())
    close(coding_rate(tokens), torch.log1p(48 / (200 * 0.25) * s**2).sum() / 2)


def test_subspace_rates_are_coding_rates_of_the_coordinates():
    tokens, bases = draw(2, 3, 5, 8), draw(4, 8, 2, seed=2)
    found = subspace_coding_rate(tokens, bases, eps=0.7)
    assert found.shape == (2, 3, 4)
    for head, basis in enumerate(bases):
        close(found[..., head], coding_rate(tokens @ basis, eps=0.7))


def test_sparsity_counts_exact_zeros_of_each_cell():
    tokens = torch.tensor([[[0.0, 1.0], [-0.0, 1e-30]], [[0.0, 0.0], [0.0, 0.0]]])
    assert sparsity(tokens).tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        *[("eps", lambda eps=eps: coding_rate(draw(3, 2), eps)) for eps in (0.0, -1.0, math.nan)],
        ("eps", lambda: subspace_coding_rate(draw(3, 2), draw(1, 2, 1), 0.0)),
    ],
)
def test_an_error_names_its_argument(argument, call):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        call()
