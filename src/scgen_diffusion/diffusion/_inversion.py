r"""Inversion: given data become noise in one field, and the same noise becomes data in another.

A walk from noise to data under the data's own condition is found that ends at the data. What its steps leave over,
:math:`r = x_{t'} - \text{step}_{own}(x_t)`, is added to the steps of the walk under the new condition. So both walks are the
same where both conditions are, and the way there and back returns the data up to rounding, however few steps there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import torch

from ._samplers import Field, Step, midpoint_step

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from ._random import SampleGenerators

Advance = Callable[[Field, "Tensor", "Tensor", "Tensor"], "Tensor"]  # (field, x_t, t, next t) -> x at the next t


class Transport(Protocol):
    """Anything that carries data of one field's distribution to that of another by way of noise."""

    def __call__(
        self,
        own: Field,
        new: Field,
        x: Tensor,
        *,
        strength: float = 1.0,
        n_steps: int | None = None,
        generators: SampleGenerators | None = None,
    ) -> Tensor:
        """Carry data ``x (n, ...)`` from the distribution of ``own`` to that of ``new``."""
        ...


@dataclass(frozen=True)
class FlowTransport:
    r"""Back to noise along the probability flow of one field, and to data along that of another.

    Nothing is drawn. For normally distributed data the way there and back is the optimal affine map between the two
    distributions. The error against the exact flows has the order of the method.

    Parameters
    ----------
    step
        One step of the method.
    default_n_steps
        Number of steps each way when none is asked for.

    References
    ----------
    Su et al. (2023), *Dual diffusion implicit bridges for image-to-image translation*.

    Examples
    --------
    >>> import torch
    >>> own, new = (lambda x, t, mean=mean: torch.full_like(x, mean) for mean in (1.0, 3.0))
    >>> FlowTransport()(own, new, torch.ones(1, 2))
    tensor([[3., 3.]])
    """

    step: Step = midpoint_step
    default_n_steps: int = 10

    def __call__(
        self,
        own: Field,
        new: Field,
        x: Tensor,
        *,
        strength: float = 1.0,
        n_steps: int | None = None,
        generators: SampleGenerators | None = None,
    ) -> Tensor:
        """Carry data ``x (n, ...)`` back to ``t = 1 - strength`` along ``own``, and to ``t = 1`` along ``new``."""
        times = times_from(1 - strength, self.default_n_steps if n_steps is None else n_steps, x)
        return replay(self._advance, own, new, self.invert(own, x, times), times)

    def invert(self, own: Field, x: Tensor, times: Tensor) -> list[Tensor]:
        """Walk back from data ``x (n, ...)``, and return the states at the ``times`` of the way forward."""
        states = [x]
        for t, earlier in pairwise(times.flip(0)):
            states.append(self._advance(own, states[-1], t, earlier))
        return states[::-1]

    def _advance(self, field: Field, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        return self.step(field, x, t, t_next - t)


def replay(advance: Advance, own: Field, new: Field, states: Iterable[Tensor], times: Tensor) -> Tensor:
    """Walk under ``new`` as the ``states`` at the ``times`` walk under ``own``, from the same start.

    Parameters
    ----------
    advance
        One step of the method.
    own, new
        The fields.
    states
        States ``(n, ...)`` of a walk to the data, one per time.
    times
        From noisy to clean, ``(n_steps + 1,)``.

    Returns
    -------
    Tensor
        Where the walk under ``new`` ends, ``(n, ...)``.
    """
    following = iter(states)
    x = x_new = next(following)
    for (t, t_next), x_next in zip(pairwise(times), following, strict=True):
        x_new = advance(new, x_new, t, t_next) + (x_next - advance(own, x, t, t_next))
        x = x_next
    return x_new


def times_from(start: float, n_steps: int, like: Tensor) -> Tensor:
    """Return the times of ``n_steps`` equal steps from ``start`` to 1, on the device of ``like``."""
    if not 0 <= start < 1:
        msg = f"`strength` must be above 0 and at most 1, but found {1 - start}."
        raise ValueError(msg)
    if n_steps < 1:
        msg = f"`n_steps` must be at least 1, but found {n_steps}."
        raise ValueError(msg)
    return torch.linspace(start, 1, n_steps + 1, device=like.device)
