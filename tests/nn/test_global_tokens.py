"""Global tokens and several outputs per gene."""

from __future__ import annotations

import pytest
import torch

from scgen_diffusion.nn import GeneDiT, GeneUNet

INPUTS = (torch.zeros(5, dtype=torch.long) + 500.0, torch.zeros(5, 1, dtype=torch.long))


def build(**options):
    return GeneDiT(12, (3,), patch_size=3, width=8, n_layers=1, n_heads=2, **options)


def stir(network):
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return network


@pytest.mark.parametrize("n_global_tokens", [0, 2])
@pytest.mark.parametrize("block", ["transformer", "white_box"])
def test_several_outputs_come_side_by_side(n_global_tokens, block):
    network = stir(build(n_outputs=3, n_global_tokens=n_global_tokens, block=block))

    assert network(torch.randn(5, 12), *INPUTS).shape == (5, 3, 12)


def test_a_unet_has_several_outputs_too():
    assert GeneUNet(12, (3,), width=4, n_outputs=3)(torch.randn(5, 12), *INPUTS).shape == (5, 3, 12)


def test_what_global_tokens_read_and_write_does_not_depend_on_patches():
    network = build(n_global_tokens=1)
    stir(network.read_all_genes), stir(network.write_all_genes), stir(network.network.blocks)
    network.network.project_in.weight.data.zero_()  # the patches are blind now, so all that is seen, is seen globally
    x = torch.randn(1, 12).expand(2, -1).clone()
    x[1, 0] += 1

    predicted = network(x, INPUTS[0][:2], INPUTS[1][:2])

    assert (predicted[0] != predicted[1]).all()


def test_condition_and_time_write_to_all_genes():
    network = stir(build(n_global_tokens=1))
    x, t = torch.randn(1, 12).expand(3, -1), torch.full((3,), 10.0)

    predicted = network(x, t, torch.tensor([[0], [1], [2]]))

    assert (predicted[0] != predicted[1]).all()
    assert (predicted[1] != predicted[2]).all()


def test_global_tokens_start_as_coordinates_along_given_directions():
    network = build(n_global_tokens=2)
    directions = torch.linalg.qr(torch.randn(12, 4)).Q.T
    network.start_reading(directions)
    x = torch.randn(5, 12)

    torch.testing.assert_close(network.read_all_genes(x)[:, :4], x @ directions.T)


def test_more_directions_than_numbers_are_cut():
    network = build(n_global_tokens=1)
    network.start_reading(torch.ones(20, 12))

    assert (network.read_all_genes.weight == 1).all()


def test_without_global_tokens_no_weights_are_those_of_genes():
    assert build().gene_weights == []


def test_the_untrained_network_predicts_zero():
    assert (build(n_outputs=3, n_global_tokens=2)(torch.randn(5, 12), *INPUTS) == 0).all()
