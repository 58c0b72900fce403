"""Effects of conditions on decoded genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ._conditions import ConditionEmbedding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ._conditions import ConditionSpec

EMBEDDING_SCALE = 5.0  # embeddings start small; loadings that make up for it would turn each step into a jump
RIDGE = 0.3  # cells


class ConditionEffects(nn.Module):
    """Two effects of conditions on every gene, on its share and its dispersion. They add up over keys.

    They start at zero.

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
        return self.loadings(EMBEDDING_SCALE * self.embed(condition)).unflatten(1, (-1, 2))

    @torch.no_grad()
    def add(self, condition: Tensor, effects: Tensor, n_cells: Tensor) -> None:
        """Add to the effects, by ridge regression.

        Parameters
        ----------
        condition
            ``(n, columns)``.
        effects
            What to add to the effects of each row, ``(n, genes, 2)``.
        n_cells
            Weight of each row, ``(n,)``.
        """
        x, y, weights = EMBEDDING_SCALE * self.embed(condition).double(), effects.flatten(1).double(), n_cells.double()
        penalty = RIDGE * x.square().mean() * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        fitted = torch.linalg.solve((x.T * weights) @ x + penalty, (x.T * weights) @ y)
        self.loadings.weight += fitted.T.to(self.loadings.weight.dtype)
