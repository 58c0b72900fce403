"""Checks of requested total counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scgen_diffusion._arguments import known_names
from scgen_diffusion.data import LARGEST_COUNT

if TYPE_CHECKING:
    from collections.abc import Sequence


def resolve_library_size(
    library_size: Any, n_cells: int, default: str, known: Sequence[str], largest: Mapping[str, float]
) -> str | np.ndarray:
    """Check and resolve a user's library size.

    Parameters
    ----------
    library_size
        What the user gave.
    n_cells
        Number of cells.
    default, known
        Default distribution, and those that the model can draw from.
    largest
        With several modalities: the limit of totals, by the name of the modality.

    Returns
    -------
    str or numpy.ndarray
        The name of a distribution, or totals ``(cells,)``; with several modalities ``(cells, modalities)``, NaN for
        totals to draw.
    """
    if library_size is None or isinstance(library_size, str):
        kind = library_size or default
        if kind not in known:
            msg = (
                f"This model has no `library_size` {kind!r}; give numbers, or a distribution. Models of "
                "log-normalised values, and some published weights, know no totals; 'latent' needs totals that are "
                f"predicted from cells. {known_names(kind, known)}"
            )
            raise ValueError(msg)
        return kind
    if not largest:
        return _check_totals(library_size, n_cells)
    if not isinstance(library_size, Mapping):
        msg = (
            f"`library_size` must be a mapping from modality ({', '.join(largest)}) to numbers, or the name of a "
            f"distribution, but found {type(library_size).__name__}."
        )
        raise TypeError(msg)
    totals = np.full((n_cells, len(largest)), np.nan, dtype=np.float32)
    for name, sizes in library_size.items():
        if name not in largest:
            msg = f"`library_size` names the modality {name!r}. {known_names(name, list(largest))}"
            raise ValueError(msg)
        checked = _check_totals(sizes, n_cells, f"library_size[{name!r}]")
        if np.max(checked) >= largest[name]:
            msg = (
                f"`library_size[{name!r}]` must be below the number of features ({largest[name]}), which are 0 or 1, "
                f"but found {np.max(checked):g}."
            )
            raise ValueError(msg)
        totals[:, list(largest).index(name)] = checked
    return totals


def _check_totals(library_size: Any, n_cells: int, name: str = "library_size") -> np.ndarray:
    """Return one total per cell."""
    try:
        totals = None if library_size is None else np.asarray(library_size, dtype=float)
    except OverflowError:  # a whole number that no float can hold
        totals = np.array(np.inf)
    except (TypeError, ValueError):
        totals = None
    if totals is None or isinstance(library_size, bool):
        msg = f"`{name}` must be one number, one per cell, or the name of a distribution, but found {library_size!r}."
        raise TypeError(msg)
    if totals.ndim > 1 or (totals.ndim == 1 and len(totals) != n_cells):
        msg = f"`{name}` must be one number or one per cell ({n_cells}), but found shape {totals.shape}."
        raise ValueError(msg)
    is_allowed = (totals >= 1) & (totals <= LARGEST_COUNT)
    if not is_allowed.all():
        msg = f"`{name}` must be at least 1 and at most {LARGEST_COUNT:,}, but found {totals[~is_allowed][0]}."
        raise ValueError(msg)
    return np.broadcast_to(totals.astype(np.float32), n_cells)
