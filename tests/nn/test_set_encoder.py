import pytest
import torch
from torch import nn

from scgen_diffusion.nn import AttentionPooling, FactorPooling, SetEncoder

N_GENES, N_TOKENS, N_OUTPUTS, WIDTH, FACTOR_WIDTH = 12, 3, 5, 8, 6
POOLINGS = ("attention", "factors", "both")


def build(pooling, **options):
    torch.manual_seed(0)
    attention = AttentionPooling(N_GENES, N_TOKENS, width=WIDTH, n_layers=1, n_heads=2, n_heads_cross=2)
    encoder = SetEncoder(
        N_TOKENS,
        N_OUTPUTS,
        attention=attention if pooling in ("attention", "both") else None,
        factors=FactorPooling(N_GENES, FACTOR_WIDTH) if pooling in ("factors", "both") else None,
        **options,
    )
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return encoder


def draw_counts(n_cells=4):
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((n_cells, N_GENES), 1.0), generator=generator)
    counts[:, 0] += torch.arange(n_cells)
    return counts


def encode(encoder, counts):
    return encoder(counts.log1p(), (1e4 * counts / counts.sum(1, keepdim=True).clamp(min=1)).log1p())


# Sums over genes and tokens in another order, in single precision.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_encoding_does_not_depend_on_the_order_of_genes(pooling):
    encoder, counts, order = build(pooling), draw_counts(), torch.randperm(N_GENES)
    expected = encode(encoder, counts)
    with torch.no_grad():
        if encoder.attention is not None:
            genes = encoder.attention.embed_gene.weight
            genes[1:] = genes[1:][order]
        if encoder.factors is not None:
            encoder.factors.weight.weight.copy_(encoder.factors.weight.weight[:, order])
    torch.testing.assert_close(encode(encoder, counts[:, order]), expected, **TOLERANCE)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_encoding_depends_on_which_gene_is_expressed(pooling):
    encoder, counts = build(pooling), draw_counts()
    assert not torch.allclose(encode(encoder, counts.flip(1)), encode(encoder, counts), atol=0.01)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_cells_do_not_depend_on_their_batch(pooling):
    encoder, counts = build(pooling), draw_counts()
    alone = torch.cat([encode(encoder, cell[None]) for cell in counts])
    torch.testing.assert_close(encode(encoder, counts), alone, **TOLERANCE)


def test_both_poolings_are_added_up():
    encoder, counts = build("both"), draw_counts()
    both = encode(encoder, counts)
    factors, encoder.factors = encoder.factors, None
    by_attention = encode(encoder, counts)
    encoder.attention, encoder.factors = None, factors
    torch.testing.assert_close(both, by_attention + encode(encoder, counts), **TOLERANCE)


def test_padded_length_changes_nothing_where_padding_is_masked():
    counts = draw_counts()
    expected = encode(build("attention"), counts)
    torch.testing.assert_close(encode(build("attention", padded_length=N_GENES), counts), expected, **TOLERANCE)


def test_a_padded_length_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="padded length is 2"):
        encode(build("attention", padded_length=2), draw_counts())


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("count", [0.0, 1.0, 1e6])
def test_cells_with_one_gene_or_none_have_finite_encodings_and_gradients(pooling, count):
    encoder, counts = build(pooling), torch.zeros(1, N_GENES)
    counts[0, 4] = count
    encoded = encode(encoder, counts)
    assert encoded.shape == (1, N_TOKENS, N_OUTPUTS)
    assert encoded.isfinite().all()
    encoded.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
