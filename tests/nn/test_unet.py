import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import gelu, group_norm

from scgen_diffusion.nn import GeneUNet

N_GENES, N_CLASSES = 19, (3, 2)


def build(n_genes=N_GENES, conditions=N_CLASSES, *, width=4, **options):
    torch.manual_seed(0)
    return GeneUNet(n_genes, conditions, width=width, **options)


def build_inputs(n=4, n_genes=N_GENES, conditions=N_CLASSES):
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(n, n_genes, generator=generator)
    t = torch.randint(1000, (n,), generator=generator).float()
    columns = [torch.randint(k + 1, (n,), generator=generator) for k in conditions]
    return x_t, t, torch.stack(columns, dim=1) if columns else torch.empty(n, 0, dtype=torch.long)


@given(n_genes=st.integers(1, 40))
@settings(max_examples=10, deadline=None)
def test_any_number_of_genes_is_possible(n_genes):
    predicted = build(n_genes)(*build_inputs(n_genes=n_genes))
    assert predicted.shape == (4, n_genes)
    assert predicted.isfinite().all()


def test_any_number_of_keys_is_possible():
    for conditions in ((), (1,), (3, 2, 5)):
        assert build(conditions=conditions)(*build_inputs(conditions=conditions)).shape == (4, N_GENES)


def test_gradients_reach_every_parameter():
    network = build(conditions=())
    network(*build_inputs(conditions=())).square().sum().backward()
    unreached = [name for name, parameter in network.named_parameters() if not parameter.grad.any()]
    assert unreached == []


@pytest.mark.parametrize("changed", ["time", "key", "cell"])
def test_prediction_depends_on_every_input(changed):
    network, (x_t, t, condition) = build(), build_inputs()
    for table in network.embed_condition.tables:
        nn.init.normal_(table.weight)
    other = {
        "time": (x_t, t / 2, condition),
        "key": (x_t, t, torch.stack([(condition[:, 0] + 1) % 4, condition[:, 1]], 1)),
        "cell": (x_t + torch.linspace(0, 1, N_GENES), t, condition),
    }[changed]
    assert ((network(*other) - network(x_t, t, condition)).abs().amax(1) > 1e-4).all()


def test_cells_do_not_depend_on_their_batch():
    network, inputs = build(), build_inputs()
    alone = torch.cat([network(*(x[[i]] for x in inputs)) for i in range(4)])
    torch.testing.assert_close(network(*inputs), alone, rtol=1e-4, atol=1e-5)  # sums in another order, single precision


def test_the_network_compiles_in_one_piece():
    network, inputs = build(), build_inputs()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*inputs), network(*inputs))


def test_channels_are_the_published_ones():
    with torch.device("meta"):
        network = GeneUNet(2000)
    assert [level.embed_context[1].out_features for level in network.down] == [128, 256, 256]
    assert [level.embed_context[1].out_features for level in network.up] == [128, 64, 64]
    assert [part.network[3].out_channels for part in network.bottom] == [512, 512, 256]
    assert [level.convolve[1].network[0].out_channels for level in network.up] == [256, 128, 64]
    assert all(level.attend.attention.n_heads == 4 for level in (*network.down, *network.up))


def test_time_is_embedded_by_sines_then_cosines():
    features = []
    network, inputs = build(conditions=()), build_inputs(conditions=())
    network.down[0].embed_context.register_forward_pre_hook(lambda _, arguments: features.append(arguments[0]))
    network(*inputs)
    angles = inputs[1].double()[:, None] * 1e4 ** (-2 * torch.arange(128, dtype=torch.float64) / 256)
    expected = torch.cat([angles.sin(), angles.cos()], dim=1).float()
    torch.testing.assert_close(features[0], expected, rtol=0, atol=2e-4)  # angles up to 999 in single precision


def test_double_convolution_follows_its_formula():
    block, x = build().down[0].convolve[0], torch.randn(2, 4, 6)
    first, norm_1, _, second, norm_2 = block.network
    inner = gelu(group_norm(first(x), 1, norm_1.weight, norm_1.bias))
    expected = gelu(x + group_norm(second(inner), 1, norm_2.weight, norm_2.bias))
    torch.testing.assert_close(block(x), expected)
    assert first.bias is second.bias is None


def test_a_width_that_four_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match="width 6 and 4 heads"):
        build(width=6)
