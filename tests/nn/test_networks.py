"""The denoising networks: what holds for all of them, and what each does by itself."""

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, group_norm

from scgen_diffusion.nn import Classes, DiT, GeneDiT, GeneMLP, GeneUNet, _gene_networks

N_CELLS, N_GENES, KEYS = 5, 11, (3, 2)
PATCHES = {"patch_size": 4, "width": 8, "n_layers": 2, "n_heads": 2}
NETWORKS = {
    "latents": lambda _, keys: DiT(4, 3, keys, width=8, n_layers=2, n_heads=2),
    "patches": lambda n, keys, **options: GeneDiT(n, keys, **PATCHES | options),
    "white box": lambda n, keys, **options: GeneDiT(n, keys, block="white_box", **PATCHES | options),
    "global tokens": lambda n, keys, **options: GeneDiT(n, keys, n_global_tokens=2, **PATCHES | options),
    "mlp": lambda n, keys, **options: GeneMLP(n, keys, width=16, **options),
    "mlp on axes": lambda n, keys, **options: GeneMLP(n, keys, width=16, n_axes=5, **options),
    "unet": lambda n, keys, **options: GeneUNet(n, keys, width=4, **options),
}
IN_GENE_SPACE = [name for name in NETWORKS if name != "latents"]
per_network = pytest.mark.parametrize("name", NETWORKS)
per_gene_network = pytest.mark.parametrize("name", IN_GENE_SPACE)


def build(name, n_genes=N_GENES, *, keys=KEYS, started=True, **options):
    """Build a small network; ``started``: with every parameter away from its start, where much of it is zero."""
    torch.manual_seed(0)
    network = NETWORKS[name](n_genes, [Classes(k) for k in keys], **options)
    return stir(network) if started else network


def stir(network):
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return network


def build_inputs(name, n_genes=N_GENES, *, keys=KEYS):
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(N_CELLS, *((4, 3) if name == "latents" else (n_genes,)), generator=generator)
    t = torch.randint(1000, (N_CELLS,), generator=generator).float()
    columns = [torch.randint(k + 1, (N_CELLS,), generator=generator) for k in keys]
    return x_t, t, torch.stack(columns, dim=1) if keys else torch.empty(N_CELLS, 0, dtype=torch.long)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "unet"])
def test_the_untrained_network_predicts_zero(name):
    assert not build(name, started=False)(*build_inputs(name)).any()


@per_network
def test_first_steps_of_training_reach_every_parameter(name):
    network = build(name, started=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    for _ in range(4):  # output layer, then its modulation and the last gates, then what lies before them
        optimizer.zero_grad()
        (network(*build_inputs(name)) - 1).square().mean().backward()
        optimizer.step()
    assert [name for name, parameter in network.named_parameters() if torch.equal(parameter, before[name])] == []


@per_network
@pytest.mark.parametrize("t", [0.0, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1e3])
def test_gradients_are_finite_at_the_ends_of_time_and_for_large_inputs(name, t, scale):
    network, (x_t, _, condition) = build(name), build_inputs(name)
    network(scale * x_t, torch.full((N_CELLS,), t), condition).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@per_network
@pytest.mark.parametrize("changed", ["time", "first key", "second key", "cell"])
def test_prediction_depends_on_every_input(name, changed):
    network, (x_t, t, condition) = build(name), build_inputs(name)
    other = {
        "time": (x_t, t / 2, condition),
        "first key": (x_t, t, torch.stack([(condition[:, 0] + 1) % 4, condition[:, 1]], 1)),
        "second key": (x_t, t, torch.stack([condition[:, 0], (condition[:, 1] + 1) % 3], 1)),
        "cell": (x_t + torch.linspace(0, 1, x_t[0].numel()).view(x_t[0].shape), t, condition),
    }[changed]
    assert ((network(*other) - network(x_t, t, condition)).flatten(1).abs().amax(1) > 1e-4).all()


@per_network
@pytest.mark.parametrize("keys", [(), (3, 2, 5)], ids=len)
def test_cells_do_not_depend_on_their_batch(name, keys):
    network, inputs = build(name, keys=keys), build_inputs(name, keys=keys)
    together = network(*inputs)
    alone = torch.cat([network(*(x[[i]] for x in inputs)) for i in range(N_CELLS)])
    assert together.shape == inputs[0].shape
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)  # sums in another order, single precision


@pytest.mark.parametrize("name", ["white box", "global tokens", "unet"])
def test_the_network_compiles_in_one_piece(name):
    network, inputs = build(name), build_inputs(name)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*inputs), network(*inputs))


@per_gene_network
@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("n_genes", [4, 8, 9, 19])
def test_any_number_of_genes_and_outputs_is_possible(name, n_genes, n_outputs):
    predicted = build(name, n_genes, n_outputs=n_outputs)(*build_inputs(name, n_genes))
    assert predicted.shape == ((N_CELLS, n_genes) if n_outputs == 1 else (N_CELLS, n_outputs, n_genes))
    assert predicted.isfinite().all()


