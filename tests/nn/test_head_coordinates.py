import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

from scgen_diffusion.nn import GeneDiT

N_GENES = 7


def build(block="white_box", **options):
    torch.manual_seed(0)
    network = GeneDiT(N_GENES, patch_size=3, width=8, n_layers=2, n_heads=2, block=block, **options)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return network


def build_inputs(n=4):
    x_t = torch.randn(n, N_GENES, generator=torch.Generator().manual_seed(1))
    return x_t, torch.linspace(10, 900, n), torch.empty(n, 0, dtype=torch.long)


def exact_derivatives(network, x_t, t, condition):
    """Return (layers, cells, heads, patches, directions, genes); a cell sees no other."""
    cells = torch.arange(len(x_t))
    derivatives = jacobian(lambda x: tuple(network.head_coordinates(x, t, condition)), x_t)
    return torch.stack([derivative[cells, ..., cells, :] for derivative in derivatives])


def test_heads_read_their_coordinates_of_the_modulated_tokens():
    network, inputs = build(), build_inputs()
    traces, coordinates = network.trace(*inputs), network.head_coordinates(*inputs)
    for block, trace, found in zip(network.network.blocks, traces, coordinates, strict=True):
        assert found.shape == (4, 2, 3, 4)
        expected = torch.einsum("cnd,hdp->chnp", trace.attention.modulated, block.attention.subspaces)
        torch.testing.assert_close(found, expected)


def test_the_response_is_the_derivative_along_the_direction():
    network, inputs = build(), build_inputs()
    direction = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(2))
    expected = torch.einsum("lchnpg,cg->lchnp", exact_derivatives(network, *inputs), direction)
    found = torch.stack(network.head_response(*inputs, direction))
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # forward against backward, single precision


def test_a_gene_moves_only_its_own_patch_before_the_first_attention():
    network, (x_t, t, condition) = build(), build_inputs()
    direction = torch.zeros_like(x_t)
    direction[:, 4] = 1
    first, second = network.head_response(x_t, t, condition, direction)
    assert not first[:, :, [0, 2]].any()
    assert first[:, :, 1].any()
    assert second[:, :, [0, 2]].any()


def test_other_blocks_have_no_subspaces():
    network, (x_t, t, condition) = build("transformer"), build_inputs()
    for call in (
        lambda: network.head_coordinates(x_t, t, condition),
        lambda: network.head_response(x_t, t, condition, x_t),
    ):
        with pytest.raises(ValueError, match="white-box blocks have a subspace"):
            call()
