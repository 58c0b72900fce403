"""Poolings, encoder and decoders of sets of genes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scgen_diffusion.module import SCLDMArchitecture
from scgen_diffusion.module._autoencoder import Encoder
from scgen_diffusion.nn import AttentionPooling, GeneFactorDecoder, GeneQueryDecoder, _sets
from scgen_diffusion.nn._sets import expressed_genes

N_CELLS, N_GENES, N_TOKENS, WIDTH, LATENT_WIDTH, N_OUTPUTS = 4, 12, 3, 8, 4, 2
SIZES = {"width": WIDTH, "n_layers": 2, "n_heads": 2, "n_heads_cross": 4}
wherever_the_value_enters = pytest.mark.parametrize("value_after_norm", [True, False])


def stir(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def build_pooling(**options):
    torch.manual_seed(0)
    return stir(AttentionPooling(N_GENES, N_TOKENS, **SIZES, **options))


def build_encoder(kind, **options):
    torch.manual_seed(0)
    sizes = {"n_latent_tokens": N_TOKENS, "n_latent": LATENT_WIDTH, "pooling_width": 6, **SIZES}
    encoder = Encoder(N_GENES, SCLDMArchitecture(pooling=kind, **sizes, **options))
    if kind != "attention":
        encoder.network.factors.profile_mean.normal_()
    return stir(encoder)


def build_decoder(kind):
    torch.manual_seed(0)
    if kind == "factors":
        return stir(GeneFactorDecoder(N_GENES, N_TOKENS * LATENT_WIDTH, width=WIDTH, n_factors=6, n_outputs=N_OUTPUTS))
    return stir(GeneQueryDecoder(N_GENES, LATENT_WIDTH, n_outputs=N_OUTPUTS, **SIZES))


def draw_values(*, n_expressed=5):
    """Return ``log1p`` counts of cells with 5, 6, 7 and 8 expressed genes."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(N_CELLS, N_GENES, dtype=torch.float64)
    for number, cell in enumerate(counts):
        genes = torch.randperm(N_GENES, generator=generator)[: n_expressed + number]
        cell[genes] = torch.randint(1, 50, (len(genes),), generator=generator).double()
    return counts.log1p()


def encode(encoder, values):
    counts = values.expm1()
    return encoder.encode(values, (1e4 * counts / counts.sum(1, keepdim=True).clamp(min=1)).log1p())


