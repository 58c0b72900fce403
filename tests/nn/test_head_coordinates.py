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


def test_heads_read_their_coordinates_of_the_modulated_tokens():
    network, inputs = build(), build_inputs()
    traces, coordinates = network.trace(*inputs), network.head_coordinates(*inputs)
    for block, trace, found in zip(network.network.blocks, traces, coordinates, strict=True):
        assert found.shape == (4, 2, 3, 4)
        expected = torch.einsum("cnd,hdp->chnp", trace.attention.modulated, block.attention.subspaces)
        torch.testing.assert_close(found, expected)


def test_a_gene_moves_only_its_own_patch_before_the_first_attention():
    network, (x_t, t, condition) = build(), build_inputs(n=1)
    derivatives = jacobian(lambda x: tuple(network.head_coordinates(x, t, condition)), x_t)
    first, second = (derivative[..., 4] for derivative in derivatives)
    assert not first[:, :, [0, 2]].any()
    assert first[:, :, 1].any()
    assert second[:, :, [0, 2]].any()


def test_other_blocks_have_no_subspaces():
    network, (x_t, t, condition) = build("transformer"), build_inputs()
    with pytest.raises(ValueError, match="white-box blocks have a subspace"):
        network.head_coordinates(x_t, t, condition)
