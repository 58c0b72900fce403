"""Samplers that move in steps, and the states of samples between noise and data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ._random import Generators
    from ._samplers import Field


class Walk(NamedTuple):
    """A lazy trajectory: its times ``(states,)``, and an iterator that computes the state ``(n, ...)`` at each."""

    times: Tensor
    states: Iterator[Tensor]


@runtime_checkable
class TracingSampler(Protocol):
    """A sampler that can return intermediate states."""

    def trace(
        self,
        field: Field,
        x: Tensor,
        *,
        n_frames: int,
        n_steps: int | None = None,
        generators: Generators | None = None,
    ) -> Walk:
        """Carry noise ``x (n, ...)`` to data, and show ``n_frames`` states, from noise to data."""
        ...


class SteppingSampler(ABC):
    """A sampler that moves from noise to data in steps, the same for all samples."""

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
    ) -> Walk:
        """Sample, and show the states at ``n_frames`` of the ``n_steps + 1`` times, evenly spaced, with both ends.

        Raises
        ------
        ValueError
            If there are fewer times than frames.
        """
        times, states = self.walk(field, x, n_steps=n_steps, generators=generators)
        kept = frame_numbers(len(times), n_frames)
        return Walk(times[kept], (state for number, state in enumerate(states) if number in kept))

    @abstractmethod
    def walk(self, field: Field, x: Tensor, *, n_steps: int | None, generators: Generators | None) -> Walk:
        """Prepare to carry noise ``x (n, ...)`` to data in ``n_steps`` steps."""


def frame_numbers(n_states: int, n_frames: int) -> list[int]:
    """Choose ``n_frames`` of ``n_states`` states, including the first and the last.

    Examples
    --------
    >>> frame_numbers(11, 4)
    [0, 3, 7, 10]
    """
    if not 2 <= n_frames <= n_states:
        msg = (
            f"`n_frames` must be between 2 and {n_states}, one more than the sampler's steps, but found {n_frames}; "
            "use more steps (`n_steps`) to get more frames."
        )
        raise ValueError(msg)
    return [round(number * (n_states - 1) / (n_frames - 1)) for number in range(n_frames)]