def draw_latents():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, N_TOKENS, LATENT_WIDTH, generator=generator, dtype=torch.float64)


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@given(n_cells=st.integers(1, 5), n_genes=st.integers(1, 8), extra=st.integers(0, 3), seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_gene_sets_hold_exactly_the_expressed_genes(n_cells, n_genes, extra, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.poisson(torch.full((n_cells, n_genes), 0.7), generator=generator)
    needed = max(int((values != 0).sum(1).max()), 1)
    gene_sets, values_of_sets = expressed_genes(values, length=needed + extra if extra else None)
    assert gene_sets.shape == values_of_sets.shape == (n_cells, needed + extra)
    for cell, genes, kept in zip(values, gene_sets, values_of_sets, strict=True):
        mask = genes > 0
        assert genes[mask].tolist() == (cell.nonzero()[:, 0] + 1).tolist()
        assert kept[mask].tolist() == cell[cell != 0].tolist()
        assert not genes[~mask].any()
        assert not kept[~mask].any()


def test_a_padded_length_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="padded length"):
        encode(build_encoder("attention", padded_length=7), draw_values())


@wherever_the_value_enters
@pytest.mark.parametrize("n_genes", [5, 0], ids=["five genes", "none"])
def test_pooling_follows_its_formula_for_one_cell(value_after_norm, n_genes):
    pooling, cell = build_pooling(value_after_norm=value_after_norm), draw_values()[0]
    genes = cell.nonzero()[:, 0]
    tokens, value = pooling.embed_gene.weight[genes + 1], cell[genes, None]
    if not n_genes:  # attention over nothing is NaN or zero, depending on torch: a padding token takes its place
        cell, tokens, value = torch.zeros_like(cell), pooling.embed_gene.weight[:1], torch.zeros(1, 1)
    project = pooling.pool.project
    keys_values = project(tokens) * value if value_after_norm else project(tokens * value)
    tokens = pooling.pool(pooling.queries[None], keys_values[None])
    for block in pooling.blocks:
        tokens = block(tokens)
    close(pooling(*expressed_genes(cell[None])), tokens)


@wherever_the_value_enters
def test_neither_the_order_of_tokens_nor_masked_padding_matters(value_after_norm):
    pooling, gene_sets = build_pooling(value_after_norm=value_after_norm), expressed_genes(draw_values(), length=12)
    order = torch.randperm(12)
    permuted = [each[:, order] for each in gene_sets]
    close(pooling(*permuted), pooling(*expressed_genes(draw_values())))


@wherever_the_value_enters
def test_pooling_all_genes_is_pooling_the_expressed_ones(value_after_norm):
    pooling, values = build_pooling(value_after_norm=value_after_norm), draw_values()
    values[1] = 0  # a cell without expressed genes
    results = []
    for genes in (expressed_genes(values), (torch.arange(1, N_GENES + 1).expand_as(values), values)):
        pooling.zero_grad()
        tokens = pooling(*genes)
        tokens.square().sum().backward()
        results.append((tokens.detach(), [p.grad for p in pooling.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


per_encoder = pytest.mark.parametrize("kind", ["attention", "factors", "both"])


@per_encoder
def test_encoding_depends_on_the_genes_and_not_on_their_order(kind):
    encoder, values, order = build_encoder(kind), draw_values(), torch.randperm(N_GENES)
    expected = encode(encoder, values)
    assert not torch.allclose(encode(encoder, values[:, order]), expected, atol=0.01)
    with torch.no_grad():  # gene order[g] becomes gene g, in the data and in the parameters
        if "attention" in encoder.network:
            genes = encoder.network.attention.embed_gene.weight
            genes[1:] = genes[1:][order]
        if "factors" in encoder.network:
            factors = encoder.network.factors
            factors.weight.weight.copy_(factors.weight.weight[:, order])
            factors.profile_mean.copy_(factors.profile_mean[order])
    close(encode(encoder, values[:, order]), expected)


@per_encoder
def test_cells_do_not_depend_on_their_batch(kind):
    encoder, values = build_encoder(kind), draw_values()
    close(encode(encoder, values), torch.cat([encode(encoder, cell[None]) for cell in values]))


def test_both_poolings_are_added_up_and_padding_changes_nothing():
    encoder, values = build_encoder("both", padded_length=N_GENES), draw_values()
    both = encode(encoder, values)
    encoder.padded_length = None
    factors = encoder.network.pop("factors")
    by_attention = encode(encoder, values)
    encoder.network.pop("attention")
    encoder.network["factors"] = factors
    close(both, by_attention + encode(encoder, values))


def test_factors_see_profiles_from_their_mean():
    pooling, profile = build_encoder("factors").network.factors, draw_values()
    expected = pooling(profile)
    pooling.profile_mean += 1
    close(pooling(profile + 1), expected)


def test_gene_queries_follow_the_order_of_genes_cell_by_cell():
    decoder, z, order = build_decoder("gene queries"), draw_latents(), torch.randperm(N_GENES)
    expected = decoder(z)
    assert expected.shape == (5, N_GENES, N_OUTPUTS)
    assert (expected.std(0) > 1e-3).all()
    assert (expected.std(1) > 1e-3).all()
    close(expected, torch.cat([decoder(cell[None]) for cell in z]))
    with torch.no_grad():
        decoder.embed_gene.weight[1:] = decoder.embed_gene.weight[1:][order]
        decoder.embed_gene.weight[0] = 1e6  # stands for padding
    close(decoder(z), expected[:, order])


def test_gene_factors_follow_their_formula():
    decoder, z = build_decoder("factors"), draw_latents()
    flat = z.flatten(1)
    context = decoder.network(flat) + decoder.linear(flat)
    loadings = decoder.loadings.weight.view(N_GENES, N_OUTPUTS, -1)
    expected = torch.einsum("gok,ck->cgo", loadings, context) + decoder.loadings.bias.view(N_GENES, N_OUTPUTS)
    close(decoder(z), expected)


def test_autocast_does_not_round_the_bias_of_gene_factors():
    decoder, z = build_decoder("factors").float(), torch.zeros(1, N_TOKENS, LATENT_WIDTH)
    nn.init.zeros_(decoder.loadings.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decoder(z).flatten(), decoder.loadings.bias)


def gradients(decoder, z):
    decoder.zero_grad()
    z = z.clone().requires_grad_()
    decoded = decoder(z)
    decoded.sin().sum().backward()
    return decoded.detach(), [z.grad, *(parameter.grad.clone() for parameter in decoder.parameters())]


@pytest.mark.parametrize(("chunk_elements", "largest"), [(1, 1), (3 * 5 * WIDTH, 3), (11 * 5 * WIDTH, 11)])
def test_decoding_in_chunks_of_genes_changes_neither_values_nor_gradients(chunk_elements, largest, monkeypatch):
    decoder, z, seen = build_decoder("gene queries"), draw_latents(), []
    whole, expected = gradients(decoder, z)
    monkeypatch.setitem(_sets.CHUNK_ELEMENTS, "cpu", chunk_elements)
    decoded, found = gradients(decoder, z)
    close(decoded, whole)
    close(found, expected)
    decoder.unpool.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    with torch.no_grad():
        close(decoder(z), whole)
    assert max(seen) == largest
    assert sum(seen) == N_GENES
