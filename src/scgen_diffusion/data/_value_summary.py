"""What is to be known of values to judge them, without having them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import scipy.sparse as sp


class ValueSummary(NamedTuple):
    """What is to be known of many values to judge them.

    Parameters
    ----------
    n_values, n_stored
        How many values there are, and how many of them are stored: not zero in a sparse matrix, or all.
    n_nonzero
        How many are not zero.
    largest
        The largest value, NaN if any is not finite.
    """

    n_values: int
    n_stored: int
    n_nonzero: int
    largest: float

    @classmethod
    def of(cls, x: sp.csr_matrix | np.ndarray) -> ValueSummary:
        """Look at values ``(cells, genes)``."""
        stored = x if isinstance(x, np.ndarray) else x.data
        largest = max(float(stored.max(initial=-np.inf)), 0.0 if stored.size < np.prod(x.shape) else -np.inf)
        is_finite = bool(np.isfinite(stored).all())
        return cls(int(np.prod(x.shape)), stored.size, int(np.count_nonzero(stored)), largest if is_finite else np.nan)

    @property
    def zeros(self) -> float:
        """Share of the values that are zero."""
        return 1 - self.n_nonzero / self.n_values

    def together(self, other: ValueSummary) -> ValueSummary:
        """Return the summary of the values of both."""
        return ValueSummary(
            self.n_values + other.n_values,
            self.n_stored + other.n_stored,
            self.n_nonzero + other.n_nonzero,
            float(np.maximum(self.largest, other.largest)),
        )
