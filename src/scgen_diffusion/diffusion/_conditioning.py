"""Strategies for several conditions at once: what training drops, and how guidance composes them.

A condition is a tensor of class indices ``(n, keys)``. The index ``null[k]`` (one past the last class of key ``k``)
stands for "not given".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True)
class GuidanceTerm:
    r"""One summand :math:`s\,(v_K - v_\varnothing)` of guidance: the keys ``K`` that are given, and their scale ``s``."""

    keys: tuple[int, ...]
    scale: float


class ConditionStrategy(Protocol):
    """How a model sees several conditions."""

    def drop(self, condition: Tensor, null: Tensor, probability: float, generator: torch.Generator) -> Tensor:
        """Replace classes by the null class at random, for classifier-free guidance."""
        ...

    def terms(self, scales: Sequence[float]) -> list[GuidanceTerm]:
        """Turn one scale per key into the summands of guidance."""
        ...


@dataclass(frozen=True)
class Joint:
    r"""All conditions together or none: :math:`v = v_\varnothing + \bar{s}\,(v_{all} - v_\varnothing)`.

    As published for scLDM, the scale is the mean of the keys' scales.
    """

    def drop(self, condition: Tensor, null: Tensor, probability: float, generator: torch.Generator) -> Tensor:
        """Drop all keys of a sample by one coin per sample."""
        return _drop_samples(condition, null, probability, generator)

    def terms(self, scales: Sequence[float]) -> list[GuidanceTerm]:
        """Give one term with all keys."""
        return [GuidanceTerm(tuple(range(len(scales))), sum(scales) / len(scales))] if scales else []


@dataclass(frozen=True)
class MutuallyExclusive:
    r"""One condition at a time: :math:`v = v_\varnothing + \sum_k s_k\,(v_k - v_\varnothing)`.

    Training shows one key per batch, drawn at random, and nulls the others.
    """

    def drop(self, condition: Tensor, null: Tensor, probability: float, generator: torch.Generator) -> Tensor:
        """Keep one random key of the batch, and drop that per sample."""
        if condition.shape[1] == 0:
            return condition
        kept = torch.randint(condition.shape[1], (1,), generator=generator, device=condition.device)
        return _drop_samples(keep_keys(condition, null, kept), null, probability, generator)

    def terms(self, scales: Sequence[float]) -> list[GuidanceTerm]:
        """Give one term per key."""
        return [GuidanceTerm((key,), scale) for key, scale in enumerate(scales)]


CONDITION_STRATEGIES: dict[str, ConditionStrategy] = {"joint": Joint(), "mutually_exclusive": MutuallyExclusive()}


def keep_keys(condition: Tensor, null: Tensor, keys: Sequence[int] | Tensor) -> Tensor:
    """Null every key of ``condition (n, keys)`` that is not listed."""
    kept = torch.zeros(condition.shape[1], dtype=torch.bool, device=condition.device)
    kept[torch.as_tensor(keys, dtype=torch.long, device=condition.device)] = True
    return torch.where(kept, condition, null)


def _drop_samples(condition: Tensor, null: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    coin = torch.rand(len(condition), 1, generator=generator, device=condition.device)
    return torch.where(coin < probability, null, condition)
