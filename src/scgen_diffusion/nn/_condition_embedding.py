"""Embeddings of conditions: classes, numbers and sets, each of which may be "not given".

The condition of ``n`` cells is one tensor ``(n, columns)``, in which every key has one or more adjacent columns.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


NOT_GIVEN = -math.inf  # instead of a number
N_OCTAVES = 4  # frequencies for the sines and cosines of a number; the slowest has a period of 16 standard deviations


class ConditionEncoding(ABC):
    """How the columns of one key encode its values, and which module embeds them."""

    is_numeric: ClassVar[bool] = False
    """Whether its columns hold numbers instead of the numbers of classes or members."""
    vectors: Tensor | None = None
    """Known embeddings of its classes or members."""
    n: int

    @property
    @abstractmethod
    def null(self) -> tuple[float, ...]:
        """The values of its columns if it is not given."""

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        return len(self.null)

    @property
    def learns_vectors(self) -> bool:
        """Whether each class or member has a vector of its own that is learned."""
        return self.vectors is None and not self.is_numeric

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """Build the module that embeds its columns ``(n, columns of the key)`` as ``(n, width)``."""


@dataclass(frozen=True, eq=False)
class Classes(ConditionEncoding):
    """One of ``n`` classes, encoded by its number in one column.

    Parameters
    ----------
    n
        Number of classes; the number ``n`` itself means "not given".
    vectors
        Known embedding of each class, ``(n, d)``. By default every class learns its own.
    """

    n: int
    vectors: Tensor | None = None

    @property
    def null(self) -> tuple[float, ...]:
        """The number after the last class."""
        return (self.n,)

    def build(self, width: int) -> nn.Module:
        """Build a table, or a projection of the known embeddings."""
        return ClassTable(self.n, width) if self.vectors is None else KnownClasses(self.vectors, width)


@dataclass(frozen=True)
class Number(ConditionEncoding):
    """One or several standardised numbers that are one condition, such as a position; one column each.

    Parameters
    ----------
    n
        How many.
    """

    is_numeric = True
    n: int = 1

    @property
    def null(self) -> tuple[float, ...]:
        """Minus infinity in each column."""
        return (NOT_GIVEN,) * self.n

    def build(self, width: int) -> nn.Module:
        """Build a smooth embedding."""
        return NumberEmbedding(width, self.n)


@dataclass(frozen=True, eq=False)
class Members(ConditionEncoding):
    """A set of at most ``largest`` of ``n`` members, encoded by their numbers.

    Parameters
    ----------
    n
        Number of members; the number ``n`` means an empty place, and ``n + 1`` in the first place "not given".
    largest
        Number of places.
    vectors
        Known embedding of each member, ``(n, d)``.
    """

    n: int
    largest: int
    vectors: Tensor | None = None

    @property
    def null(self) -> tuple[float, ...]:
        """The mark for "not given" in the first place, and empty places after it."""
        return (self.n + 1, *[self.n] * (self.largest - 1))

    def build(self, width: int) -> nn.Module:
        """Build a sum over members."""
        return SetEmbedding(self.n, width, self.vectors)


def null_condition(conditions: Sequence[ConditionEncoding]) -> Tensor:
    """Return the values that mean "not given", ``(columns,)``: whole numbers if all keys are discrete."""
    null = [value for encoding in conditions for value in encoding.null]
    is_discrete = all(math.isfinite(value) for value in null)
    return torch.tensor(null, dtype=torch.long if is_discrete else torch.float32)


def keys_of_columns(conditions: Sequence[ConditionEncoding]) -> Tensor:
    """Return the key that each column belongs to, ``(columns,)``."""
    keys = [key for key, encoding in enumerate(conditions) for _ in range(encoding.n_columns)]
    return torch.tensor(keys, dtype=torch.long)


def classes_are_given(condition: Tensor, conditions: Sequence[ConditionEncoding]) -> Tensor:
    """Mark the conditions ``(n, columns)`` that give all classes and sets, ``(n,)``; numbers may be missing."""
    given, start = torch.ones(len(condition), dtype=torch.bool, device=condition.device), 0
    for encoding in conditions:
        if not encoding.is_numeric:
            given &= condition[:, start] != encoding.null[0]
        start += encoding.n_columns
    return given


class ConditionEmbedding(nn.Module):
    """Sum of one embedding per key.

    Parameters
    ----------
    conditions
        Encoding of each key: :class:`Classes`, :class:`Number` or :class:`Members`.
    width
        Width of the embedding.

    Examples
    --------
    >>> import torch
    >>> embed = ConditionEmbedding([Classes(10), Number(), Members(5, largest=2)], width=16)
    >>> embed(
    ...     torch.tensor([[3, 0.5, 1, 4], [10, float("-inf"), 6, 5]])
    ... ).shape  # no conditions for the second cell
    torch.Size([2, 16])
    """

    def __init__(self, conditions: Sequence[ConditionEncoding], width: int) -> None:
        super().__init__()
        self.width = width
        self.n_columns = [encoding.n_columns for encoding in conditions]
        self.tables = nn.ModuleList(encoding.build(width) for encoding in conditions)

    def forward(self, condition: Tensor) -> Tensor:
        """Embed conditions ``(n, columns)`` as ``(n, width)``; without keys the embedding is zero."""
        columns = condition.split(self.n_columns, dim=1)
        embedded = [table(values) for table, values in zip(self.tables, columns, strict=True)]
        return sum(embedded) if embedded else torch.zeros(len(condition), self.width, device=condition.device)


class ClassTable(nn.Embedding):
    """A learned vector per class, and one for "not given"."""

    def __init__(self, n: int, width: int) -> None:
        super().__init__(n + 1, width)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, column: Tensor) -> Tensor:
        """Embed class numbers ``(n, 1)``."""
        return super().forward(column[:, 0].long())


class KnownClasses(nn.Module):
    """A projection of each class's known vector, and a learned vector for "not given"; see :class:`KnownVectors`."""

    def __init__(self, vectors: Tensor, width: int) -> None:
        super().__init__()
        self.known = KnownVectors(vectors, width)
        self.null = nn.Parameter(0.02 * torch.randn(1, width))

    def forward(self, column: Tensor) -> Tensor:
        """Embed class numbers ``(n, 1)``."""
        codes, last = column.long(), len(self.known.vectors) - 1
        return torch.where(codes <= last, self.known(codes[:, 0].clamp(max=last)), self.null)


