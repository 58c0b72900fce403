"""Walking in steps, and looking at samples on their way from noise to data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ._random import Generators
    from ._samplers import Field


class Trace(NamedTuple):
    """Samples on their way: times ``(frames,)`` from noise to data, and the states ``(frames, n, ...)`` at them."""

    times: Tensor
    states: Tensor


class Walk(NamedTuple):
    """A walk to be done: its times ``(n_steps + 1,)``, and the state ``(n, ...)`` at each, computed when asked for."""

    times: Tensor
    states: Iterator[Tensor]


@runtime_checkable
class TracingSampler(Protocol):
    """A sampler that can be watched."""

    def trace(
        self,
        field: Field,
        x: Tensor,
        *,
        n_frames: int,
        n_steps: int | None = None,
        generators: Generators | None = None,
    ) -> Trace:
        """Carry noise ``x (n, ...)`` to data, and keep ``n_frames`` states: noise, data, and what lies between."""
        ...


class SteppingSampler(ABC):
    """A sampler that walks from noise to data in steps, the same for all samples."""

    def __call__(
        self, field: Field, x: Tensor, *, n_steps: int | None = None, generators: Generators | None = None
    ) -> Tensor:
        """Carry noise ``x (n, ...)`` from ``t = 0`` to data; see :meth:`walk`."""
        return deque(self.walk(field, x, n_steps=n_steps, generators=generators).states, maxlen=1).pop()

    def trace(
        self,
        field: Field,
        x: Tensor,
        *,
        n_frames: int,
        n_steps: int | None = None,
        generators: Generators | None = None,
    ) -> Trace:
        """Walk, and keep the states at ``n_frames`` of the ``n_steps + 1`` times, evenly chosen, both ends among them.

        Raises
        ------
        ValueError
            If there are not that many times.
        """
        times, states = self.walk(field, x, n_steps=n_steps, generators=generators)
        kept = frame_numbers(len(times), n_frames)
        frames = [state for number, state in enumerate(states) if number in kept]
        return Trace(times[kept], torch.stack(frames))

    @abstractmethod
    def walk(self, field: Field, x: Tensor, *, n_steps: int | None, generators: Generators | None) -> Walk:
        """Prepare the way of noise ``x (n, ...)`` to data in ``n_steps`` steps."""


def frame_numbers(n_states: int, n_frames: int) -> list[int]:
    """Choose the numbers of ``n_frames`` of ``n_states`` states, the first and the last among them.

    Examples
    --------
    >>> frame_numbers(11, 4)
    [0, 3, 7, 10]
    """
    if not 2 <= n_frames <= n_states:
        msg = (
            f"`n_frames` must be between 2 and {n_states}, one more than the sampler's steps, but found {n_frames}; "
            "take more steps (`n_steps`) to see more of them."
        )
        raise ValueError(msg)
    return [round(number * (n_states - 1) / (n_frames - 1)) for number in range(n_frames)]
