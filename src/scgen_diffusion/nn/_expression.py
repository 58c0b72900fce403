"""Expression as networks see it: totals and log-normalised profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

InputValues = Literal["counts", "log1p"]
TARGET_SUM = 1e4
"""Total counts of a normalised profile."""


def total_counts(x: Tensor) -> Tensor:
    """Return each cell's total counts, at least 1, ``(cells, 1)``."""
    return x.sum(1, keepdim=True).clamp(min=1)


def log_profile(x: Tensor, values: InputValues) -> Tensor:
    """Return ``log1p(1e4 x / sum(x))`` of counts ``(cells, genes)``; log-normalised values stay as they are."""
    return (x * (TARGET_SUM / total_counts(x))).log1p() if values == "counts" else x
