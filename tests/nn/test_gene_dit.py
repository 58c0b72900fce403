import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scgen_diffusion.nn import MLP, GeneDiT, SelfAttention, SparseCoding, SubspaceAttention

N_GENES, N_CLASSES = 11, (3, 2)
BLOCKS = ["transformer", "white_box"]
per_block = pytest.mark.parametrize("block", BLOCKS)


def build(block="transformer", *, n_genes=N_GENES, started=True, **options):
    """Build a small network; ``started``: with every parameter away from its start, where much of it is zero."""
    torch.manual_seed(0)
    sizes = {"patch_size": 4, "width": 8, "n_layers": 2, "n_heads": 2, **options}
    network = GeneDiT(n_genes, N_CLASSES, block=block, **sizes)
    if started:
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network


def build_inputs(n=5, n_genes=N_GENES):
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(n, n_genes, generator=generator)
    t = torch.randint(1000, (n,), generator=generator).float()
    columns = [torch.randint(k + 1, (n,), generator=generator) for k in N_CLASSES]
    return x_t, t, torch.stack(columns, dim=1)


@per_block
def test_prediction_starts_at_zero(block):
    assert torch.equal(build(block, started=False)(*build_inputs()), torch.zeros(5, N_GENES))


@per_block
def test_gradients_reach_every_parameter(block):
    network = build(block)
    network(*build_inputs()).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert all(parameter.grad.any() for parameter in network.parameters())


@given(n_genes=st.integers(3, 20), patch_size=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_any_number_of_genes_is_possible(n_genes, patch_size):
    network, inputs = build(n_genes=n_genes, patch_size=patch_size), build_inputs(n_genes=n_genes)
    predicted = network(*inputs)
    assert predicted.shape == inputs[0].shape
    assert predicted.isfinite().all()


def test_without_conditions_the_network_is_that_of_the_padded_patches():
    network, (x_t, t, condition) = build(), build_inputs()
    padded = torch.cat([x_t, torch.zeros(5, 1)], dim=1).reshape(5, 3, 4)
    expected = network.network(padded, t, condition).reshape(5, 12)[:, :11]
    assert torch.equal(network(x_t, t, condition), expected)


def test_integer_times_are_as_good_as_floats():
    network, (x_t, t, condition) = build(), build_inputs()
    assert torch.equal(network(x_t, t.long(), condition), network(x_t, t, condition))


@per_block
@pytest.mark.parametrize("changed", ["time", "key", "cell"])
def test_prediction_depends_on_every_input(block, changed):
    network, (x_t, t, condition) = build(block), build_inputs()
    other = {
        "time": (x_t, t / 2, condition),
        "key": (x_t, t, torch.stack([(condition[:, 0] + 1) % 4, condition[:, 1]], 1)),
        "cell": (x_t + 1, t, condition),
    }[changed]
    assert ((network(*other) - network(x_t, t, condition)).abs().amax(1) > 1e-4).all()


def test_blocks_are_made_of_their_halves():
    for block, halves in [("transformer", (SelfAttention, MLP)), ("white_box", (SubspaceAttention, SparseCoding))]:
        for one in build(block).network.blocks:
            assert (type(one.attention), type(one.feed_forward)) == halves


def test_default_sizes_have_the_published_number_of_parameters():
    # 34.0 and 18.1 million, counted with the fixed positions.
    for block, millions in [("transformer", 34.0), ("white_box", 18.1)]:
        with torch.device("meta"):
            network = GeneDiT(2000, block=block)
        counted = [*network.parameters(), network.network.positions]
        assert round(sum(part.numel() for part in counted) / 1e6, 1) == millions


@per_block
def test_weights_start_as_published(block):
    network = build(block, started=False, width=64).network
    first = network.blocks[0]
    out = first.attention.project_out.weight
    assert 0.9 * (6 / 128) ** 0.5 < out.abs().max() <= (6 / 128) ** 0.5
    assert not first.modulation[1].weight.any()
    assert not first.attention.project_out.bias.any()
    assert not network.embed_time.network[0].bias.any()
    assert 0.018 < network.embed_time.network[2].weight.std() < 0.022


@per_block
def test_the_trace_ends_where_the_prediction_begins(block):
    network, inputs = build(block), build_inputs()
    traces = network.trace(*inputs)
    assert len(traces) == 2
    assert traces[1].feed_forward.tokens_out.shape == (5, 3, 8)
    if block == "white_box":
        assert (traces[1].feed_forward.output >= 0).all()


@per_block
def test_the_network_compiles_in_one_piece(block):
    network, inputs = build(block), build_inputs()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*inputs), network(*inputs))


@per_block
def test_half_precision_gives_nearly_the_same(block):
    network, inputs = build(block), build_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(*inputs)
    assert ((rounded - network(*inputs)).abs().max() / network(*inputs).abs().max()) < 0.1  # eight bits, two layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 12}, "between 1 and the number of genes, but found 12 for 11 genes"),
        ({"patch_size": 0}, "between 1 and the number of genes, but found 0"),
        ({"n_heads": 3}, "width 8 and 3 heads"),
        ({"n_heads": 3, "block": "white_box"}, "width 8 and 3 heads"),
        ({"width": 6}, "multiple of 4, but found 6"),
        ({"block": "crate"}, "one of transformer, white_box, but found 'crate'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
