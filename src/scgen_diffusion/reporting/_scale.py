"""A figure's place between what real cells score and what shuffled cells score, drawn as a small picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

WIDTH, MARGIN = 220.0, 8.0  # pixels
NONE = "–"


@dataclass(frozen=True)
class Scale:
    """Horizontal positions, in pixels, of one row of the table of figures; None for what is not known.

    Attributes
    ----------
    value, floor, shuffled
        Of the synthetic cells, of real cells, and of real cells with their genes shuffled.
    low, high
        Ends of the interval of the value.
    """

    value: float | None
    floor: float | None
    shuffled: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, row: pd.Series) -> Self:
        """Place all figures of a row on a common axis that just holds them."""
        figures = row[["value", "floor", "shuffled", "low", "high"]].astype(float)
        finite = figures[np.isfinite(figures)]
        start, span = (finite.min(), np.ptp(finite)) if len(finite) else (0.0, 0.0)
        inner = WIDTH - 2 * MARGIN

        def place(figure: float) -> float | None:
            if not np.isfinite(figure):
                return None
            return round(MARGIN + inner * ((figure - start) / span if span > 0 else 0.5), 1)

        return cls(*(place(figure) for figure in figures))


def written(figure: float) -> str:
    """Write a figure with three significant digits; a dash where there is none."""
    if not np.isfinite(figure):
        return NONE
    if figure == 0:
        return "0"
    magnitude = abs(figure)
    if magnitude >= 1000:
        return f"{figure:,.0f}"
    return f"{figure:.2e}" if magnitude < 1e-4 else f"{figure:.3g}"
