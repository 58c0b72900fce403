"""Transfer condition embeddings to models with more classes and members."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ._conditions import ClassTable, ConditionEmbedding, SetEmbedding

if TYPE_CHECKING:
    from collections.abc import Sequence

VECTORS = "vectors"  # known embeddings, in the names of a state dict


def extended_state(
    embed: ConditionEmbedding, reference: ConditionEmbedding, learned: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return a state in which ``embed`` embeds everything that ``reference`` learned in the same way.

    What ``reference`` did not learn starts at the mean of what it did. Tables after those of the keys, such as that of
    totals, are left out: they do not change.

    Parameters
    ----------
    embed
        Embedding of the same keys with further classes and members, numbered after the old ones.
    reference
        The trained embedding.
    learned
        Which classes or members of each key the reference learned, ``(values of embed,)`` each.
    """
    state = {}
    for key, (table, old, known) in enumerate(zip(embed.tables, reference.tables, learned, strict=False)):
        of_table = _extended(table, old, known)
        state |= {f"tables.{key}.{name}": tensor for name, tensor in of_table.items()}
    return state


def row_masks(embed: ConditionEmbedding, values: Sequence[Tensor]) -> dict[nn.Parameter, Tensor]:
    """Return the learned rows of some classes and members, as masks ``(rows, 1)`` by table.

    Parameters
    ----------
    embed
        The embedding.
    values
        Which classes or members of each key, ``(values,)`` each. Those with known embeddings have no rows.
    """
    rows = {}
    for table, chosen in zip(embed.tables, values, strict=False):  # tables may follow those of the keys
        if isinstance(table, ClassTable):
            rows[table.weight] = torch.cat([chosen, chosen.new_zeros(1)])[:, None]
        elif isinstance(table, SetEmbedding) and isinstance(table.members, nn.Embedding):
            rows[table.members.weight] = chosen[:, None]
    return {weight: mask for weight, mask in rows.items() if mask.any()}


def _extended(table: nn.Module, reference: nn.Module, learned: Tensor) -> dict[str, Tensor]:
    state = reference.state_dict()
    if isinstance(table, ClassTable):
        classes, not_given = state["weight"][:-1], state["weight"][-1:]
        state["weight"] = torch.cat([_extended_rows(classes, learned), not_given])
    elif "members.weight" in state:
        state["members.weight"] = _extended_rows(state["members.weight"], learned)
    for name in [name for name in state if name.endswith(VECTORS)]:
        state[name] = _extended_vectors(state[name], table.state_dict()[name])
    return state


def _extended_rows(rows: Tensor, learned: Tensor) -> Tensor:
    learned = learned.to(rows.device)
    kept = learned.nonzero()[:, 0] if learned.any() else torch.arange(len(rows), device=rows.device)
    extended = rows[kept].mean(0).repeat(len(learned), 1)
    extended[kept] = rows[kept]
    return extended


def _extended_vectors(vectors: Tensor, extended: Tensor) -> Tensor:
    """Scale further rows of standardised vectors ``(n, d)`` like the first rows.

    The scale of standardised vectors depends on all of them.
    """
    old, new = extended[: len(vectors)].to(vectors), extended[len(vectors) :].to(vectors)
    factor = _spread(vectors) / _spread(old).clamp(min=1e-6)
    return torch.cat([vectors, (new - old.mean(0)) * factor + vectors.mean(0)])


def _spread(vectors: Tensor) -> Tensor:
    return (vectors - vectors.mean(0)).square().mean().sqrt()
