"""Learning-rate schedules, as factors of the base rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._recipes import Schedule


def cosine(progress: float) -> float:
    """Fall from 1 to 0.01 along half a cosine."""
    return 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2


def hold_then_decay(progress: float, *, decay: float = 0.1, final: float = 0.1) -> float:
    """Stay at 1, then fall to ``final`` by a square root over the last ``decay`` of training."""
    return final + (1 - final) * (1 - math.sqrt(max(progress - (1 - decay), 0) / decay))


def constant(progress: float) -> float:
    """Stay at 1."""
    return 1.0


SHAPES: dict[Schedule, Callable[[float], float]] = {
    "cosine": cosine,
    "warm_up_hold_decay": hold_then_decay,
    "constant": constant,
}


def learning_rate_factor(schedule: Schedule, *, n_steps: int, warm_up: float) -> Callable[[int], float]:
    """Build the factor of each step: a linear rise from 0.01 over the first share of steps, then the named shape."""
    n_warm_up = max(round(warm_up * n_steps), 1)
    shape = SHAPES[schedule]

    def factor(step: int) -> float:
        if step < n_warm_up:
            return 0.01 + 0.99 * step / n_warm_up
        return shape(min(step / max(n_steps, 1), 1.0))

    return factor
