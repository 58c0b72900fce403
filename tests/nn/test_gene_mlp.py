"""The residual network over whole profiles."""

import pytest
import torch

from scgen_diffusion.nn import GeneMLP, Number

T = torch.tensor([10.0, 500.0, 900.0])
CONDITION = torch.tensor([[0.0, 0.5], [2.0, -1.0], [1.0, 3.0]])


@pytest.fixture(params=[None, 5], ids=["all directions", "five axes"])
def network(request):
    torch.manual_seed(0)
    network = GeneMLP(7, (3, Number()), width=16, n_layers=2, n_outputs=2, n_axes=request.param)
    for parameter in network.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape))
    return network


def test_it_starts_at_zero():
    network = GeneMLP(7, (3, Number()), width=16)

    assert (network(torch.randn(3, 7), T, CONDITION) == 0).all()


@pytest.mark.parametrize(("n_outputs", "shape"), [(1, (3, 7)), (2, (3, 2, 7))])
def test_it_predicts_numbers_for_each_gene(n_outputs, shape):
    assert GeneMLP(7, (3, Number()), width=8, n_outputs=n_outputs)(torch.randn(3, 7), T, CONDITION).shape == shape


def test_every_gene_the_time_and_the_condition_matter(network):
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    before = network(x, T, CONDITION)

    for gene in range(7):
        changed = x.clone()
        changed[:, gene] += 1
        assert (network(changed, T, CONDITION) - before).abs().amin(dim=(1, 2)).min() > 1e-4
    assert not torch.allclose(network(x, T + 50, CONDITION), before)
    assert not torch.allclose(network(x, T, CONDITION[[1, 2, 0]]), before)


def test_cells_do_not_depend_on_each_other(network):
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(network(x, T, CONDITION)[:1], network(x[:1], T[:1], CONDITION[:1]))


def test_it_sees_genes_along_its_axes_only():
    network = GeneMLP(7, (3, Number()), width=16, n_axes=3)
    torch.nn.init.normal_(network.project_out.weight)
    axes = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(0))).Q

    network.start_reading(axes[:3])

    x, before = torch.randn(3, 7), network(torch.zeros(3, 7), T, CONDITION)
    torch.testing.assert_close(network(x - x @ axes[:3].T @ axes[:3], T, CONDITION), before, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(network(x @ axes[:3].T @ axes[:3], T, CONDITION), before, atol=1e-3)


def test_gene_weights_are_all_matrices_with_genes(network):
    assert {id(p) for p in network.gene_weights} == {
        id(p) for p in network.parameters() if p.shape in {(16, 7), (5, 7), (14, 32)}
    }
