"""Classifier-free guidance: how several predictions become one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ._conditioning import ConditionColumns, GuidanceTerm
    from ._losses import Network


@dataclass(frozen=True)
class GuidedField:
    r"""A network under a fixed condition, as a function of ``(x_t, t)`` alone.

    .. math:: v(x_t, t) = v_\varnothing + \sum_j s_j\,(v_{K_j} - v_\varnothing)

    Predictions of weight zero are not evaluated: with one term of scale 1 the null prediction costs nothing. All others
    run as one batch.

    Parameters
    ----------
    network
        ``(x_t, t, condition) -> prediction``, with ``t`` the network's time (:meth:`Path.network_time`).
    condition
        ``(n, columns)``.
    columns
        What the columns of the condition mean.
    terms
        Summands of guidance. None of them: the unconditional field.

    References
    ----------
    Ho and Salimans (2022), *Classifier-free diffusion guidance*; Liu et al. (2022), *Compositional visual generation*.
    """

    network: Network
    condition: Tensor
    columns: ConditionColumns
    terms: tuple[GuidanceTerm, ...] = ()

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Evaluate the guided prediction at ``x_t (n, ...)`` and a scalar time or times ``(n,)``."""
        weights, conditions = self._weighted_conditions
        repeats = len(weights)
        stacked = self.network(_tile(x_t, repeats), t.expand(len(x_t)).repeat(repeats), conditions)
        return sum(weight * v for weight, v in zip(weights, stacked.chunk(repeats), strict=True))

    @cached_property
    def _weighted_conditions(self) -> tuple[list[float], Tensor]:
        """Weights of the predictions, and their conditions one below the other; the same along the whole path."""
        weighted = [(1 - sum(term.scale for term in self.terms), ())]
        weighted += [(term.scale, term.keys) for term in self.terms]
        kept = [(weight, self.columns.keep(self.condition, keys)) for weight, keys in weighted if weight != 0]
        return [weight for weight, _ in kept], torch.cat([condition for _, condition in kept])


def _tile(x: Tensor, repeats: int) -> Tensor:
    return x.repeat(repeats, *[1] * (x.ndim - 1)) if repeats > 1 else x
