"""Strategies for several conditions at once: what training drops, and how guidance composes them.

A condition of ``n`` samples is one tensor ``(n, columns)``, in which every key owns one or more neighbouring columns.
:class:`ConditionColumns` says which, and what stands for "not given".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True, eq=False)
class ConditionColumns:
    """What the columns of a condition ``(n, columns)`` mean.

    Parameters
    ----------
    null
        What stands for "not given" in each column, ``(columns,)``: for a class, one past the last; for a number, ``-inf``.
        Of the same dtype as conditions: long, or float32 if any key is a number.
    key
        Number of the key that each column belongs to, ``(columns,)``, ascending from 0.

    Examples
    --------
    >>> import torch
    >>> from scgen_diffusion.diffusion import ConditionColumns
    >>> columns = ConditionColumns(null=torch.tensor([3, 6, 5]), key=torch.tensor([0, 1, 1]))
    >>> columns.keep(torch.tensor([[2, 0, 4]]), keys=[0])
    tensor([[2, 6, 5]])
    """

    null: Tensor
    key: Tensor

    @classmethod
    def of_classes(cls, n_classes: Sequence[int]) -> Self:
        """Describe categorical keys alone: one column each, and the number of classes for "not given"."""
        return cls(torch.tensor(list(n_classes), dtype=torch.long), torch.arange(len(n_classes)))

    @property
    def n_keys(self) -> int:
        """Number of keys."""
        return int(self.key[-1]) + 1 if len(self.key) else 0

    def keep(self, condition: Tensor, keys: Sequence[int] | Tensor) -> Tensor:
        """Null every key of ``condition (n, columns)`` that is not listed."""
        given = torch.zeros(1, self.n_keys, dtype=torch.bool, device=condition.device)
        given[:, torch.as_tensor(keys, dtype=torch.long, device=condition.device)] = True
        return self.keep_where(condition, given)

    def keep_where(self, condition: Tensor, given: Tensor) -> Tensor:
        """Null the keys of ``condition (n, columns)`` where ``given (n, keys)`` is false; one row stands for all."""
        return torch.where(given[:, self.key], condition, self.null)


@dataclass(frozen=True)
class GuidanceTerm:
    r"""One summand :math:`s\,(v_K - v_\varnothing)` of guidance: the keys ``K`` that are given, and their scale ``s``."""

    keys: tuple[int, ...]
    scale: float


class ConditionStrategy(Protocol):
    """How a model sees several conditions."""

    def drop(
        self, condition: Tensor, columns: ConditionColumns, probability: float, generator: torch.Generator
    ) -> Tensor:
        """Null keys of ``condition (n, columns)`` at random, for classifier-free guidance."""
        ...

    def terms(self, scales: Sequence[float]) -> list[GuidanceTerm]:
        """Turn one scale per key into the summands of guidance."""
        ...


@dataclass(frozen=True)
class Joint:
    r"""All conditions together or none: :math:`v = v_\varnothing + \bar{s}\,(v_{all} - v_\varnothing)`.

    As published for scLDM, the scale is the mean of the keys' scales.
    """

    def drop(
        self, condition: Tensor, columns: ConditionColumns, probability: float, generator: torch.Generator
    ) -> Tensor:
        """Drop all keys of a sample by one coin per sample."""
        return _drop_samples(condition, columns, probability, generator)

    def terms(self, scales: Sequence[float]) -> list[GuidanceTerm]:
        """Give one term with all keys."""
        return [GuidanceTerm(tuple(range(len(scales))), sum(scales) / len(scales))] if scales else []


@dataclass(frozen=True)
class MutuallyExclusive:
    r"""One condition at a time: :math:`v = v_\varnothing + \sum_k s_k\,(v_k - v_\varnothing)`.

    Training shows one key per batch, drawn at random, and nulls the others.
    """

    def drop(
        self, condition: Tensor, columns: ConditionColumns, probability: float, generator: torch.Generator
    ) -> Tensor:
        """Keep one random key of the batch, and drop that per sample."""
        if columns.n_keys == 0:
            return condition
        kept = torch.randint(columns.n_keys, (1,), generator=generator, device=condition.device)
        return _drop_samples(columns.keep(condition, kept), columns, probability, generator)

    def terms(self, scales: Sequence[float]) -> list[GuidanceTerm]:
        """Give one term per key."""
        return [GuidanceTerm((key,), scale) for key, scale in enumerate(scales)]


CONDITION_STRATEGIES: dict[str, ConditionStrategy] = {"joint": Joint(), "mutually_exclusive": MutuallyExclusive()}


def _drop_samples(
    condition: Tensor, columns: ConditionColumns, probability: float, generator: torch.Generator
) -> Tensor:
    coin = torch.rand(len(condition), 1, generator=generator, device=condition.device)
    return torch.where(coin < probability, columns.null, condition)
