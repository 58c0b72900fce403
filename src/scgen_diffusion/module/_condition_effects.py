"""Effects of conditions on decoded genes: of classes and sets, of those that came later, and of combinations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import pad

from scgen_diffusion.nn import ConditionEmbedding, keys_of_columns, null_condition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from scgen_diffusion.nn import ConditionEncoding

EMBEDDING_SCALE = 5.0  # embeddings start small; loadings that make up for it would turn each step into a jump
RIDGE = 0.3  # cells
VECTOR_SCALE = 0.02  # standard deviation of an embedding at the start
MOST_RANDOM = 0.75  # vectors a dimension; more of them nearly depend on each other


class ConditionEffects(nn.Module):
    """Two effects of classes and sets on every gene, on its share and its dispersion. They add up over keys.

    They start at zero. Numbers have no effects: nothing would hold them to the cells at a number without training
    cells.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.nn import Classes
    >>> effects = ConditionEffects(7, [Classes(3)], width=16)
    >>> effects(torch.tensor([[0], [2]])).shape
    torch.Size([2, 7, 2])
    """

    null: Tensor
    key_of_column: Tensor
    is_number: Tensor

    def __init__(self, n_genes: int, conditions: Sequence[ConditionEncoding], *, width: int) -> None:
        super().__init__()
        are_numbers = torch.tensor([encoding.is_numeric for encoding in conditions])
        self.register_buffer("null", null_condition(conditions), persistent=False)
        self.register_buffer("key_of_column", keys_of_columns(conditions), persistent=False)
        self.register_buffer("is_number", are_numbers[self.key_of_column], persistent=False)
        self.embed = ConditionEmbedding(conditions, width)
        self._spread_evenly(width)
        self.loadings = nn.Linear(width, 2 * n_genes, bias=False)
        self.later: LaterEffects | None = None
        nn.init.zeros_(self.loadings.weight)

    @torch.no_grad()
    def _spread_evenly(self, width: int) -> None:
        """Make many vectors of classes and members orthogonal, or a tight frame if they are more than the width.

        Random ones nearly depend on each other if they are about as many as the width. Effects that differ between them
        then need huge loadings, with which each step of training is a jump. Few random ones make better cells.
        """
        tables = [table for table in self.embed.modules() if isinstance(table, nn.Embedding)]
        n_vectors = sum(table.num_embeddings for table in tables)
        if n_vectors <= MOST_RANDOM * width:
            return
        vectors = nn.init.orthogonal_(torch.empty(n_vectors, width), gain=VECTOR_SCALE * max(n_vectors, width) ** 0.5)
        for table, own in zip(tables, vectors.split([table.num_embeddings for table in tables]), strict=True):
            table.weight.copy_(own)

    def forward(self, condition: Tensor) -> Tensor:
        """Return the effects ``(cells, genes, 2)`` of conditions ``(cells, columns)``."""
        effects = self.loadings(self._embedded(condition))
        if self.later is not None:
            effects = effects + self.later(condition)
        return effects.unflatten(1, (-1, 2))

    def add_later(self, n_values: int) -> LaterEffects:
        """Add effects of classes and members that a model learns later than the others."""
        self.later = LaterEffects(self.loadings.out_features, self.key_of_column, n_values)
        return self.later

    def without_numbers(self, condition: Tensor) -> Tensor:
        """Turn the numbers among conditions ``(n, columns)`` into "not given"."""
        return torch.where(self.is_number, self.null, condition)

    def _embedded(self, condition: Tensor) -> Tensor:
        return EMBEDDING_SCALE * self.embed(self.without_numbers(condition))

    @torch.no_grad()
    def add(self, condition: Tensor, effects: Tensor, n_cells: Tensor) -> None:
        """Add to the effects, by ridge regression; a row without conditions, of the weight of all cells, has none.

        Parameters
        ----------
        condition
            ``(n, columns)``.
        effects
            What to add to the effects of each row, ``(n, genes, 2)``.
        n_cells
            Weight of each row, ``(n,)``.
        """
        condition, n_cells = torch.cat([condition, self.null[None]]), torch.cat([n_cells, n_cells.sum()[None]])
        effects = pad(effects, (0, 0, 0, 0, 0, 1))
        x = self._embedded(condition)
        if self.later is not None:
            x = torch.cat([x, self.later.are_given(condition).to(x.dtype)], dim=1)
        fitted = ridge(x, effects, n_cells)
        width = self.loadings.in_features
        self.loadings.weight += fitted[:width].T
        if self.later is not None:
            self.later.effects += fitted[width:]


class LaterEffects(nn.Module):
    """Effects on genes of classes and members that fine-tuning adds, of each by itself. They start at zero.

    Parameters
    ----------
    n_effects
        Number of effects of each.
    key_of_column
        Key that each column of conditions belongs to, ``(columns,)``.
    n_values
        Number of classes and members.
    """

    key_of_column: Tensor
    keys: Tensor
    codes: Tensor

    def __init__(self, n_effects: int, key_of_column: Tensor, n_values: int) -> None:
        super().__init__()
        self.register_buffer("key_of_column", key_of_column, persistent=False)
        self.register_buffer("keys", torch.zeros(n_values, dtype=torch.long))
        self.register_buffer("codes", torch.zeros(n_values, dtype=torch.long))
        self.effects = nn.Parameter(torch.zeros(n_values, n_effects))

    def are_given(self, condition: Tensor) -> Tensor:
        """Mark the classes and members that conditions ``(n, columns)`` have, ``(n, values)``."""
        of_key = self.keys[:, None] == self.key_of_column
        return ((condition[:, None] == self.codes[:, None]) & of_key).any(2)

    def forward(self, condition: Tensor) -> Tensor:
        """Return the effects of conditions ``(n, columns)``, ``(n, effects)``."""
        return self.are_given(condition).to(self.effects.dtype) @ self.effects


class AbsentEffects(nn.Module):
    """Effects on genes' shares that generated cells of combinations without training cells lack.

    Parameters
    ----------
    n_combinations, n_columns
        Number of combinations, and of the columns of their codes.
    n_effects
        Number of effects of a combination on a gene.
    """

    def __init__(self, n_combinations: int, n_columns: int, n_effects: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(n_combinations, n_columns, dtype=torch.long))
        self.register_buffer("combinations", torch.zeros(n_effects, dtype=torch.long))
        self.register_buffer("genes", torch.zeros(n_effects, dtype=torch.long))
        self.register_buffer("effects", torch.zeros(n_effects))

    def forward(self, condition: Tensor, start: Tensor, n_genes: int) -> Tensor:
        """Return the effects on genes, ``(cells, n_genes)``; zero for other combinations.

        Parameters
        ----------
        condition
            Conditions of the cells, ``(cells, columns)``.
        start
            Conditions that a flow starts from. Where these have training cells, it makes the new combination.
        n_genes
            Size of the panel.
        """
        has, is_start = ((codes[:, None] == self.codes).all(2) for codes in (condition, start))  # (cells, combinations)
        effects = self.effects.new_zeros(len(self.codes) + 1, n_genes)  # the last row is that of other combinations
        effects[self.combinations, self.genes] = self.effects
        return effects[torch.where(has.any(1) & is_start.any(1), has.int().argmax(1), len(self.codes))]


def ridge(x: Tensor, effects: Tensor, n_cells: Tensor) -> Tensor:
    """Regress effects ``(n, genes, 2)`` on ``x (n, width)``, with weights ``(n,)``: ``(width, genes * 2)``."""
    x, y, weights = x.double(), effects.flatten(1).double(), n_cells.double()
    penalty = RIDGE * x.square().mean() * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve((x.T * weights) @ x + penalty, (x.T * weights) @ y).float()
