import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgen_diffusion.nn import GeneLayout


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@given(n_genes=st.integers(1, 40), multiple=st.integers(1, 12), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_any_number_of_genes_in_any_order_comes_back(n_genes, multiple, seed):
    order = torch.randperm(n_genes, generator=torch.Generator().manual_seed(seed))
    layout, x = GeneLayout(n_genes, multiple, order), draw(3, n_genes)
    row = layout(x)
    assert row.shape[1] % multiple == 0
    assert row.shape[1] < n_genes + multiple
    assert torch.equal(row[:, :n_genes], x[:, order])
    assert (row[:, n_genes:] == 0).all()
    assert torch.equal(layout.undo(row), x)


def test_genes_stay_as_they_come_without_an_order():
    x = draw(3, 6)
    assert torch.equal(GeneLayout(6, 3)(x), x)


def test_the_gene_at_each_place_is_known():
    assert GeneLayout(3, 5, [2, 0, 1]).genes.tolist() == [2, 0, 1, -1, -1]


def test_the_order_is_loaded_with_the_weights():
    layout, x = GeneLayout(4, 3), draw(2, 4)
    layout.load_state_dict(GeneLayout(4, 3, [3, 1, 0, 2]).state_dict())
    assert torch.equal(layout(x)[:, :4], x[:, [3, 1, 0, 2]])
    assert torch.equal(layout.undo(layout(x)), x)


def test_the_order_that_was_given_is_not_shared():
    order = torch.tensor([1, 0, 2])
    layout = GeneLayout(3, 1, order)
    order.zero_()
    assert layout.gene_order.tolist() == [1, 0, 2]


@pytest.mark.parametrize("order", [[0, 1, 1], [0, 1], [1, 2, 3], [[0, 1, 2]], [0, 1, 2, 3], [0.2, 1.0, 2.0]])
def test_an_order_that_is_no_permutation_is_refused(order):
    with pytest.raises(ValueError, match="permutation of 0 to 2"):
        GeneLayout(3, 2, order)


@pytest.mark.parametrize("shape", [(2, 4), (2, 2), (3,), (2, 1, 3)])
def test_cells_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(cells, 3 genes\), but found \("):
        GeneLayout(3, 2)(draw(*shape))
