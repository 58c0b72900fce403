import pytest
import torch
from torch import nn

from scgen_diffusion.nn import GeneFactorDecoder, GeneQueryDecoder
from scgen_diffusion.nn._set_decoder import CHUNK_ELEMENTS

N_GENES, N_TOKENS, LATENT_WIDTH, WIDTH = 11, 3, 4, 8
KINDS = ("gene queries", "factors")


def build(kind, *, n_outputs=2, **options):
    torch.manual_seed(0)
    if kind == "factors":
        decoder = GeneFactorDecoder(N_GENES, N_TOKENS * LATENT_WIDTH, width=WIDTH, n_factors=6, n_outputs=n_outputs)
    else:
        sizes = {"width": WIDTH, "n_layers": 1, "n_heads": 2, "n_heads_cross": 4, **options}
        decoder = GeneQueryDecoder(N_GENES, LATENT_WIDTH, n_outputs=n_outputs, **sizes)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return decoder.double()


def draw_latents(n_cells=5):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n_cells, N_TOKENS, LATENT_WIDTH, generator=generator, dtype=torch.float64)


def permute_genes(decoder, order):
    with torch.no_grad():
        if isinstance(decoder, GeneQueryDecoder):
            decoder.embed_gene.weight[1:] = decoder.embed_gene.weight[1:][order]
            return
        for parameter in (decoder.loadings.weight, decoder.loadings.bias):
            per_gene = parameter.view(N_GENES, decoder.n_outputs, -1)
            per_gene.copy_(per_gene[order])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_outputs_follow_the_order_of_genes(kind, n_outputs):
    decoder, z, order = build(kind, n_outputs=n_outputs), draw_latents(), torch.randperm(N_GENES)
    expected = decoder(z)
    assert expected.shape == (5, N_GENES, n_outputs)
    permute_genes(decoder, order)
    torch.testing.assert_close(decoder(z), expected[:, order], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_genes_and_cells_differ(kind):
    decoded = build(kind)(draw_latents())
    assert (decoded.std(0) > 1e-3).all()
    assert (decoded.std(1) > 1e-3).all()


@pytest.mark.parametrize("kind", KINDS)
def test_cells_do_not_depend_on_their_batch(kind):
    decoder, z = build(kind), draw_latents()
    alone = torch.cat([decoder(cell[None]) for cell in z])
    torch.testing.assert_close(decoder(z), alone, rtol=1e-10, atol=1e-10)


def test_gene_queries_do_not_depend_on_the_order_of_latent_tokens():
    decoder, z = build("gene queries"), draw_latents()
    torch.testing.assert_close(decoder(z[:, [2, 0, 1]]), decoder(z), rtol=1e-10, atol=1e-10)


def test_gene_factors_follow_their_formula():
    decoder, z = build("factors"), draw_latents()
    flat = z.flatten(1)
    context = decoder.network(flat) + decoder.linear(flat)
    loadings = decoder.loadings.weight.view(N_GENES, 2, -1)
    expected = torch.einsum("gok,ck->cgo", loadings, context) + decoder.loadings.bias.view(N_GENES, 2)
    torch.testing.assert_close(decoder(z), expected, rtol=1e-10, atol=1e-10)


def gradients(decoder, z):
    decoder.zero_grad()
    z = z.clone().requires_grad_()
    decoded = decoder(z)
    decoded.sin().sum().backward()
    return decoded.detach(), [z.grad, *(parameter.grad.clone() for parameter in decoder.parameters())]


@pytest.mark.parametrize("genes_per_chunk", [1, 3, 10])
def test_decoding_in_chunks_of_genes_changes_neither_values_nor_gradients(genes_per_chunk, monkeypatch):
    decoder, z = build("gene queries"), draw_latents()
    whole, expected = gradients(decoder, z)
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", genes_per_chunk * len(z) * WIDTH)
    decoded, found = gradients(decoder, z)
    torch.testing.assert_close(decoded, whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(decoder(z), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("chunk_elements", "largest"), [(3 * 5 * WIDTH, 3), (1, 1), (1 << 24, N_GENES)])
def test_no_piece_is_larger_than_the_chunk(chunk_elements, largest, monkeypatch):
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", chunk_elements)
    decoder = build("gene queries")
    seen = []
    decoder.unpool.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    with torch.no_grad():
        decoder(draw_latents())
    assert max(seen) == largest
    assert sum(seen) == N_GENES


def test_gene_queries_are_projected_once_per_step():
    decoder = build("gene queries")
    seen = []
    hook = lambda module, inputs, output: seen.append(tuple(output.shape))
    decoder.unpool.attention.project_query.register_forward_hook(hook)
    decoder(draw_latents())
    assert seen == [(1, N_GENES, WIDTH)]


def test_the_padding_row_of_the_gene_embedding_is_not_decoded():
    decoder, z = build("gene queries"), draw_latents()
    expected = decoder(z)
    with torch.no_grad():
        decoder.embed_gene.weight[0] = 1e6
    assert torch.equal(decoder(z), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, 1e3])
def test_gradients_are_finite_at_zero_and_at_large_latents(kind, scale):
    _, found = gradients(build(kind), scale * draw_latents())
    assert all(gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize("sizes", [{"n_heads": 3}, {"n_heads_cross": 3}])
def test_heads_that_do_not_share_out_the_width_are_refused(sizes):
    with pytest.raises(ValueError, match="width 8 and 3 heads"):
        build("gene queries", **sizes)