class NumberEmbedding(nn.Module):
    """A smooth function of ``n`` numbers: a small network of them and their slow sines and cosines.

    The network sees all numbers together, so that positions need not add up.
    """

    frequencies: Tensor

    def __init__(self, width: int, n: int = 1) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi / 8 * 2.0 ** torch.arange(N_OCTAVES), persistent=False)
        self.network = nn.Sequential(nn.Linear(n * (1 + 2 * N_OCTAVES), width), nn.SiLU(), nn.Linear(width, width))
        self.null = nn.Parameter(0.02 * torch.randn(1, width))
        nn.init.normal_(self.network[-1].weight, std=0.02)

    def forward(self, columns: Tensor) -> Tensor:
        """Embed standardised numbers ``(n, numbers)``."""
        given = columns[:, :1] != NOT_GIVEN
        x = torch.where(given, columns, 0.0)
        angles = (x[:, :, None] * self.frequencies).flatten(1)
        return torch.where(given, self.network(torch.cat([x, angles.sin(), angles.cos()], dim=1)), self.null)


class SetEmbedding(nn.Module):
    r"""A function of a set: :math:`s + \text{network}(s)`, where ``s`` is the sum of the members' vectors.

    The network starts at zero and can learn effects that are not additive. The order of the members does not matter. An
    empty set differs from a set that is not given. Parameters as in :class:`Members`.
    """

    def __init__(self, n: int, width: int, vectors: Tensor | None = None) -> None:
        super().__init__()
        self.n = n
        self.members = nn.Embedding(n, width) if vectors is None else KnownVectors(vectors, width)
        if vectors is None:
            nn.init.normal_(self.members.weight, std=0.02)
        self.network = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.null = nn.Parameter(0.02 * torch.randn(1, width))
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def forward(self, columns: Tensor) -> Tensor:
        """Embed member numbers ``(n, largest)``."""
        codes = columns.long()
        given = codes[:, :1] <= self.n
        vectors = self.members(codes.clamp(max=self.n - 1))
        total = torch.where((codes < self.n)[..., None], vectors, 0).sum(1)  # empty places add nothing
        return torch.where(given, total + self.network(total), self.null)


class KnownVectors(nn.Module):
    """A learned projection of given vectors ``(n, d)``, which also embeds classes and members never trained on.

    The vectors are centred and scaled to a mean square of 1.
    """

    vectors: Tensor

    def __init__(self, vectors: Tensor, width: int) -> None:
        super().__init__()
        vectors = vectors.float()
        self.register_buffer("vectors", (vectors - vectors.mean(0)) / _spread(vectors).clamp(min=1e-6))
        self.project = nn.Sequential(nn.Linear(vectors.shape[1], width), nn.SiLU(), nn.Linear(width, width))
        nn.init.normal_(self.project[-1].weight, std=0.02)
        nn.init.zeros_(self.project[-1].bias)

    def forward(self, codes: Tensor) -> Tensor:
        """Embed numbers of vectors ``(...)`` as ``(..., width)``."""
        return self.project(self.vectors[codes])


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
    for name in [name for name in state if name.endswith("vectors")]:  # known embeddings
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