@pytest.mark.parametrize("name", ["patches", "white box", "unet"])
def test_cells_do_not_depend_on_parts_and_no_activation_is_larger_than_allowed(name, monkeypatch):
    network, inputs, sizes = build(name, 19), build_inputs(name, 19), []
    with torch.no_grad():
        whole = network(*inputs)
        for part in network.modules():
            part.register_forward_hook(lambda *call: sizes.append(call[-1].numel()))
        monkeypatch.setattr(_gene_networks, "LARGEST_ACTIVATION", limit := 2 * network._numbers_per_cell)
        in_parts = network(*inputs)
    torch.testing.assert_close(in_parts, whole)
    assert max(sizes) <= limit


def test_patches_are_padded_with_zeros_and_predict_their_own_genes():
    network, (x_t, t, condition) = build("patches"), build_inputs("patches")
    padded = torch.cat([x_t, torch.zeros(5, 1)], dim=1).reshape(5, 3, 4)
    expected = network.network(padded, t, condition).reshape(5, 12)[:, :11]
    assert torch.equal(network(x_t, t, condition), expected)
    assert torch.equal(network(x_t, t.long(), condition), expected)


@pytest.mark.parametrize("name", ["patches", "white box"])
def test_weights_start_as_published(name):
    network = build(name, started=False, width=64).network
    first = network.blocks[0]
    out = first.attention.project_out.weight
    assert 0.9 * (6 / 128) ** 0.5 < out.abs().max() <= (6 / 128) ** 0.5
    assert not first.modulation[1].weight.any()
    assert not first.attention.project_out.bias.any()
    assert not network.embed_time.network[0].bias.any()
    assert 0.018 < network.embed_time.network[2].weight.std() < 0.022


def test_heads_read_their_coordinates_of_the_modulated_tokens():
    network, inputs = build("white box"), build_inputs("white box")
    traces, coordinates = network.trace(*inputs), network.head_coordinates(*inputs)
    for block, trace, found in zip(network.network.blocks, traces, coordinates, strict=True):
        assert found.shape == (N_CELLS, 2, 3, 4)
        expected = torch.einsum("cnd,hdp->chnp", trace.attention.modulated, block.attention.subspaces)
        torch.testing.assert_close(found, expected)


def test_global_tokens_read_and_write_all_genes():
    network = build("global tokens", started=False)
    stir(network.read_all_genes), stir(network.write_all_genes), stir(network.network.blocks)
    network.network.project_in.weight.data.zero_()  # the patches are blind now, so all that is seen, is seen globally
    x_t, t, condition = build_inputs("global tokens")
    x_t[1:] = x_t[0]
    x_t[1, 0] += 1

    predicted = network(x_t, t[:1].expand(N_CELLS), condition[:1].expand(N_CELLS, -1))

    assert (predicted[0] != predicted[1]).all()
    assert torch.equal(predicted[2], predicted[3])


def test_global_tokens_start_as_coordinates_along_given_directions():
    network, x = build("global tokens"), torch.randn(5, N_GENES)
    directions = torch.linalg.qr(torch.randn(N_GENES, 4)).Q.T
    network.start_reading(directions)
    torch.testing.assert_close(network.read_all_genes(x)[:, :4], x @ directions.T)
    network.start_reading(torch.ones(20, N_GENES))  # more than there is room for
    assert (network.read_all_genes.weight == 1).all()


def test_the_residual_network_sees_genes_along_its_axes_only():
    network, (_, t, condition) = build("mlp on axes", started=False), build_inputs("mlp on axes")
    torch.nn.init.normal_(network.project_out.weight)
    axes = torch.linalg.qr(torch.randn(N_GENES, N_GENES, generator=torch.Generator().manual_seed(0))).Q[:5]
    network.start_reading(axes)

    x, before = torch.randn(N_CELLS, N_GENES), network(torch.zeros(N_CELLS, N_GENES), t, condition)
    torch.testing.assert_close(network(x - x @ axes.T @ axes, t, condition), before, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(network(x @ axes.T @ axes, t, condition), before, atol=1e-3)


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
    network, inputs = build("unet", keys=()), build_inputs("unet", keys=())
    network.down[0].embed_context.register_forward_pre_hook(lambda _, arguments: features.append(arguments[0]))
    network(*inputs)
    angles = inputs[1].double()[:, None] * 1e4 ** (-2 * torch.arange(128, dtype=torch.float64) / 256)
    expected = torch.cat([angles.sin(), angles.cos()], dim=1).float()
    torch.testing.assert_close(features[0], expected, rtol=0, atol=2e-4)  # angles up to 999 in single precision


def test_double_convolution_follows_its_formula():
    block, x = build("unet").down[0].convolve[0], torch.randn(2, 4, 6)
    first, norm_1, _, second, norm_2 = block.network
    inner = gelu(group_norm(first(x), 1, norm_1.weight, norm_1.bias))
    expected = gelu(x + group_norm(second(inner), 1, norm_2.weight, norm_2.bias))
    torch.testing.assert_close(block(x), expected)
    assert first.bias is second.bias is None
