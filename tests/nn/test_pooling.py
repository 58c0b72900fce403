import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scgen_diffusion.nn import AttentionPooling, FactorPooling, GeneSet, expressed_genes

N_GENES, N_TOKENS, WIDTH = 12, 3, 8


def build_attention_pooling(**options):
    torch.manual_seed(0)
    pooling = AttentionPooling(N_GENES, N_TOKENS, width=WIDTH, n_layers=2, n_heads=2, n_heads_cross=4, **options)
    for parameter in pooling.parameters():
        nn.init.normal_(parameter, std=0.5)
    return pooling.double()


def build_factor_pooling():
    torch.manual_seed(0)
    pooling = FactorPooling(N_GENES, WIDTH)
    pooling.profile_mean.normal_()
    return pooling.double()


def draw_values(n_cells=4, *, n_expressed=5, seed=0):
    """Return ``log1p`` counts of cells with ``n_expressed`` to ``n_expressed + n_cells - 1`` expressed genes."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(n_cells, N_GENES, dtype=torch.float64)
    for number, cell in enumerate(counts):
        genes = torch.randperm(N_GENES, generator=generator)[: n_expressed + number]
        cell[genes] = torch.randint(1, 50, (len(genes),), generator=generator).double()
    return counts.log1p()


def permute_genes(values, pooling, order):
    """Give gene ``order[g]`` the number ``g``, in the data and in the parameters."""
    with torch.no_grad():
        if isinstance(pooling, AttentionPooling):
            pooling.embed_gene.weight[1:] = pooling.embed_gene.weight[1:][order]
        else:
            pooling.weight.weight.copy_(pooling.weight.weight[:, order])
            pooling.profile_mean.copy_(pooling.profile_mean[order])
    return values[:, order]


BOTH_PLACES_OF_THE_VALUE = pytest.mark.parametrize("value_after_norm", [True, False])


# --- expressed_genes -------------------------------------------------------------------------------------------------


@given(n_cells=st.integers(1, 5), n_genes=st.integers(1, 8), extra=st.integers(0, 3), seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_gene_sets_hold_exactly_the_expressed_genes(n_cells, n_genes, extra, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.poisson(torch.full((n_cells, n_genes), 0.7), generator=generator)
    needed = max(int((values != 0).sum(1).max()), 1)
    gene_set = expressed_genes(values, length=needed + extra)
    assert gene_set.genes.shape == gene_set.values.shape == (n_cells, needed + extra)
    for cell, genes, kept, mask in zip(values, *gene_set, gene_set.mask, strict=True):
        assert genes[mask].tolist() == (cell.nonzero()[:, 0] + 1).tolist()
        assert kept[mask].tolist() == cell[cell != 0].tolist()
        assert not genes[~mask].any()
        assert not kept[~mask].any()


def test_default_length_is_what_the_longest_cell_needs():
    assert expressed_genes(draw_values(4, n_expressed=5)).genes.shape == (4, 8)


def test_empty_cells_still_have_one_padding_token():
    gene_set = expressed_genes(torch.zeros(2, 3))
    assert gene_set.genes.tolist() == gene_set.values.tolist() == [[0], [0]]


def test_negative_values_count_as_expressed():
    assert expressed_genes(torch.tensor([[0.0, -1.0, 2.0]])).genes.tolist() == [[2, 3]]


def test_a_padded_length_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="expresses 8 genes, but the padded length is 7"):
        expressed_genes(draw_values(4, n_expressed=5), length=7)


# --- AttentionPooling ------------------------------------------------------------------------------------------------


@BOTH_PLACES_OF_THE_VALUE
def test_pooling_follows_its_formula_for_one_cell(value_after_norm):
    pooling = build_attention_pooling(value_after_norm=value_after_norm)
    cell = draw_values(1)[0]
    genes = cell.nonzero()[:, 0]
    embedded, value = pooling.embed_gene.weight[genes + 1], cell[genes, None]
    project = pooling.pool.attention.project_kv
    norm = pooling.pool.norm_tokens
    keys_values = project(norm(embedded)) * value if value_after_norm else project(norm(embedded * value))
    tokens = pooling.pool(pooling.queries[None], keys_values[None])
    for block in pooling.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(pooling(expressed_genes(cell[None])), tokens, rtol=1e-10, atol=1e-10)


@BOTH_PLACES_OF_THE_VALUE
def test_pooling_does_not_depend_on_the_order_of_tokens(value_after_norm):
    pooling, gene_set = build_attention_pooling(value_after_norm=value_after_norm), expressed_genes(draw_values())
    order = torch.randperm(gene_set.genes.shape[1])
    permuted = GeneSet(gene_set.genes[:, order], gene_set.values[:, order])
    torch.testing.assert_close(pooling(permuted), pooling(gene_set), rtol=1e-10, atol=1e-10)


@BOTH_PLACES_OF_THE_VALUE
def test_pooling_does_not_depend_on_the_order_of_genes(value_after_norm):
    pooling, values = build_attention_pooling(value_after_norm=value_after_norm), draw_values()
    expected = pooling(expressed_genes(values))
    permuted = permute_genes(values, pooling, torch.randperm(N_GENES))
    torch.testing.assert_close(pooling(expressed_genes(permuted)), expected, rtol=1e-10, atol=1e-10)


@BOTH_PLACES_OF_THE_VALUE
@pytest.mark.parametrize("padding", [1, 7])
def test_masked_padding_has_no_influence(value_after_norm, padding):
    pooling, values = build_attention_pooling(value_after_norm=value_after_norm), draw_values()
    padded = expressed_genes(values, length=8 + padding)
    torch.testing.assert_close(pooling(padded), pooling(expressed_genes(values)), rtol=1e-10, atol=1e-10)


@BOTH_PLACES_OF_THE_VALUE
def test_cells_do_not_depend_on_their_batch(value_after_norm):
    pooling, values = build_attention_pooling(value_after_norm=value_after_norm), draw_values()
    together = pooling(expressed_genes(values))
    alone = torch.cat([pooling(expressed_genes(cell[None])) for cell in values])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


def test_unmasked_padding_takes_part_as_published():
    pooling, values = build_attention_pooling(mask_padding=False, value_after_norm=False), draw_values()
    short, long = pooling(expressed_genes(values, length=8)), pooling(expressed_genes(values, length=12))
    assert not torch.allclose(short, long, atol=1e-3)
    # At a common length, cells are independent of each other all the same.
    alone = torch.cat([pooling(expressed_genes(cell[None], length=8)) for cell in values])
    torch.testing.assert_close(short, alone, rtol=1e-10, atol=1e-10)


def test_published_normalisation_cancels_how_much_a_gene_is_expressed():
    pooling, values = build_attention_pooling(value_after_norm=False), draw_values()
    presence = (values != 0).double()
    # What is left of the value enters through the norm's epsilon, 1e-8 of a variance of order 0.1.
    torch.testing.assert_close(
        pooling(expressed_genes(values)), pooling(expressed_genes(presence)), rtol=1e-5, atol=1e-5
    )


def test_value_after_norm_keeps_how_much_a_gene_is_expressed():
    pooling, values = build_attention_pooling(value_after_norm=True), draw_values()
    presence = (values != 0).double()
    difference = pooling(expressed_genes(values)) - pooling(expressed_genes(presence))
    assert (difference.abs().amax((1, 2)) > 0.01).all()


@BOTH_PLACES_OF_THE_VALUE
@pytest.mark.parametrize("mask_padding", [True, False])
@pytest.mark.parametrize("counts", [{}, {3: 1.0}, {3: 1e6}], ids=["no gene", "one gene", "one gene, a million counts"])
def test_sparse_cells_have_finite_encodings_and_gradients(value_after_norm, mask_padding, counts):
    pooling = build_attention_pooling(value_after_norm=value_after_norm, mask_padding=mask_padding).float()
    values = torch.zeros(2, N_GENES)
    values[1] = draw_values(1)[0]  # beside an ordinary cell, so that there is padding
    for gene, count in counts.items():
        values[0, gene] = torch.tensor(count).log1p()
    tokens = pooling(expressed_genes(values))
    assert tokens.isfinite().all()
    tokens.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in pooling.parameters())


@BOTH_PLACES_OF_THE_VALUE
def test_a_cell_without_genes_attends_to_one_padding_token(value_after_norm):
    # Attention over nothing is NaN or zero, depending on torch's version and kernel.
    pooling = build_attention_pooling(value_after_norm=value_after_norm)
    padding = GeneSet(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.float64))
    row = pooling.pool.project(pooling.embed_gene.weight[:1] * (1 if value_after_norm else 0))
    tokens = pooling.pool(pooling.queries[None], row[None] * (0 if value_after_norm else 1))
    for block in pooling.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(pooling(padding), tokens, rtol=1e-10, atol=1e-10)


def test_only_expressed_genes_get_a_gradient():
    pooling, values = build_attention_pooling(value_after_norm=False), draw_values(1)
    pooling(expressed_genes(values, length=N_GENES)).square().sum().backward()
    gradient = pooling.embed_gene.weight.grad.abs().sum(1) > 0
    assert gradient.tolist() == [False, *(values[0] != 0).tolist()]


@pytest.mark.parametrize("sizes", [{"n_heads": 3}, {"n_heads_cross": 3}])
def test_heads_that_do_not_share_out_the_width_are_refused(sizes):
    with pytest.raises(ValueError, match="width 8 and 3 heads"):
        AttentionPooling(N_GENES, N_TOKENS, **{"width": 8, "n_layers": 1, "n_heads": 2, "n_heads_cross": 2, **sizes})


# --- FactorPooling ---------------------------------------------------------------------------------------------------


def test_factor_pooling_does_not_depend_on_the_order_of_genes():
    pooling, profile = build_factor_pooling(), draw_values()
    expected = pooling(profile)
    permuted = permute_genes(profile, pooling, torch.randperm(N_GENES))
    torch.testing.assert_close(pooling(permuted), expected, rtol=1e-10, atol=1e-10)


def test_factor_pooling_sees_profiles_from_their_mean():
    pooling, profile = build_factor_pooling(), draw_values()
    expected = pooling(profile)
    pooling.profile_mean += 1
    torch.testing.assert_close(pooling(profile + 1), expected, rtol=1e-10, atol=1e-10)


def test_factor_pooling_of_an_empty_cell_has_finite_gradients():
    pooling = build_factor_pooling()
    pooling(torch.zeros(1, N_GENES, dtype=torch.float64)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in pooling.parameters())


@pytest.mark.parametrize("value_after_norm", [True, False])
def test_pooling_the_panel_is_pooling_the_expressed_genes(value_after_norm):
    pooling, values = build_attention_pooling(value_after_norm=value_after_norm), draw_values()
    values[1] = 0  # a cell without expressed genes
    results = []
    for tokens in (pooling(expressed_genes(values)), pooling.pool_panel(values)):
        pooling.zero_grad()
        tokens.square().sum().backward()
        results.append((tokens.detach(), [p.grad for p in pooling.parameters()]))

    tolerance = 1e-10 if value_after_norm else 1e-6  # what the norm's epsilon leaves of the values
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)
