"""Large batches are evaluated in parts, unless gradients need them whole."""

import pytest
import torch

from scgen_diffusion.nn import GeneDiT, GeneUNet, _parts

N_CELLS, N_GENES = 7, 19
NETWORKS = {
    "transformer": lambda: GeneDiT(N_GENES, (3,), patch_size=4, width=8, n_layers=1, n_heads=2),
    "white box": lambda: GeneDiT(N_GENES, (3,), patch_size=4, width=8, n_layers=1, n_heads=2, block="white_box"),
    "U-Net": lambda: GeneUNet(N_GENES, (3,), width=4),
}


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(N_CELLS, N_GENES, generator=generator)
    return x_t, torch.arange(N_CELLS) * 100.0, torch.arange(N_CELLS)[:, None] % 4


@pytest.mark.parametrize("name", NETWORKS)
def test_cells_do_not_depend_on_parts_and_no_activation_is_larger_than_allowed(name, inputs, monkeypatch):
    torch.manual_seed(0)
    network, sizes = NETWORKS[name](), []
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        whole = network(*inputs)
        for part in network.modules():
            part.register_forward_hook(lambda *call: sizes.append(call[-1].numel()))
        monkeypatch.setattr(_parts, "LARGEST_ACTIVATION", limit := 2 * network._numbers_per_cell)
        in_parts = network(*inputs)
    torch.testing.assert_close(in_parts, whole)
    assert max(sizes) <= limit


def test_gradients_are_those_of_the_whole_batch(monkeypatch):
    monkeypatch.setattr(_parts, "LARGEST_ACTIVATION", 1)
    x = torch.ones(5, 2)
    assert [len(part) for (part,) in _parts.parts_of(1, x)] == [5]
    with torch.no_grad():
        assert [len(part) for (part,) in _parts.parts_of(1, x)] == [1] * 5
        assert [len(part) for (part,) in _parts.parts_of(10**6, x[:0])] == [0]
