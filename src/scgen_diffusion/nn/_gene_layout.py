"""The layout of a panel's genes for networks that need them in a row of a certain length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

if TYPE_CHECKING:
    from collections.abc import Sequence


class GeneLayout(nn.Module):
    """Order genes and pad them with zeros to a multiple of a length, and undo both.

    The order is a buffer: it is saved and loaded with the weights, which are meaningless without it.

    Parameters
    ----------
    n_genes
        Size of the panel.
    multiple
        The padded length is a multiple of this number.
    gene_order
        The gene at each place, a permutation of ``range(n_genes)``. Default: the order of the input.

    Raises
    ------
    ValueError
        If ``gene_order`` is not a permutation, or cells have another number of genes.
    """

    def __init__(self, n_genes: int, multiple: int, gene_order: Sequence[int] | Tensor | None = None) -> None:
        super().__init__()
        self.n_genes = n_genes
        self.n_padding = -n_genes % multiple
        order = torch.arange(n_genes) if gene_order is None else as_permutation(gene_order, n_genes)
        self.register_buffer("gene_order", order)

    def forward(self, x: Tensor) -> Tensor:
        """Lay out cells ``(cells, genes)`` as ``(cells, genes + padding)``."""
        if x.ndim != 2 or x.shape[1] != self.n_genes:
            msg = f"Cells must have the shape (cells, {self.n_genes} genes), but found {tuple(x.shape)}."
            raise ValueError(msg)
        return pad(x.index_select(1, self.gene_order), (0, self.n_padding))

    def undo(self, x: Tensor) -> Tensor:
        """Bring ``(..., genes + padding)`` back to ``(..., genes)``."""
        x = x[..., : self.n_genes]
        return torch.empty_like(x).index_copy(-1, self.gene_order, x)  # a copy needs no sums in its gradient

    @property
    def genes(self) -> Tensor:
        """The gene at each place, -1 for padding, ``(genes + padding,)``."""
        return pad(self.gene_order, (0, self.n_padding), value=-1)


def as_permutation(gene_order: Sequence[int] | Tensor, n_genes: int) -> Tensor:
    """Copy the order into a tensor, or raise if it does not contain every gene exactly once."""
    order = torch.as_tensor(gene_order)
    if order.ndim != 1 or sorted(order.tolist()) != list(range(n_genes)):
        msg = f"`gene_order` must be a permutation of 0 to {n_genes - 1}, with every gene exactly once."
        raise ValueError(msg)
    return order.to(torch.long, copy=True)
