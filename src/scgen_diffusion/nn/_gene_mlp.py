"""A residual network over whole profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import silu

from ._blocks import gated_step, set_first_rows, zero_modulation
from ._conditions import ConditionEmbedding
from ._embeddings import TimeEmbedding
from ._feed_forward import MLP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ._conditions import ConditionSpec


class GeneMLP(nn.Module):
    """A residual network that reads and writes all genes at once, modulated by time and condition (adaLN-zero).

    It has neither patches nor attention, so it is several times as fast as :class:`GeneDiT`. Its outputs start at zero.
    With ``n_axes`` it sees genes along so few axes only, which :meth:`start_reading` initialises.

    Parameters
    ----------
    n_genes
        Size of the panel.
    conditions
        Kind of each condition key, see :class:`ConditionEmbedding`.
    width, n_layers
        Width of the residual stream, and number of blocks.
    n_outputs
        Numbers predicted per gene.
    n_axes
        Number of axes along which it reads genes; default: ``width``.

    Examples
    --------
    >>> import torch
    >>> network = GeneMLP(25, conditions=(3,), width=16, n_outputs=2)
    >>> network(
    ...     torch.randn(5, 25), torch.full((5,), 500.0), torch.zeros(5, 1, dtype=torch.long)
    ... ).shape
    torch.Size([5, 2, 25])
    """

    def __init__(
        self,
        n_genes: int,
        conditions: Sequence[ConditionSpec] = (),
        *,
        width: int = 256,
        n_layers: int = 2,
        n_outputs: int = 1,
        n_axes: int | None = None,
    ) -> None:
        super().__init__()
        self.n_outputs = n_outputs
        self.embed_time = TimeEmbedding(width)
        self.embed_condition = ConditionEmbedding(conditions, width)
        self.read_genes = nn.Linear(n_genes, n_axes or width)
        self.project_in = nn.Linear(n_axes, width) if n_axes else nn.Identity()
        self.norms = nn.ModuleList([nn.LayerNorm(width, elementwise_affine=False) for _ in range(n_layers)])
        self.blocks = nn.ModuleList([MLP(width, 2 * width) for _ in range(n_layers)])
        self.modulations = nn.ModuleList([zero_modulation(width, 3) for _ in range(n_layers)])
        self.norm_out = nn.LayerNorm(width)
        self.project_out = nn.Linear(2 * width, n_outputs * n_genes)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Predict from cells ``(cells, genes)``, times ``(cells,)`` and conditions ``(cells, columns)``.

        Returns
        -------
        Tensor
            ``(cells, genes)``, or ``(cells, n_outputs, genes)`` if there are several outputs.
        """
        context = self.embed_time(t) + self.embed_condition(condition)
        h = self.project_in(self.read_genes(x_t)) + context
        for norm, block, modulation in zip(self.norms, self.blocks, self.modulations, strict=True):
            h = gated_step(norm, block, h, modulation(context).chunk(3, dim=-1)).tokens_out
        prediction = self.project_out(torch.cat([self.norm_out(h), silu(context)], dim=1))
        return prediction.unflatten(1, (self.n_outputs, -1)) if self.n_outputs > 1 else prediction

    def start_reading(self, directions: Tensor) -> None:
        """Initialise the axes along which it reads genes as ``directions (k, genes)``."""
        set_first_rows(self.read_genes, directions)

    @property
    def gene_weights(self) -> list[Tensor]:
        """The matrices that read and write genes."""
        return [self.read_genes.weight, self.project_out.weight]
