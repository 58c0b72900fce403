"""Conditions of any number of cells, without a row in memory for each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._condition_keys import OPEN

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class RequestedCodes:
    """Codes ``(cells, columns)`` of what was asked for, of which rows are made when they are looked at.

    Parameters
    ----------
    n_cells, n_columns
        How many rows and columns there are.
    given
        Columns of each key that was asked for, and its values ``(values, columns of the key)``, each of which belongs to an
        equal share of consecutive cells.
    """

    n_cells: int
    n_columns: int
    given: Sequence[tuple[slice, np.ndarray]]

    def __len__(self) -> int:
        return self.n_cells

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Return the codes of some cells, :data:`OPEN` where nothing was asked."""
        codes = np.full((len(rows), self.n_columns), OPEN)
        for columns, values in self.given:
            codes[:, columns] = values[rows * len(values) // self.n_cells]
        return codes

    def all(self) -> np.ndarray:
        """Return the codes of all cells."""
        return self[np.arange(self.n_cells)]

    def distinct(self) -> np.ndarray:
        """Return every combination at least once, in the order in which they first occur."""
        first = [-(-np.arange(len(values)) * self.n_cells // len(values)) for _, values in self.given]
        return self[np.unique(np.concatenate([np.zeros(1, int), *first]))]

    @property
    def is_uniform(self) -> bool:
        """Whether all cells were asked for alike."""
        return all(len(values) == 1 for _, values in self.given)

    @property
    def digest(self) -> str:
        """Tell what was asked for from other things, for however many cells.

        Each key's values come after what says how many bytes they are, so that no two requests are written alike.
        """
        digest = hashlib.sha256(f"{self.n_columns}".encode())
        for columns, values in sorted(self.given, key=lambda one: one[0].start):
            digest.update(f";{columns.start},{values.shape},{values.dtype.str}:".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()
