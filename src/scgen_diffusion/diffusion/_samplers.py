"""Samplers carry noise at ``t = 0`` to data at ``t = 1``; those for flows integrate ``dx/dt = v(x, t)``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from scgen_diffusion._arguments import check_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ._random import Generators

Field = Callable[["Tensor", "Tensor"], "Tensor"]
Step = Callable[[Field, "Tensor", "Tensor", "Tensor"], "Tensor"]


class Sampler(Protocol):
    """Anything that carries samples along a field, with random numbers if the method needs them."""

    def __call__(
        self, field: Field, x: Tensor, *, n_steps: int | None = None, generators: Generators | None = None
    ) -> Tensor:
        """Carry noise ``x (n, ...)`` from ``t = 0`` to data at ``t = 1``."""
        ...


class Walk(NamedTuple):
    """A lazy trajectory: its times ``(states,)``, and an iterator that computes the state ``(n, ...)`` at each."""

    times: Tensor
    states: Iterator[Tensor]


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


def euler_step(field: Field, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    """Take one explicit Euler step (order 1, one evaluation)."""
    return x + dt * field(x, t)


def midpoint_step(field: Field, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    """Take one midpoint step (order 2, two evaluations)."""
    return x + dt * field(x + dt / 2 * field(x, t), t + dt / 2)


def heun_step(field: Field, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    """Take one step of Heun's trapezoidal method (order 2, two evaluations)."""
    slope = field(x, t)
    return x + dt / 2 * (slope + field(x + dt * slope, t + dt))


def equal_times(n_steps: int, device: torch.device | str) -> Tensor:
    """Return the times of ``n_steps`` equal steps from 0 to 1; raise ValueError for fewer than one step."""
    return torch.linspace(0, 1, check_count("n_steps", n_steps) + 1, device=device)


@dataclass(frozen=True)
class FixedStepSampler(SteppingSampler):
    """Integrate with equal steps.

    Parameters
    ----------
    step
        One step of the method.
    default_n_steps
        Default number of steps.
    """

    step: Step
    default_n_steps: int

    def __post_init__(self) -> None:
        check_count("default_n_steps", self.default_n_steps)

    def walk(
        self, field: Field, x: Tensor, *, n_steps: int | None = None, generators: Generators | None = None
    ) -> Walk:
        """Prepare to integrate ``field`` from noise ``x (n, ...)`` in equal steps, without random numbers."""
        times = equal_times(self.default_n_steps if n_steps is None else n_steps, x.device)
        return Walk(times, self._states(field, x, times))

    def _states(self, field: Field, x: Tensor, times: Tensor) -> Iterator[Tensor]:
        yield x
        for t, t_next in pairwise(times):
            x = self.step(field, x, t, t_next - t)
            yield x


FLOW_SAMPLERS: dict[str, Sampler] = {
    "euler": FixedStepSampler(euler_step, default_n_steps=50),
    "midpoint": FixedStepSampler(midpoint_step, default_n_steps=10),
    "heun": FixedStepSampler(heun_step, default_n_steps=10),
}
