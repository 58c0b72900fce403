"""Checks of requested total counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scgen_diffusion._arguments import known_names
from scgen_diffusion.data import LARGEST_COUNT


def resolve_library_size(
    library_size: Any, n_cells: int, can_draw: bool, largest: Mapping[str, float]
) -> np.ndarray | None:
    """Check and resolve a user's library size.

    Parameters
    ----------
    library_size
        What the user gave.
    n_cells
        Number of cells.
    can_draw
        Whether the model can draw totals.
    largest
        With several modalities: the limit of totals, by the name of the modality.

    Returns
    -------
    numpy.ndarray or None
        Totals ``(cells,)``; with several modalities ``(cells, modalities)``, NaN for totals to draw. None: draw all.
    """
    if library_size is None:
        if not can_draw:
            msg = "This model knows no total counts; give `library_size`, one number or one per cell."
            raise ValueError(msg)
        return None
    if not largest:
        return _check_totals(library_size, n_cells)
    if not isinstance(library_size, Mapping):
        msg = f"`library_size` must map modalities ({', '.join(largest)}) to numbers, but found {library_size!r:.60}."
        raise TypeError(msg)
    totals = np.full((n_cells, len(largest)), np.nan, dtype=np.float32)
    for name, sizes in library_size.items():
        if name not in largest:
            msg = f"`library_size` names the modality {name!r}. {known_names(name, list(largest))}"
            raise ValueError(msg)
        most = min(largest[name] - 1, LARGEST_COUNT)  # of features that are 0 or 1, some must be 0
        totals[:, list(largest).index(name)] = _check_totals(sizes, n_cells, f"library_size[{name!r}]", most)
    return totals


def _check_totals(
    library_size: Any, n_cells: int, name: str = "library_size", most: float = LARGEST_COUNT
) -> np.ndarray:
    """Return one total per cell."""
    try:
        totals = np.asarray(library_size, dtype=float)
    except (OverflowError, TypeError, ValueError) as error:
        msg = f"`{name}` must be one number or one per cell, but found {library_size!r:.60}."
        raise TypeError(msg) from error
    if totals.shape not in ((), (n_cells,)):
        msg = f"`{name}` must be one number or one per cell ({n_cells}), but found shape {totals.shape}."
        raise ValueError(msg)
    is_allowed = (totals >= 1) & (totals <= most)
    if not is_allowed.all():
        msg = f"`{name}` must be at least 1 and at most {most:,}, but found {totals[~is_allowed][0]}."
        raise ValueError(msg)
    return np.broadcast_to(totals.astype(np.float32), n_cells)
