"""Checks of requested total counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from scgen_diffusion._arguments import known_names
from scgen_diffusion.data import LARGEST_COUNT
from scgen_diffusion.module import LIBRARY_SIZE_KINDS, LibrarySizeKind


@dataclass(frozen=True)
class LibrarySizes:
    """The library sizes that a model supports.

    Parameters
    ----------
    default
        Default distribution.
    is_fitted
        Whether there are statistics to draw from.
    head_is_trained
        Whether totals can be predicted from the latent.
    largest
        With several modalities: the limit of totals, by the name of the modality.
    """

    default: LibrarySizeKind
    is_fitted: bool
    head_is_trained: bool
    largest: Mapping[str, float] = field(default_factory=dict)

    def check(self, library_size: Any, n_cells: int) -> LibrarySizeKind | np.ndarray:
        """Check and resolve a user's library size.

        Returns
        -------
        str or numpy.ndarray
            The name of a distribution, or totals ``(cells,)``; with several modalities ``(cells, modalities)``, NaN for
            totals to draw.
        """
        if library_size is None or isinstance(library_size, str):
            return self._check_kind(library_size or self.default)
        if not self.largest:
            return _check_totals(library_size, n_cells)
        if not isinstance(library_size, Mapping):
            msg = (
                f"`library_size` of a model with the modalities {list(self.largest)} must be a mapping from modality "
                f"to numbers, or the name of a distribution, but found {type(library_size).__name__}."
            )
            raise TypeError(msg)
        totals = np.full((n_cells, len(self.largest)), np.nan, dtype=np.float32)
        for name, sizes in library_size.items():
            if name not in self.largest:
                msg = f"`library_size` names the modality {name!r}. {known_names(name, list(self.largest))}"
                raise ValueError(msg)
            if isinstance(sizes, str):
                msg = (
                    f"`library_size[{name!r}]` must be numbers, but found {sizes!r}; name a distribution for all "
                    "modalities together."
                )
                raise TypeError(msg)
            checked = _check_totals(sizes, n_cells, f"library_size[{name!r}]")
            if np.max(checked) >= self.largest[name]:
                msg = (
                    f"`library_size[{name!r}]` must be below the number of features ({self.largest[name]}), which are "
                    f"0 or 1, but found {np.max(checked):g}."
                )
                raise ValueError(msg)
            totals[:, list(self.largest).index(name)] = checked
        return totals

    def _check_kind(self, kind: str) -> LibrarySizeKind:
        if kind not in LIBRARY_SIZE_KINDS:
            msg = f"`library_size` {kind!r} is not known. {known_names(kind, LIBRARY_SIZE_KINDS)}"
            raise ValueError(msg)
        if not self.is_fitted:
            msg = (
                "The model has no library-size statistics; give `library_size` as one number or one per cell. Models "
                "of log-normalised values, and some published weights, know no totals."
            )
            raise ValueError(msg)
        if kind == "latent" and not self.head_is_trained:
            msg = (
                "`library_size='latent'` needs totals that are predicted from cells. Neither published weights nor "
                "models with `path='masking'` have such a head; use 'empirical' or 'normal'."
            )
            raise ValueError(msg)
        return cast("LibrarySizeKind", kind)


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
