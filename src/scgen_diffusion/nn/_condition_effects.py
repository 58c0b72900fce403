"""Effects of conditions on decoded genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ._conditions import ConditionEmbedding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ._conditions import ConditionSpec


class ConditionEffects(nn.Module):
    """Two effects of conditions on every gene, on its share and its dispersion. They add up over keys and start at zero.

    Parameters
    ----------
    n_genes
        Size of the panel.
    conditions
        Kind of each condition key, see :class:`ConditionEmbedding`.
    width
        Width of the conditions' embedding.

    Examples
    --------
    >>> import torch
    >>> effects = ConditionEffects(7, (3,), width=16)
    >>> effects(torch.tensor([[0], [2]])).shape
    torch.Size([2, 7, 2])
    """

    def __init__(self, n_genes: int, conditions: Sequence[ConditionSpec], *, width: int) -> None:
        super().__init__()
        self.embed = ConditionEmbedding(conditions, width)
        self.loadings = nn.Linear(width, 2 * n_genes, bias=False)
        nn.init.zeros_(self.loadings.weight)

    def forward(self, condition: Tensor) -> Tensor:
        """Return the effects ``(cells, genes, 2)`` of conditions ``(cells, columns)``."""
        return self.loadings(self.embed(condition)).unflatten(1, (-1, 2))
